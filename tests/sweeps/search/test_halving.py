import random

import pytest
from optuna.trial import TrialState

from sweeps.search import halving
from sweeps.search.halving import HalvingSearch, plan_round_size
from sweeps.search.task import Axis, Objective
from tests.tasks import ToyTask, accuracies, play

CELLS = ToyTask.cells
RUNGS = (300, 1200)


def search_of(num_trials=1000, rungs=RUNGS, **more):
    return HalvingSearch(ToyTask(rungs), num_trials, **more)


def cells(played):
    return [cell for cell, _, _ in played]


@pytest.mark.parametrize("sampler", ["optuna", "random"])
@pytest.mark.parametrize("rungs", [(1200,), RUNGS, (75, 300, 1200)])
def test_workers_and_the_order_of_their_answers_change_nothing(sampler, rungs):
    expected = play(search_of(30, sampler=sampler, rungs=rungs))
    for num_workers in (2, 5, 100):
        for seed in range(3):
            search = search_of(30, sampler=sampler, rungs=rungs)
            assert play(search, num_workers, random.Random(seed)) == expected


@pytest.mark.parametrize("sampler", ["optuna", "random"])
def test_fewer_trials_are_a_prefix_of_more(sampler):
    most = play(search_of(33, sampler=sampler))
    for num_trials in (1, 8, 13, 24):
        assert play(search_of(num_trials, sampler=sampler)) == most[:num_trials]


@pytest.mark.parametrize("rungs", [RUNGS, (75, 300, 1200)])
def test_a_cell_goes_on_where_it_is_among_the_best_quarter_so_far(rungs):
    reached = [[] for _ in rungs]
    task = ToyTask(rungs)
    for cell, values, stopped in play(search_of(30, rungs=rungs)):
        assert stopped == (len(values) < len(rungs))
        for number, value in enumerate(values):
            assert value == accuracies([task.result(cell, rungs[number])])[0]
            reached[number].append(value)
            if number + 1 < len(rungs):
                num_best = max(1, len(reached[number]) // 4)
                assert (number + 1 < len(values)) == (value >= sorted(reached[number])[-num_best])
    assert 0 < len(reached[-1]) < len(reached[0]) == 30


def test_optuna_remembers_the_newest_trials_and_the_best(monkeypatch):
    monkeypatch.setattr(halving, "NUM_REMEMBERED", 6)
    monkeypatch.setattr(halving, "NUM_GOOD", 2)
    search = search_of(rungs=(1200,))
    tried = play(search)
    assert len(set(cells(tried))) == len(CELLS)
    remembered = {tuple(trial.params.values()) for trial in search.study.get_trials()}
    assert len(remembered) <= 2 * 6 + 2 + search.round_size
    best = sorted(tried[:-6], key=lambda one: -one[1][0])[:2]
    assert remembered >= {tuple(search.axes.params(one[0]).values()) for one in [*best, *tried[-6:]]}
    assert play(search_of(30, rungs=(1200,)), 5, random.Random(0)) == tried[:30]


def test_optuna_knows_what_was_stopped():
    search = search_of(20)
    played = play(search)
    trials = search.study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])
    assert [trial.state == TrialState.PRUNED for trial in trials] == [stopped for _, _, stopped in played]
    assert [tuple(trial.intermediate_values.values()) for trial in trials] == [values for _, values, _ in played]


def test_the_first_cells_are_the_ones_asked_for():
    first = [CELLS[7], CELLS[3]]
    assert cells(play(search_of(5, first=first)))[:2] == first


@pytest.mark.parametrize("num_trials", [1, 1000])
def test_grid_is_every_cell_in_order_whatever_the_number_of_trials(num_trials):
    assert tuple(cells(play(search_of(num_trials, sampler="grid", rungs=(1200,))))) == CELLS


@pytest.mark.parametrize("sampler", ["optuna", "random"])
def test_only_the_cells_that_are_given_are_tried(sampler):
    left = [cell for cell in CELLS if cell.noise == 10 and cell.depth in (1, 2)]
    assert sorted(cells(play(search_of(cells=left, sampler=sampler)))) == sorted(left)


def test_the_seed_decides():
    assert play(search_of(20, seed=0)) == play(search_of(20, seed=0)) != play(search_of(20, seed=1))


def test_tpe_finds_the_good_corner_sooner_than_chance():
    """Half of the cells find half of the 4 best by chance: 60 over 30 seeds, with a deviation of 5."""
    assert sum(is_best(cell) for cell in CELLS) == 4
    found = 0
    for seed in range(30):
        found += sum(map(is_best, cells(play(search_of(len(CELLS) // 2, rungs=(1200,), seed=seed)))))
    assert found >= 75


def is_best(cell):
    return cell.depth == 2 and cell.noise == 10


def test_a_trial_that_has_ended_is_known_before_its_round_is_over():
    worst, *_, best = sorted(CELLS, key=lambda cell: accuracies([ToyTask().result(cell, 300)]))
    search = search_of(first=[best, worst])
    for fit in (search.ask(), search.ask()):
        search.tell(fit, search.task.result(*fit))
    assert [(trial.cell, trial.state) for trial in search.ended_trials] == [(worst, "stopped")]
    assert search.trials == []


@pytest.mark.parametrize(
    ("sampler", "num_trials", "num_cells", "planned"),
    [
        ("optuna", 1, 546, 4),
        ("optuna", 40, 546, 4),  # as ever
        ("optuna", 49, 546, 4),
        ("optuna", 640, 1554, 64),
        ("optuna", 10_000, 546, 54),
        ("random", 640, 1554, 4),  # has one round, and a folder that does not depend on this
        ("grid", 640, 1554, 4),
    ],
)
def test_many_trials_are_proposed_in_larger_rounds(sampler, num_trials, num_cells, planned):
    assert plan_round_size(sampler, num_trials, num_cells) == planned


@pytest.mark.parametrize(("name", "number"), [("num_trials", 0), ("round_size", -1)])
def test_a_number_below_one_is_one_line(name, number):
    with pytest.raises(ValueError, match=f"^{name}={number} must be 1 or more$"):
        HalvingSearch(ToyTask(), **{"num_trials": 5, name: number})


def test_an_objective_is_better_one_way():
    low, high = (ToyTask().result(cell, 300) for cell in (CELLS[0], CELLS[-1]))
    for direction, better, worse in (("maximize", high, low), ("minimize", low, high)):
        objective = Objective("val_accuracy", direction)
        assert objective.merit(better) > objective.merit(worse)
    assert Objective("val_accuracy").text(low) == "50.3 %"


@pytest.mark.parametrize("bad", [{"values": ()}, {"values": (1, 1)}, {"values": (1, 2), "kinds": ("a",)}])
def test_an_axis_without_a_meaning_is_one_line(bad):
    with pytest.raises(ValueError, match=r"^an axis has .*; give one"):
        Axis(**bad)
