"""What the label-free ranking says of itself."""

from pathlib import Path

import numpy as np

from sweeps.probing.ranking import Ranking
from sweeps.probing.screening import LabelFree, Scored
from tests.sweeps.probing.test_sections import SPACE

TABLE = np.arange(9.0).reshape(3, 3)
NAMES = SPACE.block_names
FIRST, SECOND = "up.0.0/30", "up.0.0/10"


def ranking(num_swapped):
    """Of 100 resamples, in so many the best two sites change places."""
    swapped = TABLE.copy()
    swapped[2, 1:] = TABLE[2, :0:-1]
    rankings = np.stack([TABLE] * (100 - num_swapped) + [swapped] * num_swapped)
    return Ranking(SPACE, LabelFree(TABLE, {"contrast": TABLE}, rankings), 256, 0, Path("out"))


def test_every_row_says_how_often_it_is_first_and_how_high_it_ranks():
    rows = ranking(20).table
    assert [row["ranks_first"] for row in rows[:3]] == [0.8, 0.2, 0]
    assert [(row["best_rank"], row["worst_rank"]) for row in rows] == [(1, 2), (1, 2), *((n, n) for n in range(3, 10))]


def test_a_first_choice_that_stays_is_said_to_and_one_that_does_not_has_its_rivals_counted():
    steady, undecided = ranking(20).text, ranking(60).text
    stays = f"with its 256 images resampled 100 times, {FIRST} stays first in 80%, and has ranks 1 to 2 of 9 in 90 %"
    assert stays in steady and "a larger --num-images" not in steady
    assert f"{FIRST} stays first in 40%" in undecided
    assert "2 sites are first in 5 % or more: a larger --num-images tells them apart, and 100 labels" in undecided
    assert f"{SECOND} stays" not in undecided


def test_results_hold_the_same_numbers():
    results = ranking(20).results
    assert results["first"] == {"block": "up.0.0", "timestep": 30} == results["choices"]["contrast"]
    assert results["label_free_confidence"]["ranks_first"][2] == [0, 0.2, 0.8]
    assert results["label_free_confidence"]["num_resamples"] == 100
    assert results["label_free_ranking"] == results["label_free"]["contrast"] == TABLE.tolist()


def test_the_scores_of_sites_and_of_their_resamples_are_put_at_their_places():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 3, 6))  # block, timestep, the images as they are and five resamples
    scores = [
        {name: Scored({"contrast": values[b, t, 0]}, {"contrast": values[b, t, 1:]}) for b, name in enumerate(NAMES)}
        for t in range(3)
    ]
    found = LabelFree.of(SPACE, scores)
    assert np.array_equal(found.scores["contrast"], values[:, :, 0])
    again = values[:, :, 1:].transpose(2, 0, 1)
    for resampled, table in zip(found.rankings, again, strict=True):
        assert np.allclose(resampled, (table - table.mean()) / table.std())
    assert np.allclose(found.confidence.ranks_first.sum(), 1)
