import numpy as np
import torch

from ddae.probe import tied_with_best, to_maps


def test_ties_are_what_the_bootstrap_cannot_tell_apart():
    rng = np.random.default_rng(0)
    best = rng.random(1000) < 0.9
    close = best.copy()
    close[rng.choice(np.flatnonzero(best), 3, replace=False)] = False
    swapped = np.roll(best, 1)
    worse = best & (rng.random(1000) < 0.9)
    assert tied_with_best(np.stack([best, swapped, worse, close])).tolist()[:3] == [True, True, False]
    assert tied_with_best(best[None]).tolist() == [True]


def test_nested_losses_are_told_apart_sooner_than_independent_ones():
    """Ten images lost and none won is no tie, though ten in a thousand is one standard error."""
    best = np.arange(1000) < 900
    nested = np.arange(1000) < 890
    assert tied_with_best(np.stack([best, nested])).tolist() == [True, False]


def test_shards_become_one_float32_map():
    rows = np.random.default_rng(0).standard_normal((7, 12)).astype(np.float16)
    rows.flags.writeable = False
    maps = to_maps([rows[:3], rows[3:]], channels=3)
    assert maps.shape == (7, 3, 2, 2) and maps.dtype == torch.float32
    assert np.array_equal(maps.flatten(1).numpy(), rows.astype(np.float32))
