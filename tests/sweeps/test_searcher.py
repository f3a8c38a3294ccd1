from dataclasses import asdict

import optuna
import pytest
from optuna.trial import TrialState

from ddae.backbones import Block
from sweeps.tuning.searcher import Axes, OptunaSearcher, finished_trials, open_study
from sweeps.tuning.space import Space

BLOCKS = tuple(Block(f"up.{i}.0", i + 1, "up", channels=8, size=2**i, flops_share=(i + 1) / 4) for i in range(4))
SPACE = Space(BLOCKS, (0, 10, 100), (1, 2), ("linear", "attention-1", "attention-2"))


def searcher_of(study, num_trials=1000, first=(), space=SPACE, **more):
    return OptunaSearcher(space, study, more.pop("candidates", space.candidates), num_trials, first, **more)


def accuracy(config):
    return 0.5 + 0.1 * (config["block"] == "up.2.0") + 0.1 * (config["timestep"] == 10)


def play(searcher, num_trials=1000, stop_every=3):
    """Run suggestions to their end as Tune would; every third is stopped at the first of two rungs."""
    configs = []
    for i in range(num_trials):
        config = searcher.suggest(str(i))
        if config == searcher.FINISHED:
            break
        configs.append(config)
        value = accuracy(config)
        stopped = len(configs) % stop_every == 0
        if not stopped:
            searcher.on_trial_result(str(i), {"val_accuracy": value - 0.1, "num_images": 300})
        result = {"val_accuracy": value, "num_images": 300 if stopped else 1200, "last_rung": not stopped}
        searcher.on_trial_complete(str(i), result)
    return configs


@pytest.fixture
def path(tmp_path):
    return tmp_path / "optuna.journal"


def cells(configs):
    return [tuple(config.values()) for config in configs]


def test_poolings_larger_than_a_map_are_no_cells():
    assert len(SPACE.candidates) == 3 * (1 + 2 + 2 + 2) * 1 + 3 * 3 * 2  # attention wants a 2x2 grid at least
    assert all(candidate.pooling <= SPACE.block(candidate.block).size for candidate in SPACE.candidates)


@pytest.mark.parametrize("sampler", ["optuna", "random"])
def test_no_cell_twice_and_the_space_is_exhausted(path, sampler):
    searcher = searcher_of(open_study(path, sampler, 0))
    configs = cells(play(searcher))
    assert len(configs) == len(set(configs)) == len(SPACE.candidates)


def test_what_was_stopped_is_pruned_with_its_step(path):
    study = open_study(path, "random", 0)
    play(searcher_of(study, 6))
    states = [(t.state, list(t.intermediate_values)) for t in finished_trials(study)]
    assert states.count((TrialState.PRUNED, [300])) == 2
    assert states.count((TrialState.COMPLETE, [300, 1200])) == 4


def test_the_first_cells_are_the_ones_asked_for(path):
    first = [SPACE.candidates[7], SPACE.candidates[3]]
    configs = play(searcher_of(open_study(path, "optuna", 0), 5, first))
    assert [Axes(SPACE).params(candidate) for candidate in first] == [t.params for t in optuna_trials(path)[:2]]
    assert len(configs) == 5


def optuna_trials(path):
    return finished_trials(open_study(path, "random", 0))


def test_grid_is_every_cell_in_order(path):
    configs = play(searcher_of(open_study(path, "random", 0), in_order=True))
    assert cells(configs) == [(c.block, c.timestep, c.pooling, c.head) for c in SPACE.candidates]


def test_an_interrupted_search_goes_on(path):
    before = searcher_of(open_study(path, "random", 0), 10)
    done = cells(play(before, num_trials=4))
    cut_off = tuple(before.suggest("cut-off").values())
    after = searcher_of(open_study(path, "random", 0), 10)
    rest = cells(play(after))
    assert rest[0] == cut_off
    assert len(rest) == 6
    assert not set(rest) & set(done)


@pytest.mark.parametrize("cut", ["queued", "half-asked"])
def test_a_kill_while_asking_does_no_harm(path, cut):
    study = open_study(path, "random", 0)
    params = Axes(SPACE).params(SPACE.candidates[5])
    if cut == "queued":
        study.enqueue_trial(params)
    else:
        study.ask({"block": optuna.distributions.IntDistribution(0, 3)})
    configs = cells(play(searcher_of(open_study(path, "random", 0), 10)))
    assert len(configs) == len(set(configs)) == 10
    assert (configs[0] == tuple(asdict(SPACE.candidates[5]).values())) == (cut == "queued")


@pytest.mark.parametrize("sampler", ["optuna", "random"])
def test_only_what_the_race_left_is_tried(path, sampler):
    left = SPACE.candidates_at({10: ("up.1.0", "up.2.0")})
    configs = cells(play(searcher_of(open_study(path, sampler, 0), candidates=left)))
    assert sorted(configs) == sorted((c.block, c.timestep, c.pooling, c.head) for c in left)


def test_a_size_is_an_axis_of_its_own_head_alone(path):
    study = open_study(path, "optuna", 0)
    play(searcher_of(study))
    axes = Axes(SPACE)
    for trial in finished_trials(study):
        assert ("attention size" in trial.params) == (trial.params["head"] == "attention")
        assert axes.params(axes.candidate(trial.params)) == trial.params


def test_the_seed_decides(tmp_path):
    def run(name, seed):
        return cells(play(searcher_of(open_study(tmp_path / name, "optuna", seed), 20)))

    assert run("a", 0) == run("b", 0)
    assert run("c", 0) != run("d", 1)


def test_tpe_finds_the_good_corner_sooner_than_chance(tmp_path):
    """Half of the cells find half of the 4 best by chance: 20 over 10 seeds, with a deviation of 3."""
    found = 0
    for seed in range(10):
        study = open_study(tmp_path / str(seed), "optuna", seed)
        configs = play(searcher_of(study, len(SPACE.candidates) // 2), stop_every=1000)
        found += sum(accuracy(config) > 0.69 for config in configs)
    assert found >= 25


def test_optuna_dashboard_sees_the_cells(path):
    play(searcher_of(open_study(path, "random", 0), 3))
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    [study] = optuna.get_all_study_summaries(storage)
    assert study.n_trials == 3
    assert all("/" in t.user_attrs["cell"] for t in optuna.load_study(study_name="sweep", storage=storage).trials)
