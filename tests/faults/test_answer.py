"""The answer survives what comes after it: logging and pictures that fail, another working folder, a folder that has
moved."""

import logging
import shutil
import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from storage.tracking import Tracker
from sweeps import cli
from tests.commands import PATIENCE_SECONDS
from tests.faults.sweeps import finish
from tests.servers import free_port, mlflow_server

NOWHERE = "/proc/mlflow"
"""Where not even root may write."""


def incomplete(process) -> tuple[str, str]:
    """What a command printed, and its error, where something could not be logged or drawn."""
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 3 and "Traceback" not in err, err
    return out, err.splitlines()[-1]


def runs(uri: str) -> list[tuple[str, str]]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("digits")
    return sorted((run.info.run_name, run.info.status) for run in client.search_runs([experiment.experiment_id]))


@pytest.mark.slow
def test_what_cannot_be_logged_is_logged_by_the_same_command_or_elsewhere(begin, fork, tmp_path):
    database = tmp_path / "tracked.db"
    uri = f"sqlite:///{database}"
    MlflowClient(uri).create_experiment("digits", artifact_location=NOWHERE)
    env = {"cwd": tmp_path, "MLFLOW_TRACKING_URI": uri}

    out, error = incomplete(begin(**env))
    [folder] = tmp_path.glob("out/layer-noise-*")
    assert "answer  " in out and (folder / "results.json").exists() and (folder / "report.html").exists()
    assert error.startswith("error: the answer stands, but") and NOWHERE in error and "the same command logs" in error
    assert incomplete(begin(**env)) == (out, error)

    tested, error = incomplete(fork("final_test", **env))
    assert "test accuracy" in tested and NOWHERE in error
    assert incomplete(fork("final_test", **env))[0] == tested  # not measured again: the date is the same
    handed, error = incomplete(fork("hand_over", **env))
    assert "ddae.load" in handed and NOWHERE in error and (folder / "model" / "winner.json").exists()

    with sqlite3.connect(database) as connection:
        for table, column in ("runs", "artifact_uri"), ("experiments", "artifact_location"):
            connection.execute(f"update {table} set {column} = replace({column}, '{NOWHERE}', '{tmp_path}/files')")
    assert finish(begin(**env)) == out
    names = {name for name, _ in runs(uri)}
    assert len(names) == len(runs(uri)) == 5 and {status for _, status in runs(uri)} == {"FINISHED"}
    client = MlflowClient(uri)
    [parent] = [run for run in client.search_runs(["1"]) if run.info.run_name == folder.name]
    assert "test_accuracy" in parent.data.metrics
    assert {"report.html", "trials.csv"} <= {file.path for file in client.list_artifacts(parent.info.run_id)}

    with mlflow_server(tmp_path / "files", port := free_port()):
        there = f"http://127.0.0.1:{port}"
        for _ in range(2):
            assert there in finish(fork("layer_noise", "--sync", cwd=tmp_path, MLFLOW_TRACKING_URI=there))
        assert runs(there) == runs(uri)

        secret = there.replace("//", "//me:hush-hush@")
        process = begin("--data-seed", "1", cwd=tmp_path, MLFLOW_TRACKING_URI=secret)
        printed = "".join(process.communicate(timeout=PATIENCE_SECONDS))
        assert process.returncode == 0 and there in printed and "hush" not in printed, printed
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert b"hush-hush" not in path.read_bytes(), path


@pytest.mark.slow
def test_a_picture_that_cannot_be_drawn_takes_no_answer(begin, fork, tmp_path):
    out = finish(begin(cwd=tmp_path))
    [folder] = tmp_path.glob("out/layer-noise-*")
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "figures")
    (folder / "figures").write_text("not a folder")
    printed, error = incomplete(begin(cwd=tmp_path))
    assert (
        "answer  " in printed
        and (folder / "results.json").exists()
        and "figures/cost.png" in error
        and "the same command tries again" in error
    )
    assert printed.splitlines()[:6] == out.splitlines()[:6]
    assert "test accuracy" in finish(fork("final_test", cwd=tmp_path))  # which draws none of them
    (folder / "figures").unlink()
    finish(begin(cwd=tmp_path))
    assert (folder / "figures" / "cost.png").exists()


def test_no_traceback_shows_a_password(monkeypatch, capsys):
    @dataclass(frozen=True)
    class Flags:
        pass

    def main(config):
        logging.getLogger("a.library").warning("retrying %s", "http://me:hush@host")
        raise RuntimeError("http://me:hush@host failed, as hush did not open it")

    monkeypatch.setattr(sys, "argv", ["command"])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush")
    with pytest.raises(SystemExit) as exit:
        cli.run(main, Flags, "")
    out, err = capsys.readouterr()
    assert exit.value.code == 1 and "Traceback" in err and "http://host" in err and "hush" not in out + err


LOOK = ["--dataset", "digits", "--timesteps", "100", "--blocks", "mid", "up.0.0", "--num-images", "64"]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "picture"), [("similarity", "similarity.png"), ("label_free", "label_free.png")])
def test_a_picture_takes_no_numbers_from_those_who_look(command, picture, fork, tiny_model, tmp_path):
    out = finish(fork(command, "--backbone", tiny_model, *LOOK, cwd=tmp_path))
    [path] = tmp_path.glob(f"out/*/{picture}")
    path.unlink()
    path.mkdir()
    printed, error = incomplete(fork(command, "--backbone", tiny_model, *LOOK, cwd=tmp_path))
    assert printed == out and f"{picture} could not be made" in error and "the same command tries again" in error


@pytest.mark.slow
def test_a_picture_takes_no_model_from_a_training(fork, tmp_path):
    (tmp_path / "model" / "samples.png").mkdir(parents=True)
    args = ["--dataset", "digits", "--channels", "8", "16", "--batch-size", "8", "--steps", "3", "--out", "model"]
    printed, error = incomplete(fork("pretrain", *args, cwd=tmp_path))
    assert "loss" in printed and "samples.png could not be made" in error
    assert (tmp_path / "model" / "model" / "README.md").exists() and (tmp_path / "model" / "loss.png").exists()
    assert (tmp_path / "model" / "checkpoint.pt").exists()
    assert not Path("model", "checkpoint.pt").exists()  # here Ray was started, and its actors begin relative paths
    (tmp_path / "model" / "samples.png").rmdir()
    assert finish(fork("pretrain", *args, cwd=tmp_path)).splitlines()[-2:] == printed.splitlines()[-2:]


@pytest.fixture
def images(tmp_path) -> Path:
    generator = np.random.default_rng(0)
    for label in range(3):
        (folder := tmp_path / "there" / "pets" / f"class-{label}").mkdir(parents=True)
        for number in range(60):
            pixels = generator.integers(0, 90, (16, 16)) + 60 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "there"


def as_an_earlier_version(folder: Path) -> None:
    """Paths as they were given, and no record of what MLflow has."""
    text = (folder / "config.yaml").read_text()
    start = f"{folder.parents[1]}/"
    assert start in text
    (folder / "config.yaml").write_text(text.replace(start, ""))
    (folder / "tracked.json").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [False, True])
def test_a_sweep_is_used_from_any_working_folder(begin, fork, images, tmp_path, earlier):
    finish(begin("--dataset", "./pets", cwd=images))
    [folder] = images.glob("out/layer-noise-*")
    if earlier:
        as_an_earlier_version(folder)
    shards = {path: path.stat().st_mtime_ns for path in images.rglob("*.arrow")}
    (elsewhere := tmp_path / "else where").mkdir()
    assert "test accuracy" in finish(fork("final_test", "--sweep", f"../there/out/{folder.name}", cwd=elsewhere))
    assert "ddae.load" in finish(fork("hand_over", "--sweep", ".", cwd=folder))
    assert not any(elsewhere.iterdir()) and not (folder / "mlflow.db").exists()
    assert {path for path in images.rglob("*.arrow") if "split=test" not in str(path)} == set(shards)
    tracker = Tracker(f"sqlite:///{images}/mlflow.db", "pets", folder.name, folder.name)
    assert "test_accuracy" in tracker.client.get_run(tracker.parent_id).data.metrics


@pytest.mark.slow
def test_a_sweep_that_has_moved_with_its_store_is_used_where_it_is(begin, fork, images, tmp_path):
    finish(begin("--dataset", "./pets", cwd=images))
    (images / "out").rename(tmp_path / "moved")
    [folder] = tmp_path.glob("moved/layer-noise-*")
    renamed = folder.with_name("the-best")
    folder.rename(renamed)
    process = fork("final_test", "--sweep", str(renamed), cwd=tmp_path)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0 and "test accuracy" in out, err
    assert "has moved to" in err and not (images / "out").exists()
