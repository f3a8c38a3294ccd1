import numpy as np
import pytest
import torch

from ddae.probe import balanced_accuracy, class_weights, tied_with_best, to_maps


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


def test_balanced_accuracy_is_the_mean_over_classes():
    labels = np.array([0] * 80 + [1] * 20)
    correct = np.r_[np.ones(80, bool), np.arange(20) < 5]
    accuracy, stderr = balanced_accuracy(correct, labels)
    assert accuracy == (1 + 0.25) / 2 == pytest.approx((correct * class_weights(labels)).mean())
    assert stderr == pytest.approx((0.25 * 0.75 / 20) ** 0.5 / 2)


def test_a_setting_and_ties_are_chosen_by_weighted_images():
    """One probe is right on the many, the other on the few and half of the many."""
    labels = np.array([0] * 900 + [1] * 100)
    many, both = np.arange(1000) < 900, (np.arange(1000) < 450) | (np.arange(1000) >= 900)
    assert tied_with_best(np.stack([many, both])).tolist() == [True, False]
    assert tied_with_best(np.stack([many, both]), weights=class_weights(labels)).tolist() == [False, True]
