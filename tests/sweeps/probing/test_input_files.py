"""What a probing sweep is read from, as far as it can be told."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ddae.datasets import ASSETS
from sweeps.layer_noise import LayerNoise
from sweeps.probing.source import input_files

PIXELS, LATENTS = (SimpleNamespace(encoder=SimpleNamespace(fingerprint=of)) for of in ("", "a VAE"))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pipeline/unet", "pipeline/vae", "alone", "images"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    (tmp_path / "net.pt").write_text("")
    return tmp_path


def test_of_what_ships_the_asset_folders():
    shipped = [ASSETS / "ddpm-fashion-mnist", ASSETS / "fashion-mnist-8k"]
    assert input_files(LayerNoise(), PIXELS) == shipped


@pytest.mark.parametrize(
    ("model", "files"),
    [
        ("pipeline", ["pipeline"]),
        ("pipeline/unet", ["pipeline"]),
        ("alone", ["alone", "scheduler", "model_index.json"]),
        ("net.pt", ["net.pt", "net.json", "net.yaml", "net.yml"]),
    ],
)
def test_of_a_model_its_folder_and_what_lies_beside(model, files, place):
    found = input_files(LayerNoise(backbone=model, dataset="images"), PIXELS)
    assert found == [place / name for name in [*files, "images"]]


def test_of_named_sets_where_they_may_lie(place):
    config = LayerNoise(data_root="data")
    *_, first, second = input_files(replace(config, dataset="fashion-mnist"), PIXELS)
    assert first == place / "data" / "FashionMNIST" / "raw" and second.parts[1] == "usr"
    assert input_files(replace(config, dataset="cub"), PIXELS)[-1] == place / "data"
    assert input_files(replace(config, dataset="digits", weights="net.pt"), PIXELS)[1:] == [Path("net.pt").absolute()]


@pytest.mark.parametrize(
    "flags",
    [
        {"backbone": "google/ddpm-cifar10-32"},
        {"backbone": "timm:resnet18"},
        {"dataset": "owner/name"},
        {"store": "s3://bucket"},
    ],
)
def test_what_lies_elsewhere_cannot_be_told(flags):
    assert input_files(LayerNoise(**flags), PIXELS) is None


def test_a_vae_is_known_in_the_pipelines_folder_alone():
    config = LayerNoise(dataset="images")
    assert input_files(replace(config, backbone="pipeline"), LATENTS) is not None
    assert input_files(replace(config, backbone="net.pt"), LATENTS) is None
