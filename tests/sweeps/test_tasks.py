"""What every Task must do: the same suite over all of them, and over one without a store, that minimises, and has two
objectives."""

import json
import random
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from storage.checkpoints import StoredCheckpoint
from storage.tracking import Tracker
from sweeps.cluster.session import ray_session
from sweeps.cluster.tune import Run
from sweeps.driver import run_searches
from sweeps.findings.answer import choose, table
from sweeps.flags import ModelAndData
from sweeps.progress import Progress
from sweeps.search.halving import HalvingSearch
from sweeps.search.samplers import SAMPLERS
from sweeps.search.study import write_study
from sweeps.search.task import Fit, Result, Task
from tests.tasks import Descent
from tests.workers import forked_workers


def descent(tiny_model, store) -> Task:
    return Descent()


def layer_noise(tiny_model, store) -> Task:
    from sweeps.probing.extractor import Extractor
    from sweeps.probing.plan import set_up

    flags = ModelAndData(tiny_model, "digits", ("mid", "up.0.0", "up.1.0"), (10, 100), store=str(store))
    task = set_up(flags, poolings=(1, 2), heads=("ridge", "linear"))[0]
    extractor = Extractor(task.source)
    for need in {need for cell in task.cells for need in task.needs(cell, task.rungs[-1])}:
        extractor.ensure(need)
    return task


def finetune(tiny_model, store) -> Task:
    from ddae.finetune import RECIPES
    from sweeps.finetuning.task import FinetuneTask
    from sweeps.probing.source import load_model, open_source

    flags = ModelAndData(tiny_model, "digits", store=str(store))
    source, _ = open_source(flags, load_model(flags), pooling=4)
    recipe = replace(RECIPES["ddae"], batch_size=10)
    return FinetuneTask(
        source, 2, "linear", recipe, False, 32, 1, ("finetune", "scratch"), ("mid", "up.0.0"), (10,), (20,),
        (1e-4, 1e-3), (0.0, 0.1), ("fresh", "probe"), ("flip+crop",), (0,),
    )  # fmt: skip


def noisy_classifier(tiny_model, store) -> Task:
    from sweeps.noisy.setup import set_up
    from sweeps.noisy_classifier import NoiseConditional
    from sweeps.probing.extractor import Extractor

    small = {"num_levels": 3, "num_between": 1, "num_images": 200, "num_val": 60, "num_draws": 2}
    names = {"backbone": tiny_model, "dataset": "digits", "blocks": ("mid",), "store": str(store)}
    task = set_up(NoiseConditional(**names, **small, poolings=(1,), widths=(1,))).task
    extractor = Extractor(task.source)
    for need in task.needs(task.cells[0], task.rungs[-1]):
        extractor.ensure(need)
    return task


def feature_learning(tiny_model, store) -> Task:
    from sweeps.dynamics.sweep import set_up
    from sweeps.feature_learning import FeatureLearning

    data = {"num_samples": (4, 8), "signal_norms": (2, 6), "dimension": 40}
    return set_up(FeatureLearning(**data, num_filters=3, init_std=0.01, steps=300, seeds=2, images=False)).patches


TASKS = {
    "descent": descent,
    "layer-noise": layer_noise,
    "finetune": finetune,
    "noisy-classifier": noisy_classifier,
    "feature-learning": feature_learning,
}


@pytest.fixture(scope="module", params=TASKS)
def task(request, tiny_model, tmp_path_factory) -> Task:
    """What it needs stands in the store."""
    return TASKS[request.param](tiny_model, tmp_path_factory.mktemp("store"))


class Bench:
    """Results of a task, made one by one in this process and remembered."""

    def __init__(self, task: Task, folder: Path):
        self.task, self.folder, self.results = task, folder, {}

    def checkpoint(self, cell) -> StoredCheckpoint:
        return StoredCheckpoint(self.folder, self.task.key(cell, self.task.rungs[-1]))

    def result(self, fit) -> Result:
        if fit not in self.results:
            [self.results[fit]] = self.task.run([fit.cell], fit.rung, [self.checkpoint(fit.cell)])
        return self.results[fit]


@pytest.fixture(scope="module")
def bench(task, tmp_path_factory) -> Bench:
    return Bench(task, tmp_path_factory.mktemp("checkpoints"))


def play(search: HalvingSearch, bench: Bench, num_workers: int = 1, order: random.Random | None = None):
    """Work on num_workers fits at once, whose results arrive in a random order; returns what was tried."""
    running = []
    while not search.ended:
        while len(running) < num_workers and (fit := search.ask()):
            running.append(fit)
        fit = running.pop(order.randrange(len(running)) if order else 0)
        search.tell(fit, bench.result(fit))
    return tried(search.trials)


def tried(trials) -> list[tuple]:
    return [(t.cell, t.state, {rung: numbers(result) for rung, result in t.results.items()}) for t in trials]


def numbers(result: Result) -> tuple:
    """All of a result but for its times."""
    return dict(result.metrics), dict(result.params), result.right


def order_changes_nothing(task, bench, sampler):
    expected = play(HalvingSearch(task, 10, sampler), bench)
    for num_workers in (2, 7):
        assert play(HalvingSearch(task, 10, sampler), bench, num_workers, random.Random(0)) == expected


def test_workers_and_the_order_of_their_answers_change_nothing(task, bench):
    order_changes_nothing(task, bench, "optuna")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nor_do_they_under_any_sampler(sampler, tmp_path):
    order_changes_nothing(task := Descent(), Bench(task, tmp_path), sampler)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nor_do_they_in_any_task(task, bench, sampler):
    order_changes_nothing(task, bench, sampler)


def test_fewer_trials_are_a_prefix_of_more(task, bench):
    most = play(HalvingSearch(task, 10), bench)
    assert play(HalvingSearch(task, 5), bench) == most[:5]
    assert {state for _, state, _ in most} <= {"stopped", "finished"} and any(s == "finished" for _, s, _ in most)


class Mirrored:
    """The task with minus its metrics, to be driven the other way."""

    def __init__(self, task: Task):
        self._task = task
        ways = {"maximize": "minimize", "minimize": "maximize"}
        self.objectives = tuple(replace(o, direction=ways[o.direction]) for o in task.objectives)

    def __getattr__(self, name: str):
        return getattr(self._task, name)


def test_minimising_works_as_maximising_does(task, bench):
    mirrored = Mirrored(task)
    mirror = Bench(mirrored, bench.folder)
    names = [objective.metric for objective in task.objectives]

    def negated(fit) -> Result:
        result = bench.result(fit)
        return replace(result, metrics={n: -v if n in names else v for n, v in result.metrics.items()})

    mirror.result = negated
    there, back = HalvingSearch(task, 12), HalvingSearch(mirrored, 12)
    play(there, bench)
    play(back, mirror)
    assert [(t.cell, t.state) for t in there.trials] == [(t.cell, t.state) for t in back.trials]
    assert choose(task, there.trials).best.cell == choose(mirrored, back.trials).best.cell


def test_cells_that_share_a_read_may_be_run_together(task, bench):
    rung, first = task.rungs[-1], task.cells[0]
    alike = [cell for cell in task.cells if task.reads(cell, rung) == task.reads(first, rung)][:4]
    assert len(alike) > 1 or task.name in ("finetune", "noisy-classifier")
    together = list(task.run(alike, rung, [bench.checkpoint(cell) for cell in alike]))
    alone = [bench.result(Fit(cell, rung)) for cell in alike]
    assert [numbers(result) for result in together] == [numbers(result) for result in alone]


def test_a_trial_that_goes_on_from_its_checkpoint_ends_as_one_that_does_not(task, tmp_path):
    cell = task.cells[-1]

    def result(folder: str, rung: int) -> Result:
        checkpoint = StoredCheckpoint(tmp_path / folder, task.key(cell, task.rungs[-1]))
        return next(iter(task.run([cell], rung, [checkpoint])))

    for rung in task.rungs:
        through = result("through", rung)
    assert numbers(through) == numbers(result("at once", task.rungs[-1]))
    assert numbers(result("through", task.rungs[0])) == numbers(result("again", task.rungs[0]))


def test_a_result_is_a_record(task, bench):
    result = bench.result(Fit(task.cells[0], task.rungs[0]))
    assert Result(**json.loads(json.dumps(result.as_record()))) == result
    assert {objective.metric for objective in task.objectives} <= result.metrics.keys()


def test_keys_differ_where_results_may(task):
    keys = {task.key(cell, rung) for cell in task.cells for rung in task.rungs}
    assert len(keys) == len(task.cells) * len(task.rungs)
    assert len({task.label(cell) for cell in task.cells}) == len(task.cells)
    assert all(getattr(cell, name) in axis.values for cell in task.cells for name, axis in task.axes.items())


def test_every_task_has_its_table_and_its_study(task, bench, tmp_path):
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    search = HalvingSearch(task, 8)
    play(search, bench)
    rows = table(task, search.trials)
    assert len(rows) == 8 and {*task.axes, task.resource, "stopped_early"} <= rows[0].keys()
    best = choose(task, search.trials).best
    assert [rows[0][name] for name in task.axes] == [getattr(best.cell, name) for name in task.axes]
    (tmp_path / "sweep").mkdir()
    write_study(tmp_path / "sweep" / "optuna.log", task, search.trials)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "sweep" / "optuna.log")))
    study = optuna.load_study(study_name="sweep", storage=storage)
    assert [direction.name.lower() for direction in study.directions] == [o.direction for o in task.objectives]
    assert [{name: t.params[name] for name in task.axes} for t in study.trials] == [
        {name: getattr(t.cell, name) for name in task.axes} for t in search.trials
    ]


def test_what_makes_no_sense_is_one_line(task):
    with pytest.raises(ValueError, match=r"num_trials=0 must be 1 or more"):
        HalvingSearch(task, 0)
    with pytest.raises(ValueError, match=r"search='bayes' is not known; allowed: optuna, random, grid"):
        HalvingSearch(task, 1, "bayes")


@pytest.fixture(scope="module")
def ray():
    with forked_workers() as python, mock.patch.object(sys, "executable", str(python)), ray_session():
        yield


def ready(fit, lost) -> Future:
    done: Future = Future()
    done.set_result(None)
    return done


def on_ray(test):
    """The test on a Ray; with tasks whose command is tested on one as well, it is slow."""
    often = "descent", "layer-noise"
    tasks = [name if name in often else pytest.param(name, marks=pytest.mark.slow) for name in TASKS]
    return pytest.mark.usefixtures("ray")(pytest.mark.parametrize("task", tasks, indirect=True)(test))


@pytest.fixture
def tracker(tmp_path) -> Tracker:
    return Tracker(f"sqlite:///{tmp_path}/mlflow.db", "tasks", "sweep", "sweep")


def children(tracker: Tracker) -> list[tuple[str, str]]:
    return sorted((run.info.run_name, run.info.status) for run in tracker._children())


def run(tasks: Sequence[Task], store: Path, tracker: Tracker, num_trials: int = 6):
    """(the trials of each task's search, the intervals in which they worked), on Ray."""
    runs = [Run(HalvingSearch(task, num_trials), str(store), ready) for task in tasks]
    busy: list[tuple[float, float]] = []
    return [tried(trials) for trials in run_searches(runs, tracker, Progress(), busy)], busy


@on_ray
def test_a_rerun_is_a_resume_and_a_trial_is_a_child(task, bench, tmp_path, tracker):
    run([task], tmp_path, tracker, num_trials=3)
    next((tmp_path / "ledger").rglob("*.json")).unlink()
    [trials], _ = run([task], tmp_path, tracker)
    assert trials == play(HalvingSearch(task, 6), bench)
    expected = [(task.label(c), "KILLED" if state == "stopped" else "FINISHED") for c, state, _ in trials]
    assert children(tracker) == sorted(expected)
    again, busy = run([task], tmp_path, tracker)
    assert (again, busy, children(tracker)) == ([trials], [], sorted(expected))


@on_ray
def test_two_sweeps_interleave_under_one_parent(task, bench, tmp_path, tracker):
    other = Descent(notes=str(tmp_path), seed=1)
    [ours, theirs], busy = run([task, other], tmp_path, tracker)
    assert ours == play(HalvingSearch(task, 6), bench)
    assert theirs == play(HalvingSearch(other, 6), Bench(other, tmp_path / "alone"))
    labels = [task.label(cell) for cell, *_ in ours] + [other.label(cell) for cell, *_ in theirs]
    assert [name for name, _ in children(tracker)] == sorted(labels)
    assert len(busy) == sum(len(results) for _, _, results in ours + theirs)


@pytest.mark.usefixtures("ray")
def test_cells_that_share_a_read_are_run_together_and_no_step_is_taken_twice(tmp_path, tracker):
    (tmp_path / "notes").mkdir()
    task = Descent(notes=str(tmp_path / "notes"))
    search = HalvingSearch(task, 45, "random")
    run_searches([Run(search, str(tmp_path / "store"), ready)], tracker, Progress(), [])
    calls = [file.read_text().splitlines() for file in (tmp_path / "notes").iterdir()]
    steps = [line for call in calls for line in call]
    assert len(steps) == len(set(steps))  # the second rung goes on where the first ended
    assert len(calls) < sum(len(trial.results) for trial in search.trials)
    assert all(len({line.split("/")[0] for line in call}) == 1 for call in calls)


@pytest.mark.usefixtures("ray")
def test_a_cell_that_is_a_mistake_is_one_line(tmp_path, tracker):
    with pytest.raises(ValueError, match=r"start=5 is unlucky; leave it out") as mistake:
        run([Descent(unlucky=5)], tmp_path, tracker, num_trials=45)
    assert "\n" not in str(mistake.value)
