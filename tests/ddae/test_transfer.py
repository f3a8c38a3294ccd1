"""Transfer between datasets, on planted accuracies."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from ddae.transfer import (
    SCOPES,
    Loss,
    agreement,
    left_out,
    nearest_site,
    of_halves,
    one_for_all,
    rank_correlation,
    regret_matrix,
    scopes_of,
)

BLOCKS, TIMESTEPS = 8, 5
ORDER = np.random.default_rng(5).permutation(BLOCKS * TIMESTEPS).reshape(BLOCKS, TIMESTEPS) / (BLOCKS * TIMESTEPS)


def planted(order: np.ndarray, num_images: int, seed: int, spread: float = 0.4) -> np.ndarray:
    """Right or wrong by chance, with accuracies that are in this order."""
    shape = (*order.shape, num_images)
    return np.random.default_rng(seed).random(shape) < (0.5 + spread * order)[..., None]


def test_rank_correlation_is_scipys_with_ties():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (3, 20)), rng.integers(0, 4, (3, 20))
    assert rank_correlation(a, b) == pytest.approx([spearmanr(*pair).statistic for pair in zip(a, b, strict=True)])
    assert rank_correlation(np.ones(5), np.arange(5)) == 0
    assert rank_correlation(np.array([1, 2, 2, 3]), np.array([1, 2, 2, 3])) == pytest.approx(1)


@pytest.mark.parametrize("name", SCOPES)
def test_two_halves_of_one_dataset_agree_and_strangers_do_not(name):
    scope, right = SCOPES[name], planted(ORDER, 800, seed=0)
    halves = agreement(right[..., :400], right[..., 400:], scope, 300)
    assert halves.value > 0.85 and halves.high == pytest.approx(1, abs=0.02)
    assert of_halves(right, scope) > 0.9
    strange = np.random.default_rng(9).permutation(ORDER.ravel()).reshape(ORDER.shape)
    other = agreement(right, planted(strange, 800, seed=1), scope, 300)
    assert other.high < 0.6 and other.low <= other.value <= other.high
    assert agreement(right, planted(1 - ORDER, 800, seed=1), scope, 300).high < -0.7


def test_an_interval_holds_the_correlation_that_noise_hides():
    """Few images and small differences: the same order on both, so the truth is 1."""
    covered, values = [], []
    for seed in range(20):
        found = agreement(
            planted(ORDER, 150, seed, 0.15), planted(ORDER, 150, 100 + seed, 0.15), SCOPES["all sites"], 200
        )
        covered.append(found.high >= 0.85)
        values.append(found.value)
    assert np.mean(values) < 0.75 and np.mean(covered) > 0.6


def test_where_nothing_differs_halves_do_not_agree_by_chance():
    assert of_halves(planted(np.zeros_like(ORDER), 400, seed=3), SCOPES["all sites"]) < 0.4


def test_scopes_want_three_sites():
    assert list(scopes_of((8, 5))) == list(SCOPES)
    assert list(scopes_of((8, 1))) == list(scopes_of((1, 8))) == ["all sites"]
    assert list(scopes_of((2, 2))) == ["all sites"] and scopes_of((1, 2)) == {}


def on_two(num_images=1000):
    """a is best on X and b on Y; c is nearly as good on both."""
    rng = np.random.default_rng(0)
    luck = rng.random((2, num_images))
    accuracy = {"X": {"a": 0.9, "b": 0.8, "c": 0.89}, "Y": {"a": 0.7, "b": 0.8, "c": 0.79}}
    return {
        name: {cell: luck[number] < share for cell, share in cells.items()}
        for number, (name, cells) in enumerate(accuracy.items())
    }


def test_regret_is_paired():
    regrets = regret_matrix(on_two(), {"X": "a", "Y": "b"})
    assert regrets["X", "X"] == Loss(0, 0) and regrets["X", "X"].is_tied
    lost = regrets["X", "Y"]
    assert lost.points == pytest.approx(10, abs=2) and not lost.is_tied
    assert lost.stderr == pytest.approx(100 * (0.1 * 0.9 / 1000) ** 0.5, rel=0.1)  # not that of two independent sets


def test_two_halves_of_one_dataset_choose_cells_that_are_tied():
    luck = np.random.default_rng(2).random((2, 600))
    noise = np.random.default_rng(3).random((2, 3, 600)) < 0.05
    halves = {
        name: {cell: (luck[half] < 0.8) ^ noise[half, number] for number, cell in enumerate("abc")}
        for half, name in enumerate(("first", "second"))
    }
    chosen = {name: max(cells, key=lambda cell: cells[cell].mean()) for name, cells in halves.items()}
    assert all(lost.is_tied for lost in regret_matrix(halves, chosen).values())


def test_the_one_for_all_loses_least_on_the_mean():
    ranked = one_for_all(on_two(), {"X": "a", "Y": "b"})
    assert (
        ranked[0].cell == "c" and ranked[0].points == pytest.approx(1, abs=1) and ranked[0].against_best == Loss(0, 0)
    )
    assert not ranked[-1].against_best.is_tied
    equal = {"X": {"a": np.ones(9), "b": np.ones(9)}, "Y": {"a": np.ones(9), "b": np.ones(9)}}
    first, second = one_for_all(equal, {"X": "b", "Y": "b"})
    assert first.cell == "a" and second.against_best.is_tied


def test_what_is_left_out_has_no_say():
    correct = on_two() | {"Z": on_two()["X"]}
    found = left_out(correct, {"X": "a", "Y": "b", "Z": "a"})
    cell, lost = found["Y"]
    assert cell == "a" and lost.points > 5
    assert left_out(correct, {"X": "c", "Y": "a", "Z": "c"})["Y"][0] == "c"  # a, which Y brought in, is better there
    assert left_out({"X": on_two()["X"]}, {"X": "a"}) == {}


def test_the_same_site_in_another_network():
    assert nearest_site(0.5, 0.1, [0.2, 0.45, 0.9], [0.01, 0.12, 1.0]) == (1, 1)
    assert nearest_site(1.0, 0.0, [0.2, 0.45, 0.9], [0.0, 0.12]) == (2, 0)
    assert nearest_site(0.1, 0.03, [0.2], [0.01, 0.12]) == (0, 0)  # nearer as a ratio
