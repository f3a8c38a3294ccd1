from dataclasses import replace

import numpy as np
import pytest

from ddae.backbones import Block
from ddae.probe import clearly_worse
from sweeps.probing.screening import Screening, ScreeningRules, best_timesteps, choose_rungs, survivors
from sweeps.probing.source import Need
from sweeps.probing.space import Space

BLOCKS = tuple(Block(name, 1, "up", channels=8, size=4, flops_share=1) for name in ("mid", "up.0.0", "up.1.0"))
SPACE = Space(BLOCKS, {0: 0.01, 10: 0.05, 100: 0.3}, (1, 2), ("linear",))


def answers(accuracy, num_images=2000):
    """Right answers of sites that err independently of each other."""
    rng = np.random.default_rng(0)
    return {t: {block: rng.random(num_images) < a for block, a in blocks.items()} for t, blocks in accuracy.items()}


def test_the_best_timesteps_stay_with_the_blocks_that_are_not_clearly_worse():
    accuracy = {
        0: {"mid": 0.80, "up.0.0": 0.70, "up.1.0": 0.50},
        10: {"mid": 0.81, "up.0.0": 0.81, "up.1.0": 0.60},
        100: {"mid": 0.40, "up.0.0": 0.40, "up.1.0": 0.30},
    }
    assert survivors(answers(accuracy), 1) == {10: ("mid", "up.0.0")}
    assert survivors(answers(accuracy), 2) == {0: ("mid",), 10: ("mid", "up.0.0")}
    assert survivors(answers(accuracy), 3) == {0: ("mid",), 10: ("mid", "up.0.0")}


def test_one_lucky_block_does_not_carry_a_timestep():
    blocks = [f"up.{i}.0" for i in range(9)]
    steady, lucky = dict.fromkeys(blocks, 0.80), {**dict.fromkeys(blocks, 0.60), "up.0.0": 0.85}
    assert list(survivors(answers({0: steady, 10: lucky}), 1)) == [0]


def test_a_label_free_ranking_keeps_the_timesteps_where_three_blocks_rank_best():
    rules = ScreeningRules((200,), start="label-free")
    assert rules.num_kept(0, 3) == 2
    ranking = np.array([[9.0, 1.0, 0.0], [-5.0, 1.0, 0.0], [-5.0, 1.0, 0.0]])
    assert best_timesteps(SPACE, rules, ranking) == {10: SPACE.block_names, 100: SPACE.block_names}


def test_more_images_tell_more_apart():
    few, many = (answers({0: {"mid": 0.80, "up.0.0": 0.75}}, num)[0] for num in (50, 5000))
    assert not clearly_worse(few["up.0.0"], few["mid"])
    assert clearly_worse(many["up.0.0"], many["mid"])
    assert not clearly_worse(many["mid"], many["mid"])


def test_a_screening_remembers_its_rounds():
    rules = ScreeningRules((50, 200), finalists=1)
    screening = Screening(rules, SPACE, (), SPACE.sites)
    first = {Need(t, "train", 50, (block,)): np.arange(50) < 40 - t for t in (0, 10) for block in ("mid", "up.0.0")}
    screening = screening.after(first)
    assert screening.sites == {0: ("mid", "up.0.0")}
    screening = screening.after({Need(0, "train", 200, ("mid",)): np.ones(200, dtype=bool)})
    assert screening.sites == {0: ("mid",)}
    assert screening.ranked == [("mid", 0)]
    assert np.array_equal(screening.rounds[0][0]["mid"], np.arange(50) < 40)
    assert np.nansum(screening.accuracy) == pytest.approx(2 * (0.8 + 0.6))
    assert np.isnan(screening.accuracy).sum() == 9 - 4
    assert screening.needs == [
        Need(0, "train", 50, ("mid", "up.0.0")),
        Need(10, "train", 50, ("mid", "up.0.0")),
        Need(0, "train", 200, ("mid",)),
    ]


def test_for_the_grid_all_sites_stay():
    rules = ScreeningRules((50,), exhaustive=True)
    bad = {Need(0, "train", 50, ("mid",)): np.zeros(50, dtype=bool)}
    assert Screening(rules, SPACE, (), SPACE.sites).after(bad).sites == SPACE.sites


def test_rungs_are_quarters_down_to_what_tells_something():
    assert choose_rungs(4800, num_classes=10) == (75, 300, 1200, 4800)
    assert choose_rungs(48000, num_classes=10) == (187, 750, 3000, 12000, 48000)
    assert choose_rungs(4800, num_classes=100) == (1200, 4800)
    assert choose_rungs(40, num_classes=2) == (40,)


def test_half_of_the_timesteps_stay_but_never_too_few():
    def kept(num_timesteps, **rules):
        return [ScreeningRules((50, 200), **rules).num_kept(cut, num_timesteps) for cut in range(3)]

    assert kept(7, keep=0.5, finalists=2) == [4, 2, 2]
    assert kept(20, keep=0.25, finalists=1) == [5, 2, 1]
    assert kept(1, keep=0.5, finalists=2) == [1, 1, 1]
    assert kept(7, exhaustive=True) == [7, 7, 7]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"keep": 0.0}, "keep=0.0 must lie above 0 and not above 1"),
        ({"keep": 1.5}, "keep=1.5 must lie above 0 and not above 1"),
        ({"finalists": 0}, "finalists=0 must be 1 or more"),
        ({"exhaustive": True, "start": "label-free"}, "start='label-free' cuts timesteps, and the grid keeps all"),
    ],
)
def test_senseless_rules_are_one_line(rules, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        replace(ScreeningRules((50, 200)), **rules)


def test_what_is_ready_first_decides_nothing():
    rules = ScreeningRules((50,), finalists=1)
    needs = {Need(t, "train", 50, (block,)): np.arange(50) < 40 for t in (0, 10, 100) for block in SPACE.block_names}
    orders = [dict(sorted(needs.items(), key=lambda item: sign * item[0].timestep)) for sign in (1, -1)]
    first, second = (Screening(rules, SPACE, (), SPACE.sites).after(order) for order in orders)
    assert first.sites == second.sites and first.ranked == second.ranked
    assert list(first.rounds[0]) == list(second.rounds[0]) == [0, 10, 100]
