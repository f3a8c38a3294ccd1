from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ddae.backbones import Block
from sweeps.tuning.evaluation import look_poolings
from sweeps.tuning.race import Race, best_timesteps, clearly_worse, survivors
from sweeps.tuning.space import Need, Space

SHARES = {"mid": 0.25, "up.0.0": 0.5, "up.1.0": 1.0}
BLOCKS = tuple(Block(name, 1, "up", channels=8, size=4, flops_share=share) for name, share in SHARES.items())
SPACE = Space(BLOCKS, (0, 10, 100), (1, 2), ("linear",))


def look(accuracy, num_images=2000):
    """Right answers of places that err independently of each other."""
    rng = np.random.default_rng(0)
    return {t: {block: rng.random(num_images) < a for block, a in blocks.items()} for t, blocks in accuracy.items()}


def test_the_best_timesteps_stay_with_the_blocks_that_are_not_clearly_worse():
    accuracy = {
        0: {"mid": 0.80, "up.0.0": 0.70, "up.1.0": 0.50},
        10: {"mid": 0.81, "up.0.0": 0.81, "up.1.0": 0.60},
        100: {"mid": 0.40, "up.0.0": 0.40, "up.1.0": 0.30},
    }
    assert survivors(look(accuracy), 1) == {10: ("mid", "up.0.0")}
    assert survivors(look(accuracy), 2) == {0: ("mid",), 10: ("mid", "up.0.0")}
    assert survivors(look(accuracy), 3) == {0: ("mid",), 10: ("mid", "up.0.0")}


def test_one_lucky_block_does_not_carry_a_timestep():
    blocks = [f"up.{i}.0" for i in range(9)]
    steady, lucky = dict.fromkeys(blocks, 0.80), {**dict.fromkeys(blocks, 0.60), "up.0.0": 0.85}
    assert list(survivors(look({0: steady, 10: lucky}), 1)) == [0]


def test_a_label_free_ranking_keeps_the_timesteps_where_three_blocks_rank_best():
    plan = SimpleNamespace(space=SPACE, num_kept=lambda cut: (2, 1)[cut])
    ranking = np.array([[9.0, 1.0, 0.0], [-5.0, 1.0, 0.0], [-5.0, 1.0, 0.0]])
    assert best_timesteps(plan, ranking) == {10: tuple(SHARES), 100: tuple(SHARES)}


def test_more_images_tell_more_apart():
    few, many = (look({0: {"mid": 0.80, "up.0.0": 0.75}}, num)[0] for num in (50, 5000))
    assert not clearly_worse(few["up.0.0"], few["mid"])
    assert clearly_worse(many["up.0.0"], many["mid"])
    assert not clearly_worse(many["mid"], many["mid"])


def test_places_without_a_cell_are_not_looked_at():
    space = Space(BLOCKS, (0,), (1, 2, 4), ("attention-1", "cnn-8-8"))
    assert look_poolings(space, "mid") == [2, 4]
    wide = Space((replace(BLOCKS[0], channels=1000),), (0,), (1, 2, 4), ("linear",))
    assert look_poolings(wide, "mid") == [1]


def test_a_race_remembers_its_looks():
    answers = {Need(0, "train", 50, ("mid",)): np.ones(50, dtype=bool)}
    race = Race([], {0: ("mid",)}).after(answers, 1)
    assert race.places == {0: ("mid",)}
    assert race.ranked() == [("mid", 0)]
    assert np.array_equal(race.looks[0][0]["mid"], np.ones(50))


@pytest.mark.parametrize(
    ("needs", "passes"),
    [
        ([Need(0, "train", 100, ("mid",))], 25),
        ([Need(0, "train", 100, ("mid", "up.1.0"))], 100),
        ([Need(0, "train", 100, ("mid",)), Need(0, "train", 100, ("mid",))], 25),
        ([Need(0, "train", 100, ("mid",)), Need(10, "train", 100, ("mid",))], 50),
        ([Need(0, "train", 100, ("mid",)), Need(0, "train", 100, ("mid",), draw=1)], 50),
        ([Need(0, "train", 40, ("up.1.0",)), Need(0, "train", 100, ("mid",))], 40 + 60 * 0.25),
        ([Need(0, "train", 100, ("up.0.0",)), Need(0, "train", 40, ("mid",))], 50),
    ],
)
def test_an_image_passes_once_and_no_deeper_than_needed(needs, passes):
    assert SPACE.forward_passes(needs) == pytest.approx(passes)
    assert SPACE.forward_passes(reversed(needs)) == pytest.approx(passes)
