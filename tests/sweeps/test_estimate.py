import pytest

from sweeps import cli, layer_noise
from sweeps.cli import ModelAndData
from sweeps.tuning.plan import make_plan


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
    for word in ("forward passes", "GFLOP an image", "GB in", "minutes"):
        assert word in printed
    assert "encodings" not in printed and not (tmp_path / "store").exists()


@pytest.mark.parametrize("names", [("out_4", "mid"), ("mid", "up.1.1")])
def test_blocks_go_by_the_papers_names_too(tiny_model, names):
    plan, *_ = make_plan(ModelAndData(tiny_model, "digits", blocks=names))
    assert [block.name for block in plan.space.blocks] == ["mid", "up.1.1"]
    assert plan.space.timesteps == (0, 10, 30, 60, 120, 250, 500)
