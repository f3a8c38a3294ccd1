"""Runs a sweep of any Task: alone in its folder, open in MLflow, its trials on Ray Tune, several searches side by
side."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import yaml

from storage.secrets import hidden
from storage.tracking import Tracker, check_server, tracking_uri
from sweeps.cli import check_writable
from sweeps.cluster.beside import beside
from sweeps.cluster.session import check_cluster, ray_session
from sweeps.cluster.tune import Run, run_trials
from sweeps.findings.folder import only_process
from sweeps.findings.logged import trial_as_json
from sweeps.progress import Progress
from sweeps.search.halving import HalvingSearch
from sweeps.search.task import Fit, Task, Trial

log = logging.getLogger("sweeps")

PATIENCE_SECONDS = 10
"""How long an interrupted sweep waits for the trials that are being logged, and another one before it says that it
waits."""

RENEWED = ("prefer", "memory", "gpus_per_fit", "atlas")
"""Flags that the same sweep may be given anew with another value, which a param of MLflow would not take."""


@contextmanager
def open_run(
    folder: Path,
    experiment: str,
    store: str,
    task: Task,
    columns: Sequence[str],
    flags: dict,
    params: Mapping[str, object],
) -> Iterator[Tracker]:
    """The sweep's run in MLflow, on a running cluster, until the block ends; no other process may run the sweep.

    flags: for config.yaml, from which the sweep is opened again. params: more params of the run. columns: of the table
    of trials.
    """
    check_server(tracking_uri())
    check_cluster()
    check_writable(folder, store)

    def open_tracker() -> Tracker:
        tracker = logged.enter_context(Tracker(tracking_uri(), experiment, folder.name, folder.name))
        objective = task.objectives[0]
        tracker.log_params({name: value for name, value in {**flags, **params}.items() if name not in RENEWED})
        tracker.show(objective.metric, columns, tuple(task.axes), ascending=objective.direction == "minimize")
        if trouble := tracker.artifact_trouble():
            log.warning(f"{trouble}. The sweep goes on; what cannot be logged then is logged by the same command later")
        return tracker

    with only_process(folder), ExitStack() as logged:
        (folder / "config.yaml").write_text(yaml.safe_dump(flags))
        opening = beside(open_tracker)  # MLflow takes seconds to load, in which Ray's processes start
        try:
            with ray_session():
                yield opening.result()
        finally:
            wait([opening], PATIENCE_SECONDS)


def run_searches(
    runs: Sequence[Run],
    tracker: Tracker,
    progress: Progress,
    busy: list[tuple[float, float]],
    title: str = "search",
) -> list[list[Trial]]:
    """The trials of each run's HalvingSearch, in the order of proposal; all are children of the tracker's run.

    busy: takes the wall-clock intervals, in seconds since the epoch, in which trials worked. title: of what is shown.
    """
    searches: list[HalvingSearch] = [run.search for run in runs]  # type: ignore[misc]
    progress.stage(title)
    with progress, _logging(searches, tracker) as log_new:

        def on_results() -> None:
            ended = [(search.task, trial) for search in searches for trial in search.ended_trials]
            num_stopped = sum(trial.stopped_early for _, trial in ended)
            best = best_text(*max(ended, key=_standing)) if ended else ""
            progress.trials(len(ended), sum(search.num_trials for search in searches), num_stopped, best)
            log_new()

        run_trials(runs, busy, on_results)
    return [search.trials for search in searches]


def no_needs(fit: Fit, lost: bool) -> Future[None]:
    """The `prepare` of a Run whose task needs nothing in the store."""
    done: Future[None] = Future()
    done.set_result(None)
    return done


def best_text(task: Task, trial: Trial) -> str:
    return f"{task.objectives[0].text(trial.last)} {task.label(trial.cell)}"


def _standing(ended: tuple[Task, Trial]) -> tuple[bool, float]:
    task, trial = ended
    return not trial.stopped_early, task.objectives[0].merit(trial.last)


@contextmanager
def _logging(searches: Sequence[HalvingSearch], tracker: Tracker) -> Iterator[Callable[[], None]]:
    """Yield a function that has every ended trial that MLflow lacks logged in the background. What cannot be logged is
    tried again with the next one, and once at the end; what is missing then is logged with the findings."""
    some, over = threading.Event(), threading.Event()
    num_logged = [0] * len(searches)

    def log_all() -> None:
        for number, search in enumerate(searches):
            for trial in search.ended_trials[num_logged[number] :]:
                tracker.log_child(**trial_as_json(search.task, trial))
                num_logged[number] += 1

    def log_on() -> None:
        last = False
        while not last and some.wait():
            some.clear()
            last = over.is_set()
            with tracker.hurried() if last else nullcontext(), suppress(ValueError, OSError):
                log_all()

    writer = threading.Thread(target=log_on, daemon=True)  # an interrupt does not wait for a server that is away
    writer.start()
    try:
        yield some.set
    finally:
        over.set()
        some.set()
        writer.join(PATIENCE_SECONDS)
        if writer.is_alive() and not sys.exc_info()[0]:
            log.warning(f"all is fitted; waiting for MLflow at {hidden(tracker.uri)}")
            writer.join()
