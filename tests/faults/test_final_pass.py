"""The answer of a bounded search on all images: what interrupts it, what changes it, and who uses it."""

import csv
import json
from pathlib import Path

import pytest

from tests.commands import wait_for
from tests.faults.sweeps import finish, kill

ARGS = ["--dataset", "digits", "--timesteps", "10", "600", "--poolings", "1", "2", "--blocks", "mid", "up.0.0"]
ARGS += ["--heads", "ridge", "linear", "--search-images", "300"]
STAGE = "the answer on all images"
FEW, MANY = ["--num-trials", "1"], ["--num-trials", "12"]


@pytest.fixture(scope="module")
def bounded(tiny_model, fork):
    """A function that starts the sweep."""
    return lambda *args, cwd: fork("layer_noise", "--backbone", tiny_model, *ARGS, *args, cwd=cwd)


@pytest.fixture(scope="module")
def place(bounded, tmp_path_factory) -> Path:
    """The folder in which it has run in peace."""
    place = tmp_path_factory.mktemp("bounded")
    (place / "report").write_text(finish(bounded(*MANY, cwd=place)))
    return place


def found(place: Path) -> dict:
    [path] = place.glob("out/layer-noise-*/results.json")
    return json.loads(path.read_text())


def rows(place: Path) -> list[tuple]:
    [path] = place.glob("out/layer-noise-*/trials.csv")
    names = "block", "timestep", "pooling", "head", "num_images", "val_accuracy", "stopped_early"
    return sorted(tuple(row[name] for name in names) for row in csv.DictReader(path.open()))


def ledger(place: Path) -> dict:
    return {path: path.stat().st_mtime_ns for path in place.glob("out/store/ledger/**/*") if path.is_file()}


def test_the_answer_has_all_images_and_its_cost_three_lines_that_add_up(place):
    results, report = found(place), (place / "report").read_text()
    assert results["answer"]["num_images"] == 1151 and results["best"]["num_images"] == 300
    assert results["answer"]["cell"] == results["best"]["cell"]
    cost = results["cost"]
    assert cost["search_passes"] + cost["final_passes"] == pytest.approx(cost["passes"])
    assert 0 < cost["search_passes"] < cost["passes"] < cost["grid_passes"]
    [page] = place.glob("out/layer-noise-*/report.html")
    for name, passes in (("search passes", "search_passes"), ("final passes", "final_passes"), ("cost", "passes")):
        share = f"{cost[passes] / 1151:.2f} times the training images and {cost[passes] / cost['grid_passes']:.2f}"
        [line] = [line for line in report.splitlines() if line.startswith(name)]
        assert f"{cost[passes]:,.0f}" in line and share in line and share in page.read_text()
    assert "fitted on 300 images" in report and "fitted on all 1,151 images and evaluated on all 287" in report
    accuracy = f"{100 * results['answer']['val_accuracy']:.1f}"
    assert f"{accuracy} +- " in next(line for line in report.splitlines() if "evaluated on all" in line)


@pytest.mark.slow
def test_another_answer_is_fitted_on_all_images_too(bounded, tmp_path):
    finish(bounded(*FEW, cwd=tmp_path))
    few = found(tmp_path)
    report = finish(bounded(*MANY, cwd=tmp_path))
    many = found(tmp_path)
    assert few["answer"]["num_images"] == many["answer"]["num_images"] == 1151
    assert few["answer"]["cell"] != many["answer"]["cell"]
    final = [row for row in rows(tmp_path) if row[4] == "1151"]
    assert [row[:4] for row in final] == [tuple(map(str, many["answer"]["cell"].values()))]
    before = ledger(tmp_path)
    cheapest = finish(bounded(*MANY, "--prefer", "cheapest", cwd=tmp_path))
    assert found(tmp_path)["answer"]["cell"] == found(tmp_path)["cheapest"]["cell"]
    assert found(tmp_path)["answer"]["num_images"] == 1151 and "the cheapest is the answer" in cheapest
    new = len(ledger(tmp_path)) - len(before)
    assert {path: ledger(tmp_path)[path] for path in before} == before
    assert new <= 3  # that fit, its predictions and the raw pixels under another head
    again = finish(bounded(*MANY, cwd=tmp_path))
    assert again.splitlines()[:8] == report.splitlines()[:8]
    assert len(ledger(tmp_path)) - len(before) == new


@pytest.mark.slow
def test_killed_in_the_final_pass_the_same_command_ends_as_one_in_peace(place, bounded, tmp_path):
    process = bounded(*MANY, cwd=tmp_path)
    printed = process._printed[1]
    assert wait_for(lambda: printed.exists() and STAGE in printed.read_text(), process)
    kill(process)
    assert not list(tmp_path.glob("out/layer-noise-*/results.json"))
    finish(bounded(*MANY, cwd=tmp_path))
    assert rows(tmp_path) == rows(place)
    assert found(tmp_path)["answer"] | {"run_seconds": 0} == found(place)["answer"] | {"run_seconds": 0}


def test_the_test_and_the_hand_over_are_of_the_fit_on_all_images(place, fork):
    """Also where the sweep ran on a cluster's GPUs, and its head has none."""
    [config] = place.glob("out/layer-noise-*/config.yaml")
    assert "device: auto" in config.read_text()
    config.write_text(config.read_text().replace("device: auto", "device: cuda"))
    val = 100 * found(place)["answer"]["val_accuracy"]
    tested = finish(fork("final_test", cwd=place))
    assert "1,151 training images" in tested and f"{val:.1f} % when it was chosen" in tested
    assert "fitted on 1,151 images" in finish(fork("hand_over", cwd=place))
    [winner] = place.glob("out/layer-noise-*/model/winner.json")
    assert json.loads(winner.read_text())["num_images"] == 1151


@pytest.mark.slow
def test_a_bound_above_the_set_is_an_unbounded_search(bounded, tmp_path):
    report = finish(bounded(*FEW, "--search-images", "5000", cwd=tmp_path))
    assert "search passes" not in report and "final passes" not in report
    cost = found(tmp_path)["cost"]
    assert cost["final_passes"] == 0 and cost["search_passes"] == cost["passes"]
    assert {row[4] for row in rows(tmp_path)} <= {"287", "1151"}


@pytest.mark.slow
def test_a_sweep_of_a_version_whose_search_had_all_images_is_tested(bounded, fork, tmp_path):
    """Its config.yaml names no bound, and it is not taken for the one of today."""
    finish(bounded(*FEW, "--search-images", "all", cwd=tmp_path))
    [config] = tmp_path.glob("out/layer-noise-*/config.yaml")
    lines = config.read_text().splitlines()
    config.write_text("\n".join(line for line in lines if not line.startswith("search_images")))
    assert "1,151 training images" in finish(fork("final_test", cwd=tmp_path))
