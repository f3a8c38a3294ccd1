"""Ray Tune runs the trials of one search, or of several side by side."""

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from itertools import zip_longest
from math import ceil
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import cloudpickle, tune
from ray.exceptions import RayActorError, RayTaskError
from ray.tune import TuneError
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from storage.checkpoints import StoredCheckpoint
from storage.ledger import Ledger
from sweeps.cluster.given import FOR_FITS, address
from sweeps.cluster.pool import MAX_DEATHS, Warnings
from sweeps.cluster.session import SHARED
from sweeps.search.task import Fit, Resources, Result, Task

NUM_AHEAD = 1000
"""How many fits may wait for what they need."""
MAX_TOGETHER = 16
"""How many cells that read the same are run in one Tune trial at most."""
TRIALS_A_SLOT = 250
"""How many Tune trials one call of Tune runs on each CPU: it keeps 30 KB a trial, and takes two seconds to start."""

log = logging.getLogger("sweeps")


class Search(Protocol):
    """What proposes fits, such as a HalvingSearch."""

    task: Task

    @property
    def ended(self) -> bool: ...

    def ask(self) -> Fit | None: ...

    def tell(self, fit: Fit, result: Result) -> None: ...


@dataclass(frozen=True)
class Run:
    """A search, where its results lie, and how what it needs comes to stand in the store."""

    search: Search
    store: str
    prepare: Callable[[Fit, bool], Future]
    """(fit, whether it stood there and was lost since) -> done when what it needs stands in the store."""


@dataclass(frozen=True)
class Group:
    """Cells of one run that are run together at one rung."""

    run: int
    cells: tuple
    rung: int

    @property
    def fits(self) -> list[Fit]:
        return [Fit(cell, self.rung) for cell in self.cells]


def run_trials(runs: Sequence[Run], busy: list[tuple[float, float]], on_results: Callable[[], None]) -> None:
    """Run what the searches ask for until all have ended.

    busy: takes the wall-clock intervals in which trials worked. on_results: called whenever results have arrived. Tune
    keeps all that it knows of every trial until it returns, so it is called again and again.
    """
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(NUM_AHEAD))  # or processes start one after the other
    searcher = TuneSearcher(runs, capacity, on_results)
    on_results()
    tasks = [(run.search.task, run.store) for run in runs]
    while not searcher.ended:
        searcher.take_back()
        with tempfile.TemporaryDirectory() as unread:  # Tune's own state; the ledger is what a rerun goes on from
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(TaskTrial, tasks=tasks), placement),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=KeepProcesses(),
                    num_samples=int(TRIALS_A_SLOT * capacity().num_cpus),
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=unread,
                    verbose=0,
                    callbacks=[Watch(busy)],
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            )
            try:
                tuner.fit()
            except TuneError as error:
                raise raised_within(error) from error


def raised_within(error: BaseException) -> BaseException:
    """What our own code raised while Tune ran it; Tune makes a text of its traceback."""
    while isinstance(error, TuneError) and (inner := error.__cause__ or error.__context__):
        error = inner
    return error


def capacity() -> Resources:
    """What the cluster has just now."""
    has = ray.cluster_resources()
    return Resources(max(1.0, has.get("CPU", 1)), has.get("GPU", 0))


def largest_memory() -> int:
    """Bytes for trials that the cluster's largest machine has."""
    return max((int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"]), default=0)


def placement(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """What Ray is to hold for a group."""
    held: Resources = config["resources"]
    if held.in_processes_of_its_own:
        return tune.PlacementGroupFactory([{"memory": 1}])  # Ray wants something
    bundle = {"CPU": held.num_cpus, "GPU": held.num_gpus, "memory": held.memory_bytes}
    return tune.PlacementGroupFactory([{name: amount for name, amount in bundle.items() if amount}])


class TaskTrial(tune.Trainable):
    """A Tune trial: a group of cells, each run up to a rung, whose results go into the ledger one by one."""

    def setup(self, config: dict, tasks: Sequence[tuple[Task, str]]) -> None:
        self.tasks, self.warned = tasks, Warnings()
        self.reset_config(config)

    def reset_config(self, new_config: dict) -> bool:
        import torch

        self.group: Group = new_config["group"]
        torch.set_num_threads(max(1, int(new_config["resources"].num_cpus)))
        return True

    def step(self) -> dict:
        """lost: what was gone from the store. mistake: what no retry mends, in one line."""
        task, store = self.tasks[self.group.run]
        ledger, rung = Ledger(f"{store}/ledger"), self.group.rung
        records: list[tuple[int, dict]] = []
        failed = {"lost": "", "mistake": ""}
        try:
            keys = [task.key(cell, rung) for cell in self.group.cells]
            known = [ledger.get(key) for key in keys]
            records += [(number, record) for number, record in enumerate(known) if record is not None]
            numbers = [number for number, record in enumerate(known) if record is None]
            cells = [self.group.cells[number] for number in numbers]
            checkpoints = [StoredCheckpoint(store, task.key(cell, task.rungs[-1])) for cell in cells]
            for number, result in zip(numbers, task.run(cells, rung, checkpoints), strict=True):
                ledger.put(keys[number], record := result.as_record())
                records.append((number, record))
        except LookupError as error:
            failed["lost"] = str(error)
        except (ValueError, OSError) as error:
            failed["mistake"] = str(error)
        return {"records": records, "warnings": self.warned.drain(), "done": True, **failed}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a rerun finds what was done in the ledger, and a task keeps what it wants in its checkpoint."""


class TuneSearcher(Searcher):
    """The searches as Tune asks for them. A fit whose result is known is not asked for, and no other before what it
    needs stands in the store."""

    def __init__(
        self, runs: Sequence[Run], capacity: Callable[[], Resources], on_results: Callable[[], None] = lambda: None
    ):
        super().__init__(metric="done", mode="max")
        self.runs, self.capacity, self.on_results = runs, capacity, on_results
        self._running: dict[str, tuple[Group, Resources]] = {}
        self._waiting: list[dict[Fit, Future]] = [{} for _ in runs]
        self._lost: set[tuple[int, Fit]] = set()
        self._deaths: Counter[Group] = Counter()
        self._warned = False
        for number in range(len(runs)):
            self._go_on(number)

    @property
    def ended(self) -> bool:
        return all(run.search.ended for run in self.runs)

    def suggest(self, trial_id: str) -> dict | str | None:
        if self.ended:
            return Searcher.FINISHED
        if not self._running:  # where nothing runs, Tune sleeps for a second after it is told to wait
            wait([future for waiting in self._waiting for future in waiting.values()], return_when=FIRST_COMPLETED)
        ready = self._ready()
        for number, fit in ready:
            task = self.runs[number].search.task
            held = task.resources(*fit)
            if not self._fits_beside(held):
                continue
            self._check_memory(held)
            group = self._group(number, fit, ready)
            for each in group.fits:
                del self._waiting[number][each]
            self._running[trial_id] = group, held
            return {"group": group, "resources": held}
        return None

    def take_back(self) -> None:
        """Put back what Tune left in the middle: it takes SIGUSR1, Slurm's warning, for a wish to stop."""
        for group, _ in self._running.values():
            self._prepare(group.run, group.fits, lost=False)
        self._running.clear()

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        group, _ = self._running.pop(trial_id)
        if error or result is None:
            self._count_death(group)
            self._prepare(group.run, group.fits, lost=False)
            return
        run, records = self.runs[group.run], dict(result["records"])
        left = [fit for number, fit in enumerate(group.fits) if number not in records]
        if result["lost"]:
            if any((group.run, fit) in self._lost for fit in left):
                raise ValueError(f"{result['lost']}, again; {SHARED}")
            self._lost |= {(group.run, fit) for fit in left}
        self._prepare(group.run, left, lost=bool(result["lost"]))
        for number, record in records.items():
            run.search.tell(group.fits[number], Result(**record))
        self._go_on(group.run)
        self.on_results()

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the state, and a rerun is the way to go on."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as save."""

    def __getstate__(self) -> dict:
        return {}

    def _go_on(self, number: int) -> None:
        """To the fits of a run whose results are not known."""
        run, ledger = self.runs[number], Ledger(f"{self.runs[number].store}/ledger")
        while len(self._waiting[number]) < NUM_AHEAD and (fit := run.search.ask()) is not None:
            if (record := ledger.get(run.search.task.key(*fit))) is None:
                self._prepare(number, [fit], lost=False)
            else:
                run.search.tell(fit, Result(**record))

    def _prepare(self, number: int, fits: Sequence[Fit], lost: bool) -> None:
        for fit in fits:
            self._waiting[number][fit] = self.runs[number].prepare(fit, lost)

    def _ready(self) -> list[tuple[int, Fit]]:
        """The fits that can start, in the order in which they were asked for, the runs by turns, first the one that has
        the fewest groups running. What went wrong while one was prepared is raised."""
        turns, num_running = [], Counter(group.run for group, _ in self._running.values())
        for number in sorted(range(len(self.runs)), key=lambda number: num_running[number]):
            waiting = self._waiting[number]
            done = [fit for fit, prepared in waiting.items() if prepared.done()]
            for fit in done:
                waiting[fit].result()
            turns.append([(number, fit) for fit in done])
        return [each for turn in zip_longest(*turns) for each in turn if each is not None]

    def _fits_beside(self, held: Resources) -> bool:
        """Whether the cluster has room for it now; where nothing runs, Ray itself waits for a machine that has."""
        beside, has = [other for _, other in self._running.values()], self._room(held)
        return not beside or (
            sum(other.num_cpus for other in beside) + held.num_cpus <= has.num_cpus
            and sum(other.num_gpus for other in beside) + held.num_gpus <= has.num_gpus
        )

    def _room(self, held: Resources) -> Resources:
        """What trials that hold so much may take together: those that share GPUs leave a part of each to workers."""
        has = self.capacity()
        return replace(has, num_gpus=has.num_gpus * (FOR_FITS if 0 < held.num_gpus < 1 else 1))

    def _check_memory(self, held: Resources) -> None:
        """Warns where no machine has what a trial is to hold; raises ValueError where none will come."""
        if held.memory_bytes and held.memory_bytes > (has := largest_memory()):
            wanted, there = (f"{num_bytes / 1e9:,.1f} GB" for num_bytes in (held.memory_bytes, has))
            trouble = f"a trial is to hold {wanted} of memory, and the largest machine has {there}"
            if not address():
                raise ValueError(f"{trouble} free for trials; lower --memory")
            if not self._warned:
                log.warning(f"{trouble}; waiting for a larger one")
            self._warned = True

    def _group(self, number: int, first: Fit, ready: Sequence[tuple[int, Fit]]) -> Group:
        """The fit, and others that read the same, but no more than leave work for every slot."""
        task = self.runs[number].search.task
        held = task.resources(*first)
        alike = [
            fit
            for other, fit in ready
            if other == number
            and fit.rung == first.rung
            and task.reads(*fit) == task.reads(*first)
            and task.resources(*fit) == held
        ]
        has = self._room(held)
        rooms = [(has.num_cpus, held.num_cpus), (has.num_gpus, held.num_gpus)]
        num_slots = max(1, min((int(there / each) for there, each in rooms if each), default=1))
        most = min(MAX_TOGETHER, ceil(len(ready) / num_slots))
        return Group(number, tuple(fit.cell for fit in alike[:most]), first.rung)

    def _count_death(self, group: Group) -> None:
        self._deaths[group] += 1
        if self._deaths[group] == MAX_DEATHS:
            names = ", ".join(self.runs[group.run].search.task.label(cell) for cell in group.cells)
            resource = self.runs[group.run].search.task.resource
            raise ValueError(
                f"{names} with {resource}={group.rung:,}: its process died {MAX_DEATHS} times; is there enough memory?"
            )


class KeepProcesses(FIFOScheduler):
    """Keeps the processes of ended trials for those to come, as long as these hold the same of a machine.

    Where no trial waits, as between two rounds of a search, Tune ends all but one of them, and every new one starts
    Python and imports PyTorch.
    """

    kept: tune.PlacementGroupFactory | None = None

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        self._keep(tune_controller, trial.placement_group_factory)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Others may have died with it, so none is kept before the next trial."""
        super().on_trial_error(tune_controller, trial)
        self._keep(tune_controller, None)

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None is preferred: FIFO's own choice, the first that waits, looks at all trials at each step."""

    def _keep(self, tune_controller: Any, placement: tune.PlacementGroupFactory | None) -> None:
        if placement == self.kept:
            return
        controller = getattr(tune_controller, "_tune_controller", tune_controller)
        cache = controller._actor_cache  # Tune has no public word for it
        if self.kept:
            cache.decrease_max(self.kept, NUM_AHEAD)
        if placement:
            cache.increase_max(placement, NUM_AHEAD)
        self.kept = placement


class Watch(tune.Callback):
    """Passes on what workers say, and notes when they worked."""

    def __init__(self, busy: list[tuple[float, float]]):
        self.busy = busy

    def __getstate__(self) -> dict:
        """Nothing: Tune pickles its callbacks for a restore that a rerun makes needless."""
        return {}

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        for message in result["warnings"]:
            log.warning(message)
        if result["mistake"]:
            raise ValueError(f"{trial.config['group'].cells[len(result['records'])]}: {result['mistake']}")
        self.busy += [(record["started_seconds"], record["ended_seconds"]) for _, record in result["records"]]

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        """What a trial, or its start, raised ends the sweep; one whose process died is tried again.

        Tune's own get_error() gives a text, from which the two cannot be told apart.
        """
        file = trial.pickled_error_file
        error = cloudpickle.loads(Path(file).read_bytes()) if file else None
        if isinstance(error, RayTaskError) or (isinstance(error, RayActorError) and error.actor_init_failed):
            cause = error.cause if isinstance(error, RayTaskError) else error
            raise ValueError(f"{trial.config['group'].cells}: {str(cause).strip().splitlines()[-1]}")
