"""A search that is bounded, and the answer on all images."""

from dataclasses import replace

import numpy as np
import pytest

from ddae.probe import fit_probe
from storage.checkpoints import StoredCheckpoint
from sweeps.flags import ModelAndData
from sweeps.layer_noise import LayerNoise
from sweeps.probing.cost import least_and_most
from sweeps.probing.extractor import Extractor
from sweeps.probing.plan import bounded, rules_for, set_up
from sweeps.probing.screening import SEARCH_VAL, ScreeningRules, bound_search
from sweeps.probing.source import Need
from sweeps.probing.space import Cell
from tests.sweeps.probing.test_task import BLOCK, task_of

CELL = Cell("mid", 10, 1, "linear")
BLOCKS = tuple(
    replace(BLOCK, name=name, flops_share=share) for name, share in (("mid", 0.2), ("up", 0.5), ("end", 1.0))
)


@pytest.mark.parametrize(
    ("num_train", "num_classes", "bound"),
    [
        (1151, 10, 1151),
        (3999, 10, 3999),
        (4800, 10, 1200),
        (48_000, 10, 3000),
        (40_000, 100, 10_000),
        (1_024_934, 1000, 64_058),
    ],
)
def test_auto_bounds_a_search_where_a_quarter_is_enough(num_train, num_classes, bound):
    assert bound_search("auto", num_train, num_classes) == bound
    assert bound_search("all", num_train, num_classes) == num_train


def test_a_bound_above_the_set_is_the_set_and_one_below_its_classes_an_error():
    assert bound_search(10**9, 1151, 10) == 1151
    assert bound_search(10, 1151, 10) == 10
    for number in (9, 0, -5):
        with pytest.raises(ValueError, match=f"^search_images={number} must be 10 or more"):
            bound_search(number, 1151, 10)


def test_an_unbounded_task_keeps_its_keys_and_judges_on_all_of_val():
    task, other = task_of(), task_of(search_val=0)
    assert not task.is_bounded and task.num_train == 800
    assert [task.key(CELL, rung) for rung in task.rungs] == [other.key(CELL, rung) for rung in task.rungs]
    assert {len(task.val_labels(rung)) for rung in task.rungs} == {200}


def test_a_bounded_task_judges_on_its_val_images_until_the_answer_has_all():
    task = replace(task_of(), rungs=(50, 200), search_val=150)
    assert task.is_bounded and len(task.val_labels()) == len(task.val_labels(50)) == 150
    assert task.needs(CELL, 200) == [Need(10, "train", 200, ("mid",)), Need(10, "val", 150, ("mid",))]
    assert task.needs(CELL, 800) == [Need(10, "train", 800, ("mid",)), Need(10, "val", 200, ("mid",))]
    assert task.key(CELL, 200) != task_of().key(CELL, 200)  # judged on all of val
    assert task.key(CELL, 800) == task_of().key(CELL, 800)  # one result serves both
    more = replace(task, search_val=1000)
    assert len(more.val_labels()) == 200 and more.key(CELL, 200) == task_of().key(CELL, 200)


def test_the_pass_for_the_answer_keeps_the_blocks_on_its_way():
    task = replace(task_of(BLOCKS), rungs=(200,), sites={0: ("mid",), 10: ("mid", "up", "end")})
    final = task.on_all_images(Cell("up", 10, 1, "linear"))
    assert final.rungs == (800,) and final.sites == {10: ("mid", "up")} and not final.is_bounded
    assert {need.blocks for need in final.needs(Cell("up", 10, 1, "linear"), 800)} == {("mid", "up")}


def test_least_and_most_have_the_answer_on_all_images():
    task, rules = replace(task_of(BLOCKS), rungs=(50, 200), search_val=100), ScreeningRules((50, 200))
    (least, most), (least_searched, most_searched) = (least_and_most(task, rules, final) for final in (True, False))
    assert most - most_searched == pytest.approx(600 + 100) and least - least_searched == pytest.approx(0.2 * 700)
    everything = task_of(BLOCKS)
    assert least_and_most(everything, rules, True) == least_and_most(everything, rules, False)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_a_fit_is_judged_on_the_first_of_val_and_the_answer_on_all(metric, tiny_model, tmp_path):
    flags = ModelAndData(tiny_model, "digits", ("mid",), (10,), store=str(tmp_path))
    task = set_up(flags, heads=("ridge",), metric=metric, search_images=300).task
    assert task.rungs == (300,) and task.search_val == SEARCH_VAL
    task, cell = replace(task, search_val=50), Cell("mid", 10, 1, "ridge")
    extractor = Extractor(task.source)
    for need in [*task.needs(cell, 300), *task.needs(cell, task.num_train)]:
        extractor.ensure(need)
    results = []
    for rung in (300, task.num_train):
        results += task.run([cell], rung, [StoredCheckpoint(str(tmp_path), task.key(cell, rung))])
    assert [len(result.correct) for result in results] == [50, task.num_val]
    if metric == "balanced_accuracy":
        classes = task.labels["val"][:50]
        of_class = [results[0].correct[classes == label].mean() for label in np.unique(classes)]
        assert results[0].metrics["val_balanced_accuracy"] == pytest.approx(np.mean(of_class))
    (train, labels), (val, val_labels) = (task.features(cell, "train", 1151), task.features(cell, "val", 287))
    whole = fit_probe("ridge", (train[1], labels), (val[1], val_labels), 10, 0, task.weigh(val_labels.numpy()))
    assert (results[1].correct == whole.correct).all()


@pytest.mark.parametrize(
    ("search_images", "rungs"), [("all", (200, 800)), (800, (200, 800)), (799, (799,)), (100, (100,))]
)
def test_a_bounded_search_stops_no_trial_on_few_images(search_images, rungs):
    assert bounded(replace(task_of(), rungs=(800,)), search_images).rungs == rungs


def test_a_bounded_search_stops_trials_where_there_are_many_images():
    many = replace(task_of(), labels={"train": np.zeros(48_000, int), "val": np.zeros(12_000, int)}, rungs=(48_000,))
    task = bounded(many, 12_000)
    assert task.rungs == (3000, 12_000) and len(task.val_labels(3000)) == SEARCH_VAL
    assert rules_for(LayerNoise(), task).rounds == (187, 750, 3000, 12_000)
    assert bounded(many, "auto").rungs == (3000,)
    assert rules_for(LayerNoise(), bounded(many, "auto")).rounds == (187, 750, 3000)
    assert rules_for(LayerNoise(), bounded(many, "all")).rounds == (187, 750, 3000, 12_000)
