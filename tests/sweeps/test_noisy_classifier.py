"""The noise-conditional classifier as a user gives it, on a random network and scikit-learn's digits."""

import csv
import json
import math
import signal

import numpy as np
import pytest
import torch

from ddae.datasets import load_dataset
from ddae.noise import image_noise
from ddae.noisy_classifier import NoisyClassifier
from tests.commands import PATIENCE_SECONDS, wait_for

SMALL = ["--timesteps", "0", "100", "--blocks", "mid", "up.1.0", "--poolings", "1", "2", "--heads", "linear"]
LEVELS = ["--num-levels", "5", "--num-between", "2", "--num-images", "200", "--num-val", "100"]
FEW = [*LEVELS, "--widths", "1", "--num-trials", "6", "--baseline", "wide-resnet", "--baseline-epochs", "2"]


def run(fork, command, *args, cwd):
    out, err = (process := fork(command, *args, cwd=cwd)).communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err
    return out


def refused(fork, *args, cwd) -> str:
    _, err = (process := fork("noisy_classifier", *args, cwd=cwd)).communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2 and "Traceback" not in err, err
    return err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def place(fork, tiny_model, tmp_path_factory):
    """Where a sweep has ended, and a classifier has been trained at its block."""
    place = tmp_path_factory.mktemp("noisy")
    run(fork, "layer_noise", "--backbone", tiny_model, "--dataset", "digits", *SMALL, cwd=place)
    cost = run(fork, "noisy_classifier", *FEW, "--dry-run", cwd=place)
    assert "10 passes of a training image (5 levels x 2 draws), 7 of a val image" in cost
    assert not list(place.glob("out/noisy-classifier-*"))
    run(fork, "noisy_classifier", *FEW, cwd=place)
    return place


@pytest.fixture(scope="module")
def folder(place):
    [folder] = place.glob("out/noisy-classifier-*")
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return json.loads((folder / "results.json").read_text())


def test_the_recipe_of_the_paper_is_tried_and_named(folder, found):
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    official = found["official"]
    assert official == {**official, "pooling": 1, "width": 2, "embedding": "tau", "noise": "uniform-t"}
    assert official["standardise"] == "none"
    its = [row for row in rows if all(row[name] == str(value) for name, value in official.items() if name != "block")]
    assert its and found["recipes"]["DDAE's recipe"]["cell"] == official
    assert "DDAE's recipe" in (folder / "report.txt").read_text()


def test_every_level_has_an_accuracy_of_everyone_and_its_standard_error(found):
    by_name = {}
    for row in found["levels"]:
        by_name.setdefault(row["who"], []).append(row)
        assert row["stderr"] == pytest.approx(math.sqrt(row["accuracy"] * (1 - row["accuracy"]) / 100))
    assert {"shared head", "a head at each level", "wide-resnet", "DDAE's recipe, 1 x 1"} <= by_name.keys()
    for rows in by_name.values():
        assert [row["between"] for row in rows] == [False] * 5 + [True] * 2
        sigmas = [row["sigma"] for row in rows[:5]]
        assert sigmas == sorted(sigmas) and rows[0]["timestep"] == 0 and rows[4]["timestep"] == 999
    shared = [row["accuracy"] for row in by_name["shared head"]]
    assert found["answer"]["val_accuracy"] == pytest.approx(np.mean(shared[:5]))
    assert found["answer"]["val_accuracy_between"] == pytest.approx(np.mean(shared[5:]))
    assert shared[0] > 0.5 and shared[4] < 0.4  # at t = 999 little is left of an image


def test_a_page_a_table_and_pictures_are_made(folder):
    page = (folder / "report.html").read_text()
    assert "How well does it classify at each noise level?" in page and "little noise" in page
    assert {path.name for path in (folder / "figures").iterdir()} == {"levels.png", "recipe.png"}
    assert not (folder / "not_logged.txt").exists() and not (folder / "not_drawn.txt").exists()


def test_the_folder_is_a_classifier_that_classifies_as_was_measured(folder, found):
    classifier = NoisyClassifier.load(folder)
    backbone, digits = classifier.open(), load_dataset("digits", 16)
    assert classifier.class_names == tuple(map(str, digits.images.classes)) and classifier.dataset == "digits"
    assert (classifier.block, classifier.pooling) == (
        found["answer"]["cell"]["block"],
        found["answer"]["cell"]["pooling"],
    )
    rows, labels = digits.splits["val"][:100], digits.labels("val")[:100]
    x0 = backbone.encode(digits.images.read(rows))
    shared = [row for row in found["levels"] if row["who"] == "shared head"]
    low, high = classifier.log_sigma_range
    assert (low, high) == pytest.approx((math.log(shared[0]["sigma"]), math.log(shared[4]["sigma"])), abs=1e-4)
    for row in shared:
        noise = image_noise(rows, backbone.encoder.shape, row["timestep"], 0)
        with torch.inference_mode():
            maps = backbone.activations(x0, noise, row["timestep"], [classifier.block])
            logits = classifier.logits(maps[classifier.block], torch.full((100,), math.log(row["sigma"])))
        accuracy = (logits.argmax(1).numpy() == labels).mean()
        assert accuracy == pytest.approx(row["accuracy"], abs=0.021)  # features were kept in half precision


def test_the_same_command_says_the_same(fork, folder, place):
    assert run(fork, "noisy_classifier", *FEW, cwd=place).strip() == (folder / "report.txt").read_text().strip()


@pytest.mark.slow
def test_a_killed_run_goes_on_and_finds_the_same(fork, place, found, tmp_path):
    [sweep] = place.glob("out/layer-noise-*")
    args = ["--sweep", str(sweep), "--store", "store", *FEW]
    process = fork("noisy_classifier", *args, cwd=tmp_path)
    ledger = tmp_path / "store" / "ledger"
    assert wait_for(lambda: len(list(ledger.rglob("*.json"))) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("out/noisy-classifier-*/results.json"))
    run(fork, "noisy_classifier", *args, cwd=tmp_path)
    [results] = tmp_path.glob("out/noisy-classifier-*/results.json")
    again = json.loads(results.read_text())
    for name in ("answer", "tied", "recipes", "baselines", "levels"):
        assert again[name] == found[name], name
    [there] = place.glob("out/noisy-classifier-*")
    heads = [NoisyClassifier.load(each).head.state_dict() for each in (results.parent, there)]
    for name, tensor in heads[0].items():
        torch.testing.assert_close(tensor, heads[1][name], rtol=1e-3, atol=1e-3)
    (results.parent / "noisy_head.safetensors").unlink()
    run(fork, "noisy_classifier", *args, cwd=tmp_path)
    assert NoisyClassifier.load(results.parent).dataset == "digits"


@pytest.mark.slow
def test_a_block_may_be_named_instead_of_a_sweep(fork, tiny_model, tmp_path):
    flags = [
        "--backbone",
        tiny_model,
        "--dataset",
        "digits",
        "--blocks",
        "mid",
        "--num-draws",
        "1",
        "--num-trials",
        "1",
    ]
    run(fork, "noisy_classifier", *LEVELS, *flags, "--poolings", "2", "--num-between", "0", cwd=tmp_path)
    [folder] = tmp_path.glob("out/noisy-classifier-*")
    assert NoisyClassifier.load(folder).block == "mid" and NoisyClassifier.load(folder).pooling == 2
    assert "between" not in (folder / "report.txt").read_text()


def test_what_cannot_be_trained_is_one_line(fork, tiny_model, place, folder, tmp_path):
    mine = ["--backbone", tiny_model, "--dataset", "digits", "--blocks", "mid"]
    assert "num_levels=1000 is too many: the network has 1000 noise" in refused(
        fork, *mine, "--num-levels", "1000", cwd=tmp_path
    )
    assert "num_levels=1 must be 2 or more" in refused(fork, *mine, "--num-levels", "1", cwd=tmp_path)
    assert "num_images=10 must be 50 or more" in refused(fork, *mine, "--num-images", "10", cwd=tmp_path)
    assert "timesteps=[10]: the levels are those of --num-levels" in refused(
        fork, *mine, "--timesteps", "10", cwd=tmp_path
    )
    assert "baseline='resnet' is not known" in refused(fork, *mine, "--baseline", "resnet", cwd=tmp_path)
    assert "pooling=3 does not follow" in refused(fork, *mine, "--poolings", "3", cwd=tmp_path)
    assert "pooling=8 is larger than every" in refused(fork, *mine, "--poolings", "8", cwd=tmp_path)
    assert "widths=[0] must be" in refused(fork, *mine, "--widths", "0", cwd=tmp_path)
    wide = ["--memory", "1MB", "--widths", "400"]
    assert "may have 1 MB: give smaller --poolings" in refused(fork, *mine, *wide, cwd=tmp_path)
    assert "block='middle' is not known" in refused(fork, *mine[:-1], "middle", cwd=tmp_path)
    clean = ["--backbone", "wrn:10-1", "--dataset", "digits", "--blocks", "last"]
    assert "was trained without noise, and has no noise levels" in refused(fork, *clean, cwd=tmp_path)
    assert "no finished sweep" in refused(fork, cwd=tmp_path)
    (tmp_path / "unfinished").mkdir()
    assert "holds no finished sweep" in refused(fork, "--sweep", "unfinished", cwd=tmp_path)
    assert "is a sweep of noisy-classifier; give one of layer_noise.py" in refused(
        fork, "--sweep", str(folder), cwd=place
    )
    assert "dataset='fashion-mnist' is not that of --sweep" in refused(fork, "--dataset", "fashion-mnist", cwd=place)


def test_final_test_takes_the_sweep_before_it_and_refuses_this_one(fork, folder, place):
    assert "up.1.0" in (said := run(fork, "final_test", cwd=place)) or "mid" in said
    assert not (folder / "final_test.json").exists()
    _, err = (process := fork("final_test", "--sweep", str(folder), cwd=place)).communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2 and "which ends in no classifier" in err


def test_latents_are_read_by_the_head_and_seen_by_the_baseline(tiny_stable_diffusion, tmp_path):
    from storage.checkpoints import StoredCheckpoint
    from sweeps.noisy.setup import set_up
    from sweeps.noisy_classifier import NoiseConditional
    from sweeps.probing.extractor import Extractor

    names = {"backbone": tiny_stable_diffusion, "dataset": "digits", "blocks": ("mid",), "store": str(tmp_path)}
    few = {"num_levels": 3, "num_between": 0, "num_images": 50, "num_val": 50, "num_draws": 1}
    setup = set_up(NoiseConditional(**names, **few, poolings=(1,), baseline=("wide-resnet",), baseline_epochs=2))
    extractor = Extractor(setup.task.source)
    for need in setup.task.needs(setup.task.cells[0], 50):
        extractor.ensure(need)
    for task in (setup.task, *setup.baselines("uniform-t")):
        cell, rung = task.cells[0], task.rungs[-1]
        checkpoint = StoredCheckpoint(tmp_path, task.key(cell, rung))
        [result] = task.run([cell], rung, [checkpoint])
        assert setup.task.correct_at(result).shape == (3, 50) and 0 <= result.metrics["val_accuracy"] <= 1
        [again] = task.run([cell], rung, [checkpoint])
        assert again.right == result.right
