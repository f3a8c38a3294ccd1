"""Names from the file system, a hub or a file stay names: no folder is left, and nothing is run."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddae.datasets import load_dataset
from storage.tracking import Tracker
from sweeps.layer_noise import LayerNoise
from sweeps.probing.plan import set_up_search
from sweeps.probing.source import Need

ODD = [
    "a'b",
    'a"; DROP TABLE runs; --',
    "日本",
    "🐈",
    "new\nline",
    "-rf",
    "%s {} $HOME `x`",
    " ",
    "x" * 255,
    "a\\b",
    "...",
]


def make_images(folder, classes=("cat", "dog")):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("name", ODD)
def test_a_datasets_folder_is_one_folder_in_the_store(monkeypatch, tmp_path, tiny_model, name):
    make_images(tmp_path / "given" / name)
    monkeypatch.chdir(tmp_path / "given")
    source = set_up_search(LayerNoise(tiny_model, f"./{name}", timesteps=(5,))).task.source
    column = Path(source.store, source.column(Need(5, "train", 1, ("mid",)), "mid"))
    assert column.resolve().relative_to(source.store).parts[0] == source.name == name
    column.mkdir(parents=True)


@pytest.mark.parametrize("dataset", ["..", "../pets", ".", "../pets/../pets", "link"])
def test_no_path_leads_out_of_the_store(monkeypatch, tmp_path, tiny_model, dataset):
    make_images(tmp_path / "pets")
    (tmp_path / "pets" / "_in").mkdir()
    monkeypatch.chdir(tmp_path / "pets" / "_in" if dataset == ".." else tmp_path / "pets")
    if dataset == "link":
        monkeypatch.chdir(tmp_path)
        os.symlink("pets", "link")
    source = set_up_search(LayerNoise(tiny_model, dataset, timesteps=(5,))).task.source
    assert source.name == "pets"
    assert Path(source.store, source.folder()).resolve().is_relative_to(source.store)


def test_odd_class_folders(tmp_path):
    names = [name for name in ODD if name[0] != "."]
    dataset = load_dataset(str(make_images(tmp_path, names)), 8)
    assert sorted(dataset.images.classes) == sorted(names)
    assert dataset.images.read(dataset.splits["val"]).shape == (len(names), 3, 8, 8)


def test_odd_names_are_experiments(tmp_path):
    for name in [*ODD, "sqlite:", "x" * 500, "../../etc"]:
        tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", name, "sweep", "sweep")
        assert tracker.client.get_experiment(tracker.experiment_id).name == name
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", ".mlflow.db.lock"}


def test_a_name_that_mlflow_refuses_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"cannot log to MLflow at sqlite:.*name.*500") as refusal:
        Tracker(f"sqlite:///{tmp_path}/mlflow.db", "x" * 501, "sweep", "sweep")
    assert "\n" not in str(refusal.value)
