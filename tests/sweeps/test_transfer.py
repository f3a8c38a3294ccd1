"""Transfer as a user gives it, on random networks and small images; and a trained network against a random one."""

import csv
import json
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ddae import ridge
from ddae.backbones import load_backbone
from ddae.datasets import load_dataset
from ddae.features import FeatureKey, extract
from ddae.pooling import pool
from ddae.probe import paired_loss, to_maps
from ddae.transfer import Loss
from sweeps.transfer import Transfer
from sweeps.transferring.setup import estimate, searched, set_up
from tests.commands import PATIENCE_SECONDS

ARGS = ["--sigmas", "0.05", "0.3", "--poolings", "1", "--heads", "ridge", "--num-trials", "4", "--site-images", "100"]


@pytest.fixture(scope="module")
def place(fork, tiny_model, tmp_path_factory):
    """Where a sweep of four pairs has ended, and been given again."""
    place = tmp_path_factory.mktemp("transfer")
    rng = np.random.default_rng(0)
    for width, name in ((2, "pets/cat"), (4, "pets/dog"), (1, "farm/cow"), (8, "farm/hen")):
        (place / name).mkdir(parents=True)
        for i in range(60):
            pixels = rng.integers(0, 156, (16, 16)) + 60 * (np.arange(16) % (2 * width) < width)
            Image.fromarray(pixels.astype(np.uint8)).save(place / name / f"{i}.png")
    pairs = ["--backbones", tiny_model, f"random:{tiny_model}", "--datasets", "pets", "farm"]

    def run():
        process = fork("transfer", *pairs, *ARGS, cwd=place)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, err
        return out

    printed = run()
    assert run() == printed
    (place / "printed").write_text(printed)
    return place


@pytest.fixture(scope="module")
def found(place):
    [folder] = place.glob("out/transfer-*")
    return json.loads((folder / "results.json").read_text())


def test_every_pair_is_searched_under_one_parent(place, found):
    assert len({(pair["backbone"], pair["dataset"]) for pair in found["pairs"]}) == 4
    with sqlite3.connect(place / "mlflow.db") as database:
        [(parents,)] = database.execute("select count(distinct value) from tags where key = 'mlflow.parentRunId'")
        params = database.execute("select key, value from params join runs using (run_uuid) where name like '% on %'")
        values = {(key, value) for key, value in params if key in ("backbone", "dataset")}
    assert parents == 1 and {("dataset", "farm"), ("dataset", "pets")} < values


def test_losses_are_differences_on_the_columns_val(found):
    pairs = {(pair["backbone"], pair["dataset"]): pair for pair in found["pairs"]}
    assert len(found["regret"]) == 8
    for row in found["regret"]:
        there = pairs[row["backbone"], row["used_on"]]
        used = there["fitted"][row["cell"]]["val_accuracy"]
        assert row["points_lost"] == pytest.approx(100 * (there["val_accuracy"] - used))
        assert row["tied"] or row["chosen_on"] != row["used_on"]


def test_the_report_says_what_was_found(place, found):
    [folder] = place.glob("out/transfer-*")
    printed = (place / "printed").read_text()
    for said in (
        "points lost by the cell chosen on the row",
        "Spearman correlation of two datasets' sites",
        "one for all",
    ):
        assert said in printed
    num_val, num_sites = found["pairs"][0]["num_val"], found["pairs"][0]["site_images"]
    assert f"on its {num_val} val images, sites on its first {num_sites} training images" in printed
    pictures = {path.name for path in folder.glob("figures/*.png")}
    assert {"regret-0.png", "regret-1.png", "agreement.png", "cost-1.png", "sigma-1.png"} <= pictures
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == len(pictures) and "Pareto" in page
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert {row["dataset"] for row in rows} == {"farm", "pets"} and all(row["val_accuracy"] for row in rows)
    assert all(-1 <= row["low"] <= row["high"] <= 1 for row in found["agreement"])


def test_a_pair_of_it_is_a_sweep_of_layer_noise(found):
    assert found["commands"][0].startswith("python sweeps/layer_noise.py --backbone")


@pytest.mark.slow
def test_every_pair_is_in_the_atlas_and_a_sweep_begins_there(place, fork, tiny_model):
    assert len(list(place.glob("out/atlas/*.json"))) == 4
    assert "nothing is sent anywhere" in (place / "printed").read_text().splitlines()[-1]
    args = ["--backbone", tiny_model, "--dataset", "pets", "--timesteps", "0", "11", "88", "258", "600"]
    args += ["--poolings", "1", "--heads", "ridge", "--num-trials", "4", "--warm-start", "out/atlas"]
    out, err = (process := fork("layer_noise", *args, cwd=place)).communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err
    assert "at the sites that won in 1 other sweep of this network" in out  # not in that on pets itself
    [folder] = place.glob("out/layer-noise-*")
    results = json.loads((folder / "results.json").read_text())
    assert len(next(iter(results["timesteps_at"].values()))) == 2  # of five
    assert (folder / "warm_start.json").exists() and len(list(place.glob("out/atlas/*.json"))) == 5
    assert "nothing is sent anywhere" in out.splitlines()[-1]


def test_every_network_leaves_out_the_same_images():
    config = Transfer(backbones=("a", "b"))
    assert [searched(config, name, "x").check_data for name in "ab"] == [True, False]
    skipping = replace(config, skip_unreadable=True)
    assert [searched(skipping, name, "x").check_data for name in "ab"] == [True, True]


def test_networks_get_the_same_noise_and_costs_are_said(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Transfer(
        backbones=(tiny_model, "timm:test_resnet@random"), datasets=("digits",), sigmas=(0.05, 0.3), heads=("ridge",)
    )
    noisy, clean = set_up(config).pairs
    assert list(noisy.task.space.sigmas.values()) == pytest.approx([0.05, 0.3], rel=0.1)
    assert list(clean.task.space.sigmas.values()) == [0]
    said = estimate(replace(config, backbones=(tiny_model,)))
    assert " on digits\nspace " in said and "every site      " in said
    assert not (tmp_path / "out").exists()


def test_a_random_network_is_told_from_a_trained_one():
    dataset, num_images = load_dataset("fashion-mnist-8k", 32), 200
    rows = dataset.splits["train"][:num_images]
    labels = torch.from_numpy(dataset.labels("train")[:num_images])
    right = {}
    for name in ("ddpm-fashion-mnist", "random:ddpm-fashion-mnist"):
        backbone = load_backbone(name)
        key = FeatureKey(backbone.fingerprint, dataset.images.fingerprint, 0, 0.2, 0, 2)
        maps = to_maps(
            [extract(backbone, dataset, rows, 60, ["up.1.0"], key)["up.1.0"]], backbone.block("up.1.0").channels
        )
        right[name] = ridge.leave_one_out(pool(maps, 2), labels, dataset.num_classes)
    again = load_backbone("random:ddpm-fashion-mnist")
    assert again.fingerprint == backbone.fingerprint != load_backbone("ddpm-fashion-mnist").fingerprint
    weights = zip(again.network.parameters(), backbone.network.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in weights)
    trained, drawn = right.values()
    lost = Loss(*paired_loss(drawn, trained))
    assert lost.points > 5 and not lost.is_tied
    assert np.mean(drawn) > 0.3  # random features are no chance, which is why they are a control
