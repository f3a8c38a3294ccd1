"""A finished command prints its report again at once, and never where anything that it stands on has changed."""

import os
import sys
import time
from dataclasses import replace

import pytest

from sweeps import layer_noise
from sweeps.findings import again
from sweeps.layer_noise import LayerNoise
from tests.test_architecture import loaded

LONG_AGO = 10**18
"""Nanoseconds since the epoch."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A finished sweep of a model and images, and the command that has made it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(again, "CODE", (tmp_path / "code",))
    for name in (
        "code/head.py",
        "model/unet/weights",
        "images/cat/1.png",
        "images/dog/2.png",
        "store/ledger/ab/c.json",
    ):
        (path := tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    folder = tmp_path / "out" / "layer-noise-12345678"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text("{}")
    (folder / "report.txt").write_text("the answer")
    return tmp_path


CONFIG = LayerNoise(backbone="model", dataset="images", store="store")


def remember(place, printed="the answer", inputs=("model", "images"), seconds=60.0):
    folder, files = place / "out" / "layer-noise-12345678", [place / name for name in inputs]
    again.remember(
        again.key_of(CONFIG), folder, printed, time.time() + seconds, files, [str(place / "store" / "ledger")]
    )


def report(config=CONFIG):
    return again.report(again.key_of(config), config.out, "layer-noise")


def test_the_same_command_prints_the_same_and_loads_nothing(place, monkeypatch, capsys):
    assert report() is None
    remember(place)
    monkeypatch.setitem(sys.modules, "sweeps.probing.sweep", None)  # which would be an ImportError
    layer_noise.main(CONFIG)
    assert capsys.readouterr().out == "the answer\n"


def test_nothing_heavy_is_loaded_before():
    assert {"torch", "numpy", "ray", "mlflow", "matplotlib"} & loaded("import sweeps.layer_noise") == set()


def change(path, text):
    """Other bytes of the same size, under the old time of change."""
    before = path.stat()
    path.write_text(text * (before.st_size // len(text)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
    "code": lambda at: (at / "code" / "head.py").write_text("version = 2"),
    "a file of the model": lambda at: (at / "model" / "unet" / "weights").write_text("others"),
    "a file of the model, of the same size and time": lambda at: change(at / "model" / "unet" / "weights", "x"),
    "the time of an image": lambda at: os.utime(at / "images" / "cat" / "1.png", ns=(LONG_AGO, LONG_AGO)),
    "another image": lambda at: (at / "images" / "cat" / "3.png").write_text("new"),
    "an image less": lambda at: (at / "images" / "dog" / "2.png").unlink(),
    "another class": lambda at: (at / "images" / "bird").mkdir(),
    "no model": lambda at: (at / "model").rename(at / "gone"),
    "no ledger": lambda at: (at / "store" / "ledger").rename(at / "gone"),
    "no store": lambda at: (at / "store").rename(at / "gone"),
    "no results": lambda at: (at / "out" / "layer-noise-12345678" / "results.json").unlink(),
    "other results": lambda at: (at / "out" / "layer-noise-12345678" / "results.json").write_text('{"of": "others"}'),
    "something was not logged": lambda at: (at / "out" / "layer-noise-12345678" / "not_logged.txt").write_text("why"),
    "another name of the folder": lambda at: (at / "out" / "layer-noise-12345678").rename(at / "out" / "layer-noise-0"),
    "a record cut short": lambda at: [os.truncate(path, 9) for path in at.glob("out/*/again-*.json")],
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_has_changed_is_found_out(what, place):
    remember(place)
    assert report() == "the answer"
    CHANGES[what](place)
    assert report() is None


@pytest.mark.parametrize(
    "flags", [{"seed": 1}, {"num_trials": 41}, {"prefer": "cheapest"}, {"dry_run": True}, {"fuse": True}]
)
def test_other_flags_are_another_command(flags, place):
    remember(place)
    assert report(replace(CONFIG, **flags)) is None


@pytest.mark.parametrize("name", ["RAY_ADDRESS", "MLFLOW_TRACKING_URI", "CUDA_VISIBLE_DEVICES"])
def test_another_environment_is_another_command(name, place, monkeypatch):
    remember(place)
    monkeypatch.setenv(name, "other")
    assert report() is None


def test_another_working_folder_is_another_command(place, monkeypatch):
    remember(place)
    monkeypatch.chdir(place / "store")
    assert again.report(again.key_of(CONFIG), place / "out", "layer-noise") is None


def test_another_version_of_a_package_is_another_command(place, monkeypatch):
    remember(place)
    (place / "site" / "torch-99.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(place / "site")
    assert report() is None


def test_what_may_have_changed_under_the_command_is_not_remembered(place):
    remember(place, seconds=1)
    assert report() is None


def test_a_file_that_goes_under_the_command_counts_as_a_change(place):
    """Its folder alone shows it."""
    (dog := place / "images" / "dog" / "2.png").unlink()
    assert again.states([str(dog.parent)])[1] == dog.parent.stat().st_ctime_ns
    (dog.parent / "__pycache__").mkdir()
    assert again.states([str(dog.parent)])[1] == 0


def test_another_clone_of_the_code_is_another_command(place, monkeypatch):
    remember(place)
    monkeypatch.setattr(again, "CODE", (place / "clone",))
    assert report() is None


def test_another_report_in_the_folder_is_not_remembered(place):
    remember(place, printed="another answer")
    assert report() is None


def test_a_file_that_comes_into_being_later_counts(place):
    remember(place, inputs=["model", "model.json"])
    assert report() == "the answer"
    (place / "model.json").write_text("{}")
    assert report() is None
