"""Fine-tuning as a user gives it, on a random network and scikit-learn's digits."""

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import ddae
from ddae.backbones import load_backbone
from ddae.finetune import Cut, cut_network, reinitialise
from sweeps.finetune import Finetune
from sweeps.finetuning.cost import estimate, latents_needed
from sweeps.finetuning.sweep import set_up
from tests.commands import PATIENCE_SECONDS

CELL = ["--dataset", "digits", "--block", "mid", "--timestep", "10", "--pooling", "2"]
SHORT = ["--epochs", "2", "--scratch-epochs", "2", "--batch-size", "20", "--num-trials", "2", "--seeds", "2"]


def run(fork, command, *args, cwd):
    out, err = (process := fork(command, *args, cwd=cwd)).communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def folder(fork, tiny_model, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("finetune")
    out = run(fork, "finetune", "--backbone", tiny_model, *CELL, *SHORT, "--num-labels", "20", "40", cwd=cwd)
    assert "2 seeds each" in out and "after mid" in out
    [results] = cwd.glob("out/finetune-*/results.json")
    return results.parent


def test_every_start_and_number_of_labels_has_its_outcome(folder):
    results = json.loads((folder / "results.json").read_text())
    found = {(each["cell"]["init"], each["cell"]["num_labels"]) for each in results["outcomes"]}
    assert found == {(init, n) for init in ("finetune", "scratch", "frozen") for n in (20, 40)}
    assert all(len(each["accuracies"]) == 2 for each in results["outcomes"])
    assert results["answer"]["cell"]["num_labels"] == 40
    assert 0 < results["kept"]["mid"]["share_of_parameters"] < 1
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert {row["init"] for row in rows} == {"finetune", "scratch", "frozen"}
    assert np.asarray(Image.open(folder / "figures" / "labels.png").convert("L")).std() > 5


@pytest.mark.slow
def test_cuts_and_timesteps_are_compared_at_the_same_length(fork, tiny_model, tmp_path):
    several = ["--cut", "mid", "up.0.0", "--tell", "10", "300", "--init", "finetune", "--num-labels", "20"]
    run(fork, "finetune", "--backbone", tiny_model, *CELL, *SHORT, *several, cwd=tmp_path)
    [results] = tmp_path.glob("out/finetune-*/results.json")
    outcomes = json.loads(results.read_text())["outcomes"]
    found = {(each["cell"]["cut"], each["cell"]["timestep"]) for each in outcomes}
    assert found == {(cut, timestep) for cut in ("mid", "up.0.0") for timestep in (10, 300)}
    assert {path.name for path in (results.parent / "figures").iterdir()} == {"labels.png", "cut.png", "timestep.png"}


def test_the_same_command_says_the_same(fork, tiny_model, folder):
    args = ["--backbone", tiny_model, *CELL, *SHORT, "--num-labels", "20", "40"]
    assert run(fork, "finetune", *args, cwd=folder.parents[1]).strip() == (folder / "report.txt").read_text().strip()


@pytest.mark.slow
def test_the_answer_of_a_sweep_is_fine_tuned_tested_and_handed_over(fork, tiny_model, tmp_path):
    few = ["--blocks", "mid", "--timesteps", "10", "--poolings", "2", "--heads", "linear", "--num-trials", "1"]
    run(fork, "layer_noise", "--backbone", tiny_model, "--dataset", "digits", *few, cwd=tmp_path)
    run(fork, "finetune", *SHORT, "--init", "finetune", "--num-labels", "40", cwd=tmp_path)
    [results] = tmp_path.glob("out/finetune-*/results.json")
    page = (results.parent / "report.html").read_text()
    assert f"python sweeps/finetune.py --backbone {tiny_model} --dataset digits" in page and "--block mid" in page
    assert "test accuracy" in run(fork, "final_test", cwd=tmp_path)
    run(fork, "hand_over", "--include-backbone", cwd=tmp_path)
    winner = ddae.load(results.parent)
    accuracy = json.loads((results.parent / "final_test.json").read_text())["test_accuracy"]
    task = set_up(Finetune(tiny_model, "digits", block="mid", timestep=10, pooling=2)).dataset
    rows = task.splits["test"]
    right = winner.predict(task.images.read(rows)) == task.labels("test")
    assert right.mean() == pytest.approx(accuracy, abs=0.01)


def test_what_lies_past_the_cut_is_not_kept(tiny_model):
    backbone = load_backbone(tiny_model)
    trained, kept = cut_network(backbone, Cut("mid", 10, 1, "linear"))
    assert kept and not any(name.startswith(("up_blocks", "conv_out")) for name in kept)
    assert {name.split(".")[0] for name in kept} >= {"conv_in", "down_blocks", "mid_block", "time_embedding"}
    deeper = cut_network(backbone, Cut("up.0.0", 10, 1, "linear"))[1]
    assert set(kept) < set(deeper)
    reinitialise(trained.network, 0)
    name = "mid_block.resnets.0.conv1.weight"
    before, after = (dict(each.network.named_parameters())[name] for each in (backbone, trained))
    assert not torch.equal(before, after)  # and the backbone itself is as it was


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"block": "up.2.1"}, "block='up.2.1' is the last, and nothing is left to cut off; allowed: down.0.0, "),
        ({"block": "attic"}, "block='attic' is not known; allowed: "),
        ({"head": "cnn"}, "head='cnn' wants a pooling of 4 or more, and pooling=1"),
        ({"pooling": 32}, "pooling=32 does not fit block='mid', whose map is 4 x 4"),
        ({"num_labels": (9,)}, "num_labels=9 must be 10 or more, one a class, and "),
        ({"timestep": 1000}, "timestep=1000 is outside this model's schedule; allowed: 0 to 999"),
        ({"learning_rates": (0.0,)}, "learning_rates=[0.0] must be above 0"),
        ({"init": ()}, "--init is empty"),
    ],
)
def test_mistakes_are_one_line(tiny_model, tmp_path, flags, words):
    config = Finetune(tiny_model, "digits", block="mid", timestep=10, store=str(tmp_path))
    with pytest.raises(ValueError) as mistake:
        set_up(replace(config, **flags))
    assert words in str(mistake.value) and "\n" not in str(mistake.value)


def test_a_sweep_of_another_model_is_refused(tmp_path):
    (tmp_path / "layer-noise-1").mkdir()
    cell = {"block": "mid", "timestep": 10, "pooling": 1, "head": "linear"}
    record = {"task": "layer-noise", "flags": {}, "answer": {"cell": cell}}
    (tmp_path / "layer-noise-1" / "results.json").write_text(json.dumps(record))
    (tmp_path / "layer-noise-1" / "config.yaml").write_text("backbone: one\n")
    with pytest.raises(ValueError, match="backbone='other' is not that of --sweep"):
        set_up(Finetune("other", sweep=tmp_path / "layer-noise-1"))


def test_no_view_is_encoded_where_none_is_seen(tiny_stable_diffusion, tmp_path):
    flags = {"dataset": "digits", "block": "mid", "timestep": 10, "store": str(tmp_path), "num_labels": (300,)}
    for seen in ({"init": ("frozen",)}, {"augment": ("none",)}):
        [needs] = latents_needed(set_up(Finetune(backbone=tiny_stable_diffusion, **flags, **seen))).values()
        assert {(need.split, need.view) for need in needs} == {("val", 0), ("train", 0)}


@pytest.mark.parametrize("seeds", [1, 3])
def test_all_latents_that_trainings_see_are_encoded_before(seeds, tiny_stable_diffusion, tmp_path):
    flags = {"dataset": "digits", "block": "mid", "timestep": 10, "store": str(tmp_path), "num_labels": (300, 400)}
    setup = set_up(Finetune(backbone=tiny_stable_diffusion, seeds=seeds, **flags))
    [needs] = latents_needed(setup).values()
    encoded = {(need.split, need.view): need.num_images for need in needs}
    assert len(encoded) == len(needs) == 12
    for task in setup.tasks:
        for seed in range(seeds):
            for cell in (replace(each, seed=seed) for each in task.cells):
                assert task.labelled(cell).max() < encoded["train", 0]
                assert all(need.num_images <= encoded[need.split, need.view] for need in task.needs(cell, 1))
                assert len(task.needs(cell, 1)) == (2 if cell.augment == "none" else 12)


def test_the_dry_run_says_what_encoding_takes_and_keeps(tiny_stable_diffusion, tmp_path):
    flags = {"dataset": "digits", "block": "mid", "timestep": 10, "store": str(tmp_path), "num_labels": (20,)}
    said = estimate(set_up(Finetune(backbone=tiny_stable_diffusion, **flags)))
    [latents] = [line for line in said.splitlines() if line.startswith("latents")]
    assert re.search(
        r"images and views of images are encoded once, in \S+ \w+ on one cpu, and kept: \S+ MB in ", latents
    )
    assert not re.search(r"e\+\d", said)
