import random
from typing import get_args, get_type_hints

import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from sweeps.layer_noise import LayerNoise
from sweeps.search.halving import HalvingSearch
from sweeps.search.samplers import SAMPLERS, Sampler, find_sampler
from tests.tasks import ToyTask, play


def search_of(sampler, num_trials=1000):
    return HalvingSearch(ToyTask(), num_trials, sampler)


def test_the_flag_takes_the_names_in_the_table():
    assert get_args(get_type_hints(LayerNoise)["search"]) == tuple(SAMPLERS)


@pytest.mark.parametrize("find", [find_sampler, search_of])
def test_an_unknown_sampler_is_one_line_with_the_allowed_names(find):
    with pytest.raises(ValueError, match=r"^search='optima' is not known; allowed: optuna, random, grid$"):
        find("optima")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_cell_twice_and_the_space_is_exhausted(sampler):
    cells = [cell for cell, _, _ in play(search_of(sampler))]
    assert len(cells) == len(set(cells)) == len(ToyTask.cells)
    assert set(cells) == set(ToyTask.cells)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_hears_of_results_where_it_learns_from_them(sampler):
    search = search_of(sampler, 20)
    expected = [accuracies[-1] for _, accuracies, _ in play(search)] if SAMPLERS[sampler].learns else []
    told = search.study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])
    assert [trial.value for trial in told] == expected


def test_a_sampler_is_a_line_in_the_table(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "mine", Sampler(lambda seed: RandomSampler(seed=seed), learns=True, rounds=True))
    played = play(search := search_of("mine", 20))
    assert play(search_of("mine", 20), 5, random.Random(0)) == played
    told = search.study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])
    assert [trial.value for trial in told] == [accuracies[-1] for _, accuracies, _ in played]
