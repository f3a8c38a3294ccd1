from dataclasses import replace

import numpy as np
import pytest

from ddae.backbones import Block, Settings
from ddae.features import FeatureKey
from ddae.probe import Candidate, ProbeResult
from sweeps.tuning import outcome
from sweeps.tuning.evaluation import from_record, to_record
from sweeps.tuning.outcome import FinishedTrial, LabelFree
from sweeps.tuning.plan import Plan, choose_rungs, sweep_folder
from sweeps.tuning.race import Race
from sweeps.tuning.space import Space

BLOCKS = (Block("mid", 1, "mid", 16, 4, 0.25), Block("up.0.0", 1, "up", 8, 8, 0.5))
KEY = FeatureKey("weights", "images", split_seed=0, val_fraction=0.2, noise_seed=0, draw=0, pooling=4)


@pytest.fixture
def plan(tmp_path):
    labels = {"train": np.zeros(800, dtype=np.int64), "val": np.zeros(200, dtype=np.int64)}
    space = Space(BLOCKS, (0, 10), (1, 2), ("linear", "mlp"))
    return Plan(
        name="digits",
        backbone="model",
        dataset="digits",
        data_root="data",
        settings=Settings(),
        encoder="",
        store=str(tmp_path),
        key=KEY,
        space=space,
        looks=(50, 200),
        rungs=(200, 800),
        exhaustive=False,
        keep=0.5,
        finalists=1,
        labels=labels,
        num_classes=10,
        sigmas={0: 0.01, 10: 0.05},
        seed=0,
    )


def result(cell, correct, num_images=800):
    correct = np.asarray(correct, dtype=bool)
    return ProbeResult(Candidate(*cell), num_images, correct.mean(), 0.01, "penalty=1", correct, 0.5, 9.0)


def trial(cell, correct, num_images=800):
    return FinishedTrial(Candidate(*cell), [result(cell, correct, num_images)], num_images < 800)


def test_a_tie_goes_to_the_cheapest(plan):
    rng = np.random.default_rng(0)
    good, as_good, bad = rng.random(200) < 0.9, rng.random(200) < 0.88, rng.random(200) < 0.5
    trials = [
        trial(("up.0.0", 0, 1, "linear"), good),
        trial(("mid", 0, 2, "linear"), as_good),
        trial(("mid", 0, 1, "mlp"), bad),
        trial(("mid", 10, 1, "linear"), np.ones(200), num_images=50),
    ]
    answer = outcome.choose(plan, trials)
    assert answer.winner.candidate.block == "mid" and answer.winner.candidate.pooling == 2
    assert len(answer.tied) == 2 and answer.num_full == 3


def test_no_full_trial_is_an_error(plan):
    with pytest.raises(ValueError, match="raise --num-trials"):
        outcome.choose(plan, [trial(("mid", 0, 1, "mlp"), np.ones(200), num_images=50)])


def test_share_outside_is_what_no_interval_covers():
    assert outcome.share_outside([(2, 4), (3, 5), (9, 20)], 0, 10) == pytest.approx(0.6)
    assert outcome.share_outside([(0, 10)], 0, 10) == 0


def test_records_give_back_the_result():
    before = result(("mid", 0, 1, "mlp"), np.random.default_rng(0).random(203) < 0.5)
    after = from_record(to_record(before))
    assert np.array_equal(before.correct, after.correct)
    assert outcome.to_json(before) == outcome.to_json(after)


def test_rungs_are_quarters_down_to_what_tells_something():
    assert choose_rungs(4800, num_classes=10) == (75, 300, 1200, 4800)
    assert choose_rungs(48000, num_classes=10) == (187, 750, 3000, 12000, 48000)
    assert choose_rungs(4800, num_classes=100) == (1200, 4800)
    assert choose_rungs(40, num_classes=2) == (40,)


def test_half_of_the_timesteps_stay_but_never_too_few(plan):
    def kept(num_timesteps, **race):
        space = replace(plan.space, timesteps=tuple(range(num_timesteps)))
        return [replace(plan, space=space, **race).num_kept(look) for look in range(3)]

    assert kept(7, keep=0.5, finalists=2) == [4, 2, 2]
    assert kept(20, keep=0.25, finalists=1) == [5, 2, 1]
    assert kept(1, keep=0.5, finalists=2) == [1, 1, 1]
    assert kept(7, exhaustive=True) == [7, 7, 7]


def test_the_flag_that_decides_trials_names_another_sweep_and_leaves_the_others_their_folder(plan, tmp_path):
    label_free = replace(plan, start="label-free", looks=(200,))
    default, other = (sweep_folder(tmp_path, one, "optuna", 4) for one in (plan, label_free))
    assert default != other
    assert replace(plan, looks=(200,)).least_and_most() > label_free.least_and_most()


def test_what_the_ranking_would_have_chosen_is_told_with_and_without_a_look_there(plan):
    look = {t: {"mid": np.arange(50) < 40, "up.0.0": np.arange(50) < 30} for t in (0, 10)}
    ranking = np.array([[0.0, 1.0], [2.0, 0.5]])
    label_free = LabelFree(ranking, {"alignment": -ranking, "uniformity": -ranking})
    winner = Candidate("mid", 10, 1, "linear")
    told = outcome.without_labels(plan, winner, Race([look], plan.space.places), label_free)
    assert told.startswith("up.0.0/0 would have been chosen: 20.0 +- 5.7 points lost under ridge on 50 images; ")
    assert "-0.45 over all places, 0.00 over the blocks at one timestep" in told
    told = outcome.without_labels(plan, winner, Race([{10: look[10]}], {10: ("mid", "up.0.0")}), label_free)
    assert told.startswith("up.0.0/0 would have been chosen: ridge did not look there; ")
    assert "1.00 over the places at t = 10, 1.00 over" in told
    trusted = label_free.trust(Race([look], plan.space.places).accuracy(plan))
    assert list(trusted) == ["consensus", "alignment", "uniformity"]
    assert trusted["alignment"].regret == pytest.approx(20)


def test_first_comes_every_pooling_and_head_of_the_best_place(plan):
    look = {10: {"mid": np.ones(50, dtype=bool), "up.0.0": np.arange(50) < 40}}
    first = outcome.warm_start(plan, Race([look], {10: ("mid", "up.0.0")}))
    assert [cell.block for cell in first] == ["mid"] * 4 + ["up.0.0"]
    assert len(set(first)) == 5
