import re
from dataclasses import replace

import pytest

from sweeps import cli, layer_noise, text_learning
from sweeps.finetune import Finetune
from sweeps.finetuning import sweep as finetuning
from sweeps.flags import ModelAndData
from sweeps.learn_text import LearnText
from sweeps.probing.cost import least_and_most, share_outside
from sweeps.probing.plan import set_up
from sweeps.probing.screening import ScreeningRules


def test_list_blocks_prints_a_line_a_block(tiny_model, capsys):
    layer_noise.main(cli.parse(layer_noise.LayerNoise, ["--backbone", tiny_model, "--list-blocks"], None))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["block", "index", "paper", "module", "channels", "size", "FLOPs", "up", "to", "it"]
    assert lines[5].split() == ["up.0.0", "1", "out_1", "up_blocks.0.attentions.0", "16", "4x4", "26.4%"]
    assert len([line for line in lines if "%" in line]) == 10
    assert "timesteps 0 to 999, of which 0 10 30 60 120 250 500 are tried" in lines[-1]


def test_dry_run_of_a_model_of_pixels_says_what_it_costs(tiny_model, capsys, tmp_path):
    flags = ["--backbone", tiny_model, "--dataset", "digits", "--dry-run", "--store", str(tmp_path / "store")]
    layer_noise.main(cli.parse(layer_noise.LayerNoise, flags, None))
    printed = capsys.readouterr().out
    for word in ("forward passes", "GFLOP an image", "B in ", "extraction", "divided by"):
        assert word in printed
    assert "encodings" not in printed and not (tmp_path / "store").exists()


def test_dry_run_of_a_bounded_search_counts_the_answer_on_all_images(tiny_model, capsys, tmp_path):
    flags = ["--backbone", tiny_model, "--dataset", "digits", "--dry-run", "--store", str(tmp_path / "store")]
    printed = []
    for more in ([], ["--search-images", "300"]):
        layer_noise.main(cli.parse(layer_noise.LayerNoise, [*flags, *more], None))
        printed.append(capsys.readouterr().out)
    said = (
        r"forward passes +([\d,]+) to ([\d,]+); the grid would be [\d,]+\n +([\d,]+) to ([\d,]+) of them by the search"
    )
    assert not re.search(said, printed[0])
    least, most, least_searched, most_searched = (int(n.replace(",", "")) for n in re.search(said, printed[1]).groups())
    assert least_searched < least < most and most - most_searched == pytest.approx(1151 - 300, rel=0.01)
    assert "on 300 training and 287 val images" in printed[1]


def test_dry_run_of_a_latent_model_says_what_its_encodings_cost(tiny_stable_diffusion, capsys, tmp_path):
    flags = ["--backbone", tiny_stable_diffusion, "--dataset", "digits", "--dry-run", "--views", "2"]
    layer_noise.main(cli.parse(layer_noise.LayerNoise, [*flags, "--store", str(tmp_path / "store")], None))
    printed = capsys.readouterr().out
    assert f"encodings       at most {2 * 1151 + 287:,}, each image once" in printed


def test_dry_run_says_what_is_offloaded_and_what_the_device_holds(tiny_stable_diffusion, capsys, tmp_path):
    flags = ["--backbone", tiny_stable_diffusion, "--dataset", "digits", "--dry-run", "--device", "cpu", "--offload"]
    layer_noise.main(cli.parse(layer_noise.LayerNoise, [*flags, "--store", str(tmp_path / "store")], None))
    said = (
        r"offload +the weights, [\d.e-]+ MB, stay in CPU memory; .* cpu holds a layer at a time, of [\d.e-]+ MB at most"
    )
    assert re.search(rf"{said}, and the VAE, [\d.e-]+ MB\n", capsys.readouterr().out + "\n")


@pytest.mark.parametrize("set_up", [finetuning.set_up, text_learning.set_up])
def test_what_trains_is_not_offloaded(set_up, tiny_stable_diffusion):
    config = {finetuning.set_up: Finetune, text_learning.set_up: LearnText}[set_up]
    with pytest.raises(ValueError, match="offload=True is for frozen features"):
        set_up(config(tiny_stable_diffusion, "digits", block="b18", offload=True))


def test_share_outside_is_what_no_interval_covers():
    assert share_outside([(2, 4), (3, 5), (9, 20)], 0, 10) == pytest.approx(0.6)
    assert share_outside([(0, 10)], 0, 10) == 0


def test_what_is_screened_and_how_decides_what_it_costs(tiny_model):
    task = set_up(ModelAndData(tiny_model, "digits"), poolings=(1, 2), heads=("linear",)).task
    rules = ScreeningRules((200,))
    least, most = least_and_most(task, rules)
    assert least < most < task.grid_passes
    assert least_and_most(task, replace(rules, start="label-free")) < (least, most)
    assert least_and_most(task, replace(rules, keep=0.25, finalists=1))[1] < most
    grid = least_and_most(task, ScreeningRules((200,), exhaustive=True))
    assert grid[0] == grid[1] > task.grid_passes  # the label-free scores want a second noise draw


def test_every_module_is_listed_once_and_only_blocks_have_a_number(tiny_model, capsys):
    flags = ["--backbone", tiny_model, "--list-blocks"]
    layer_noise.main(cli.parse(layer_noise.LayerNoise, flags, None))
    blocks = [line.split() for line in capsys.readouterr().out.splitlines() if "%" in line]
    layer_noise.main(cli.parse(layer_noise.LayerNoise, [*flags, "--all"], None))
    *lines, summary = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if "%" in line]
    assert [row for row in rows if len(row) > 5] == blocks
    modules = [row[-4] for row in rows]
    assert len(modules) == len(set(modules)) > len(blocks) and all(row[0] == row[-4] for row in rows if len(row) == 5)
    assert "down_blocks.0.resnets.0.conv1" in modules and summary.startswith("71,033 parameters")
