"""The command as a user gives it, on a random network and scikit-learn's digits."""

import csv

import numpy as np
import pytest
from PIL import Image

from ddae.backbones import load_backbone
from ddae.datasets import load_dataset
from ddae.features import FeatureKey, extract
from ddae.pooling import pool
from ddae.probe import to_maps
from ddae.similarity import cka
from tests.commands import PATIENCE_SECONDS

CLASSIFIER = "timm:test_resnet@random"


def run(fork, cwd, *args):
    process = fork("similarity", *args, "--dataset", "digits", cwd=cwd)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err
    return out


def table(cwd):
    newest = max(cwd.glob("out/similarity-*/similarity.csv"), key=lambda path: path.stat().st_mtime)
    with newest.open() as file:
        return newest, list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("similarity")


def test_a_network_with_itself(fork, tiny_model, folder):
    args = ["--backbone", tiny_model, "--timesteps", "0", "600", "--poolings", "1", "2", "--num-images", "300"]
    args += ["--blocks", "mid", "up.2.0", "down.2.0"]
    out = run(fork, folder, *args)
    assert [line.rsplit(maxsplit=1)[0] for line in out.splitlines()[:4]] == [
        "all pairs", "blocks at one timestep", "timesteps of one block", "poolings of one site",
    ]  # fmt: skip
    path, rows = table(folder)
    features = 3 * 2 * 2
    assert len(rows) == features**2
    values = np.array([float(row["cka"]) for row in rows]).reshape(features, features)
    assert np.array_equal(values, values.T) and np.all(values.diagonal() == 1) and np.all(values <= 1)
    sites = [(row["against_pooling"], row["against_timestep"], row["against_block"]) for row in rows[:features]]
    blocks = "down.2.0", "mid", "up.2.0"
    assert sites == [(p, t, block) for p in "12" for t in ("0", "600") for block in blocks]
    assert np.asarray(Image.open(path.with_suffix(".png")).convert("L")).std() > 10

    before = sorted(folder.rglob("*.arrow"))
    assert run(fork, folder, *args) == out
    assert sorted(folder.rglob("*.arrow")) == before


def test_with_a_classifier_on_the_same_images(fork, tiny_model, folder):
    args = ["--backbone", tiny_model, "--timesteps", "600", "--blocks", "mid", "--num-images", "40", "--poolings", "1"]
    out = run(fork, folder, *args, "--against", CLASSIFIER, "--against-blocks", "layer2.0", "layer1.0")
    assert "and test_resnet@random: mean" in out.replace("timm:", "")
    _, rows = table(folder)
    assert [(row["block"], row["against_block"], row["against_timestep"]) for row in rows] == [
        ("mid", "layer1.0", "0"), ("mid", "layer2.0", "0"),
    ]  # fmt: skip
    features = []
    for name, timestep, blocks in ((tiny_model, 600, ["mid"]), (CLASSIFIER, 0, ["layer1.0", "layer2.0"])):
        backbone = load_backbone(name)
        dataset = load_dataset("digits", backbone.image_size)
        key = FeatureKey("", "", split_seed=0, val_fraction=0.2, noise_seed=0, draw=0, pooling=4)
        found = extract(backbone, dataset, dataset.splits["train"][:40], timestep, blocks, key)
        channels = {block.name: block.channels for block in backbone.blocks}
        features += [pool(to_maps([found[block]], channels[block]), 1).flatten(1) for block in blocks]
    expected = cka([features])[0, 1:].tolist()
    assert [float(row["cka"]) for row in rows] == pytest.approx(expected, abs=1e-3)
