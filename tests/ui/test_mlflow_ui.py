"""A finished sweep in MLflow's own UI: what a person sees who follows the report."""

import pytest

from storage.tracking import Tracker
from sweeps.probing.sweep import COLUMNS
from tests.faults.sweeps import finish
from tests.ui.mlflow_ui import WITHOUT_BROWSER, Browser, ui

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WITHOUT_BROWSER), reason=WITHOUT_BROWSER)]
ARGS = ["--dataset", "digits", "--timesteps", "0", "600", "--poolings", "1", "2", "--blocks", "mid", "up.0.0"]
ARGS += ["--heads", "ridge", "knn", "--search", "grid"]

AXES = "block", "timestep", "pooling", "head"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def address(fork, tiny_model, place):
    report = finish(fork("layer_noise", "--backbone", tiny_model, *ARGS, cwd=place))
    with ui(report, place) as address:
        yield address


@pytest.fixture(scope="module")
def cells(address, place):
    """(params, val accuracy) of the trials, as they were logged."""
    tracker = Tracker(f"sqlite:///{place}/mlflow.db", "digits", "unused", "unused")
    tracker.client.delete_run(tracker.parent_id)
    runs = tracker.client.search_runs([tracker.experiment_id], "params.block != ''")
    assert len(runs) == 16
    return [(run.data.params, run.data.metrics["val_accuracy"]) for run in runs]


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


def test_the_best_is_first_and_compare_draws_the_cells(browser, address, cells):
    best_first = sorted((accuracy for _, accuracy in cells), reverse=True)
    logged = sorted((*(params[axis] for axis in AXES), accuracy) for params, accuracy in cells)

    browser.driver.get(address)
    browser.wait(lambda: len(browser.column("metrics.`val_accuracy`")) == len(cells))
    assert [float(text) for text in browser.column("metrics.`val_accuracy`")] == pytest.approx(best_first)
    assert browser.headers()[3:10] == ["metrics.`val_accuracy`", *(f"params.`{name}`" for name in COLUMNS)]
    browser.click("[data-testid=sort-header-val_accuracy]")
    browser.wait(lambda: float(browser.column("metrics.`val_accuracy`")[0]) == pytest.approx(best_first[-1]))

    browser.click("label:has(input[value=CHART])")
    browser.wait(lambda: browser.texts(".parcoords .label") == [*AXES, "val_accuracy"])
    browser.click("label:has(input[value=TABLE])")

    browser.compare_all()
    block, timestep, pooling, head, accuracy = browser.parallel_coordinates(AXES, "val_accuracy")
    assert block["ticktext"] == ["mid", "up.0.0"] and head["ticktext"] == ["knn", "ridge"]
    drawn = zip(
        [block["ticktext"][place] for place in block["values"]],
        [str(value) for value in timestep["values"]],
        [str(value) for value in pooling["values"]],
        [head["ticktext"][place] for place in head["values"]],
        accuracy["values"],
        strict=True,
    )
    assert sorted(drawn) == logged

    browser.click("[role=tab]", "Contour Plot")
    browser.choose("#yaxis-selector", "timestep")
    browser.wait(lambda: set(browser.plot("contour", "scattergl")[0]["y"]) == {0, 600})
    contour, _ = browser.plot("contour", "scattergl")
    drawn = sorted(zip(contour["x"], contour["y"], contour["z"], strict=True))
    assert drawn == sorted((int(p["block_position"]), int(p["timestep"]), accuracy) for p, accuracy in cells)

    browser.click("[role=tab]", "Scatter Plot")
    [scatter] = browser.plot("scattergl")
    assert sorted(zip(scatter["x"], scatter["y"], strict=True)) == sorted((p["block"], a) for p, a in cells)


def test_the_description_shows_the_heat_map_and_its_numbers(browser, address, place):
    client = Tracker(f"sqlite:///{place}/mlflow.db", "digits", "unused", "unused").client
    [experiment] = [each for each in client.search_experiments() if each.name == "digits"]
    [run] = client.search_runs([experiment.experiment_id], "tags.`mlflow.note.content` LIKE 'answer%'")

    browser.driver.get(f"{address.partition('#')[0]}#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}")
    picture = "const shown = [...document.images].find(image => image.src.includes('block_timestep.png'))"
    browser.wait(lambda: browser.script(f"{picture}; return shown && shown.naturalWidth > 100"))
    rows = browser.script("return [...document.querySelectorAll('table tr')].map(row => row.innerText.split('\\t'))")
    assert [row[0] for row in rows] == ["block", "mid", "up.0.0"] and rows[0][1:] == ["t = 0", "t = 600"]
