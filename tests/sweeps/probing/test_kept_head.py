from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddae.probe import classify
from sweeps.flags import ModelAndData
from sweeps.probing import kept_head
from sweeps.probing.examples import predictions
from sweeps.probing.extractor import opened
from sweeps.probing.plan import set_up
from sweeps.probing.refit import refit
from sweeps.probing.space import Cell


@pytest.fixture
def setup(tiny_model, tmp_path):
    flags = ModelAndData(tiny_model, "digits", blocks=("mid",), timesteps=(100,), store=str(tmp_path))
    return set_up(flags, poolings=(2,), heads=("linear", "mlp-8", "knn"))


def fitted_as_answer(task, cell):
    """The Task and the result of a sweep whose answer is the cell."""
    final = task.on_all_images(cell)
    for need in final.needs(cell, task.num_train):
        opened(task.source).ensure(need)
    [result] = final.run([cell], task.num_train, [None])
    return final, result


@pytest.mark.parametrize("head", ["linear", "mlp-8"])
def test_the_head_of_an_answer_is_kept_as_it_was_fitted(setup, head):
    cell = Cell("mid", 100, 2, head)
    task, result = fitted_as_answer(setup.task, cell)
    kept, anew = kept_head.find(task, cell), task.fit(cell, *(data := task.read([cell], task.num_train)))
    assert kept.head.settings == (anew.setting,) == (result.params["setting"],)
    assert np.array_equal(kept.correct, result.correct)
    own = anew.head.only(anew.setting)
    assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in kept.head.state_dict().items())
    [predicted] = classify(kept.head, data[1][0][2], task.num_classes).numpy()
    assert np.array_equal(predicted, kept.predicted)
    assert np.array_equal(predictions(setup.task, cell), predicted)


def test_refit_takes_the_kept_head_and_fits_again_where_it_is_damaged(setup, tmp_path, monkeypatch, caplog):
    cell = Cell("mid", 100, 2, "linear")
    task, result = fitted_as_answer(setup.task, cell)
    [file] = tmp_path.glob("checkpoints/*/*")
    whole, fits = file.read_bytes(), []
    fit = type(task).fit
    monkeypatch.setattr(type(task), "fit", lambda *args: fits.append(args) or fit(*args))

    found = refit(setup.task, cell, setup.dataset, ("test",), backbone=setup.backbone)
    assert not fits and found.result.metrics == result.metrics
    right = found.correct("test")
    file.write_bytes(whole[:-1])
    again = refit(setup.task, cell, setup.dataset, ("test",))
    assert len(fits) == 1 and "damaged checkpoint" in caplog.text
    assert np.array_equal(again.correct("test"), right)
    assert kept_head.find(task, cell).setting == found.fitted.setting


def test_only_answers_are_kept_and_no_head_that_holds_the_features(setup, tmp_path):
    cell = Cell("mid", 100, 2, "knn")
    fitted_as_answer(setup.task, cell)
    [_] = setup.task.run([replace(cell, head="linear")], setup.task.num_train, [None])
    assert not [*tmp_path.glob("checkpoints/*/*")]


def test_a_store_that_takes_no_more_files_costs_a_warning(setup, tmp_path, caplog):
    cell = Cell("mid", 100, 2, "linear")
    Path(tmp_path, "checkpoints").write_text("in the way")
    _, result = fitted_as_answer(setup.task, cell)
    assert result.metrics["val_accuracy"] > 0.5
    assert "is not kept" in caplog.text
