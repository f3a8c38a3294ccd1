"""The commands as a user gives them: real Ray, real Optuna, real MLflow, a random network and scikit-learn's digits."""

import csv
import json

import numpy as np
import optuna
import pytest
from filelock import FileLock
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState
from PIL import Image

from ddae.label_free import LABELLED, SCORES
from ddae.report.page import PLUS_MINUS
from storage.tracking import Tracker
from tests.commands import PATIENCE_SECONDS, start

SMALL = ["--dataset", "digits", "--timesteps", "0", "100", "600", "--poolings", "1", "2"]
NUM_TRIALS = 8
AXES = "block", "timestep", "pooling", "head"


def run(command, *args, cwd, start=start):
    out, err = (process := start(command, *args, cwd=cwd)).communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err
    return out


def search_args(model, *more):
    return ["--backbone", model, *SMALL, "--num-trials", str(NUM_TRIALS), *more]


def runs(cwd):
    """(parents, children) in MLflow."""
    tracker = Tracker(f"sqlite:///{cwd}/mlflow.db", "digits", "unused", "unused")
    tracker.client.delete_run(tracker.parent_id)
    every = tracker.client.search_runs([tracker.experiment_id], max_results=1000)
    return [r for r in every if "mlflow.parentRunId" not in r.data.tags], [
        r for r in every if "mlflow.parentRunId" in r.data.tags
    ]


def files(cwd):
    paths = [path for path in (cwd / "out").rglob("*") if path.suffix in (".arrow", ".json")]
    return {path: path.stat().st_mtime_ns for path in paths if not path.name.startswith("again-")}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def report(tiny_model, place):
    return run("layer_noise", *search_args(tiny_model), cwd=place)


@pytest.fixture(scope="module")
def folder(report, place):
    [results] = place.glob("out/layer-noise-*/results.json")
    return results.parent


def test_the_report_answers(report):
    for words in (
        "statistically tied with the best",
        "answer",
        "raw pixels",
        "without labels",
        "of the grid",
        "screening left",
        "no process was at work",
    ):
        assert words in report
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in report
    assert "python sweeps/final_test.py --sweep out/layer-noise-" in report


def test_results_agree_with_the_trials(folder):
    results = json.loads((folder / "results.json").read_text())
    with (folder / "trials.csv").open() as file:
        trials = list(csv.DictReader(file))
    assert len(trials) == NUM_TRIALS
    full = [trial for trial in trials if trial["stopped_early"] == "False"]
    assert len({trial["num_images"] for trial in full}) == 1
    best = max(float(trial["val_accuracy"]) for trial in full)
    assert best == pytest.approx(max(tied["val_accuracy"] for tied in results["tied"]), abs=1e-4)
    cost = results["cost"]
    assert 0 < cost["passes"] < cost["grid_passes"]
    assert cost["new_passes"] == pytest.approx(cost["passes"])  # the store was empty
    first, second = map(len, results["timesteps_at"].values())
    assert first == 3 and 1 <= second <= 2
    assert {(trial["block"], int(trial["timestep"])) for trial in trials} <= set(map(tuple, results["left"]))
    assert np.shape(results["ridge_accuracy"]) == (len(results["blocks"]), 3)


def test_figures_are_pictures(folder):
    for name in ("block_timestep.png", "label_free.png", "samples.png", "neighbours.png", "confusion.png"):
        pixels = np.asarray(Image.open(folder / "figures" / name).convert("L"))
        assert pixels.std() > 10


def test_the_page_says_what_the_report_says(folder):
    html = (folder / "report.html").read_text()
    winner = json.loads((folder / "results.json").read_text())["answer"]
    assert f"{100 * winner['val_accuracy']:.1f}{PLUS_MINUS}{100 * winner['val_stderr']:.1f}" in html
    assert f"block {winner['cell']['block']} at timestep {winner['cell']['timestep']} " in html
    assert html.count("<section") == 11 and html.count("<svg") == 10
    assert "--poolings 1 2 --num-trials 8" in html
    assert "The test images have not been looked at" in html


@pytest.mark.usefixtures("report")
def test_mlflow_has_a_parent_and_a_child_a_trial(place):
    [parent], children = runs(place)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["keep"] == "0.5" and "prefer" not in parent.data.params
    assert len(children) == NUM_TRIALS
    assert {child.info.status for child in children} <= {"FINISHED", "KILLED"}
    child = children[0]
    assert {"block", "timestep", "sigma", "pooling", "head", "setting"} <= set(child.data.params)
    assert 0 < child.data.metrics["val_accuracy"] <= 1
    assert child.info.run_name == "/".join(child.data.params[axis] for axis in AXES)


def test_optuna_reads_what_was_tried(folder):
    storage = JournalStorage(JournalFileBackend(str(folder / "optuna.log")))
    study = optuna.load_study(study_name=folder.name, storage=storage)
    with (folder / "trials.csv").open() as file:
        rows = {tuple(row[axis] for axis in AXES): row for row in csv.DictReader(file)}
    told = {tuple(str(trial.params[axis]) for axis in AXES): trial for trial in study.trials}
    assert told.keys() == rows.keys()
    for cell, trial in told.items():
        assert trial.state == (TrialState.PRUNED if rows[cell]["stopped_early"] == "True" else TrialState.COMPLETE)
        assert trial.value == pytest.approx(float(rows[cell]["val_accuracy"]), abs=1e-4)
        assert [*trial.intermediate_values.items()][-1] == (int(rows[cell]["num_images"]), trial.value)
        assert trial.duration.total_seconds() > 0
    tried = {block for block, *_ in told}
    blocks = [block for block in json.loads((folder / "results.json").read_text())["blocks"] if block in tried]
    assert list(study.trials[0].distributions["block"].choices) == blocks


def test_the_same_command_computes_and_logs_nothing_twice(report, tiny_model, place):
    before = files(place), len(runs(place)[1])
    assert run("layer_noise", *search_args(tiny_model), cwd=place) == report
    assert (files(place), len(runs(place)[1])) == before
    [known] = place.glob("out/layer-noise-*/again-*.json")
    written = known.stat().st_mtime_ns
    assert run("layer_noise", *search_args(tiny_model), cwd=place) == report
    assert known.stat().st_mtime_ns == written  # which the long way writes anew


def test_the_test_set_is_measured_once(fork, folder, place):
    first = run("final_test", "--sweep", str(folder), cwd=place, start=fork)
    assert "test accuracy" in first and "359 images, measured once" in first
    before = files(place)
    assert run("final_test", cwd=place, start=fork) == first
    assert files(place) == before
    accuracy = json.loads((folder / "final_test.json").read_text())["test_accuracy"]
    assert runs(place)[0][0].data.metrics["test_accuracy"] == pytest.approx(accuracy)
    html = (folder / "report.html").read_text()
    assert f"On test {100 * accuracy:.1f}{PLUS_MINUS}" in html and "have not been looked at" not in html


@pytest.mark.slow
def test_more_trials_go_on_and_grid_shares_the_store(folder, fork, tiny_model, place):
    args = search_args(tiny_model, "--blocks", "mid", "up.0.0", "--timesteps", "0", "100", "--heads", "linear", "ridge")
    store = {path for path in files(place) if path.suffix == ".arrow"}
    for search, num_trials, expected in (("random", 3, 3), ("random", 5, 5), ("grid", 1, 16)):
        run("layer_noise", *args, "--search", search, "--num-trials", str(num_trials), cwd=place, start=fork)
        newest = max(place.glob("out/layer-noise-*/trials.csv"), key=lambda path: path.stat().st_mtime)
        rows = list(csv.DictReader(newest.open()))
        assert len(rows) == len({tuple(row[axis] for axis in AXES) for row in rows})
        assert len(rows) == expected
        if search == "grid":
            assert {row["stopped_early"] for row in rows} == {"False"}
    extracted = {path for path in files(place) if path.suffix == ".arrow"}
    assert store <= extracted
    again = "--search", "random", "--num-trials", "5", "--prefer", "cheapest"
    run("layer_noise", *args, *again, cwd=place, start=fork)
    newest = max(place.glob("out/layer-noise-*/results.json"), key=lambda path: path.stat().st_mtime)
    results = json.loads(newest.read_text())
    assert results["answer"] == results["cheapest"] and results["flags"]["prefer"] == "cheapest"
    assert len(runs(place)[1]) == NUM_TRIALS + 5 + 16


@pytest.mark.slow
def test_heads_of_several_sizes_on_several_views(fork, tiny_model, tmp_path):
    heads = ["attention-1", "attention-2", "cnn-8-8", "knn"]
    args = [*SMALL[:-3], "--timesteps", "100", "--poolings", "4", "--blocks", "up.1.0", "--heads", *heads]
    run("layer_noise", "--backbone", tiny_model, *args, "--views", "2", "--search", "grid", cwd=tmp_path, start=fork)
    [results] = tmp_path.glob("out/layer-noise-*/results.json")
    cost = json.loads(results.read_text())["cost"]
    assert cost["new_passes"] == pytest.approx(cost["passes"])
    rows = list(csv.DictReader((results.parent / "trials.csv").open()))
    assert {row["head"] for row in rows} == set(heads)
    run("final_test", cwd=tmp_path, start=fork)


def test_one_sweep_is_run_by_one_process(folder, fork, tiny_model, place):
    (folder / "results.json").rename(folder / "kept.json")
    with FileLock(folder / ".lock"):
        process = fork("layer_noise", *search_args(tiny_model), cwd=place)
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    (folder / "kept.json").rename(folder / "results.json")
    assert process.returncode == 2
    assert "another process is running this sweep" in err


def test_label_free_ranking_needs_no_search(report, fork, tiny_model, place):
    args = ["--backbone", tiny_model, "--dataset", "digits", "--timesteps", "0", "100", "600", "--scores", "all"]
    out = run("label_free", *args, "--num-labels", "100", cwd=place, start=fork)
    [table] = place.glob("out/*/label_free.csv")
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 30
    ranking = [float(row["ranking"]) for row in rows]
    assert ranking == sorted(ranking, reverse=True)
    assert {*SCORES, *LABELLED} < set(rows[0])
    results = json.loads((table.parent / "results.json").read_text())
    first, sure = results["first"], results["label_free_confidence"]
    at = results["blocks"].index(first["block"]), [0, 100, 600].index(first["timestep"])
    assert np.array(results["label_free_ranking"])[at] == np.max(results["label_free_ranking"])
    assert np.sum(sure["ranks_first"]) == pytest.approx(1)
    assert float(rows[0]["ranks_first"]) == pytest.approx(np.array(sure["ranks_first"])[at], rel=1e-3)
    assert all(int(row["best_rank"]) <= int(row["worst_rank"]) <= 30 for row in rows)
    assert f"with its 256 images resampled 100 times, {first['block']}/{first['timestep']} stays first in " in out
    assert "heat map" in out and table.with_suffix(".png").exists()
    assert "256 of the training images in two noise draws; logme, h_score, ridge saw the first 100 labels" in out


@pytest.mark.slow
def test_the_ranking_can_start_the_search(folder, fork, tiny_model, place):
    args = search_args(tiny_model, "--start", "label-free")
    out = run("layer_noise", *args, cwd=place, start=fork)
    newest = max(place.glob("out/layer-noise-*/results.json"), key=lambda path: path.stat().st_mtime)
    assert newest.parent != folder
    results, by_ridge = (json.loads(path.read_text()) for path in (newest, folder / "results.json"))
    assert set(results["label_free_trust"]) == {"consensus", "alignment", "uniformity", "contrast"}
    assert results["label_free_ranking"] == by_ridge["label_free_ranking"]
    [(_, timesteps), *_] = results["timesteps_at"].items()
    looked = np.array(results["ridge_accuracy"], dtype=float)
    assert len(timesteps) == 2 and np.isfinite(looked).any(0).sum() == 2
    assert "over the sites at t = " in out
    newest.unlink()
    again = run("layer_noise", *args, cwd=place, start=fork)
    assert again.partition("\ncost ")[0] == out.partition("\ncost ")[0]


@pytest.mark.slow
def test_scores_are_followed_along_a_training(fork, tmp_path):
    out = ["--dataset", "digits", "--out", str(tmp_path / "ddpm")]
    small = ["--channels", "8", "16", "--batch-size", "8", "--steps", "6", "--learning-rate", "10"]
    run("pretrain", *out, *small, "--snapshot-every", "2", cwd=tmp_path, start=fork)
    args = ["--backbone", str(tmp_path / "ddpm"), "--dataset", "digits", "--num-images", "16", "--every", "2"]
    told = run("label_free", *args, "--timesteps", "10", "100", cwd=tmp_path, start=fork)
    [table] = tmp_path.glob("out/label-free-every-2-*/trajectories.csv")
    rows = list(csv.DictReader(table.open()))
    assert [int(row["step"]) for row in rows] == [step for step in (2, 4, 6) for _ in range(7)]
    assert len({row["timestep"] for row in rows}) == 1
    assert len({row["alignment"] for row in rows}) > 14
    assert np.asarray(Image.open(table.with_suffix(".png")).convert("L")).std() > 10
    assert "snapshots     2, 4, 6" in told
