"""What MLflow is to have of a finished sweep, kept in the sweep's folder: whatever keeps it from being logged, the
answer stands, and it is logged later, or to another server."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Timer
from typing import Any

from storage.files import published
from storage.secrets import hidden
from storage.tracking import Tracker, check_server, tracking_uri
from sweeps.findings.folder import ANY_LETTER, RESULTS, only_process, read_results, started_in
from sweeps.search.task import Task, Trial

TRACKED = "tracked.json"
EARLIER = (
    f"is of an earlier version, which kept no {TRACKED}; delete its {RESULTS} and give its command again, which "
    "computes nothing twice"
)
NOT_LOGGED, NOT_DRAWN = "not_logged.txt", "not_drawn.txt"
"""Why MLflow or the report lacks something; not there where all is whole."""
INTERRUPTED = "it was interrupted before all was logged to MLflow; the same command goes on"
PATIENCE_SECONDS = 10
"""How long logging is waited for before it is said."""

warn = logging.getLogger("sweeps").warning


def trial_as_json(task: Task, trial: Trial) -> dict[str, Any]:
    """A trial by the names of Tracker.log_child: params that MLflow's UI can sort and chart, metrics by rung."""
    metrics = [
        (name, value, rung, result.ended_seconds)
        for rung, result in trial.results.items()
        for name, value in {**result.metrics, "wall_seconds": result.run_seconds}.items()
    ]
    return {
        "key": task.key(trial.cell, trial.rung),
        "name": task.label(trial.cell),
        "params": {**task.params(trial.cell), **trial.last.params, task.resource: trial.rung},
        "metrics": metrics,
        "started_seconds": next(iter(trial.results.values())).started_seconds,
        "ended_seconds": trial.last.ended_seconds,
        "stopped_early": trial.stopped_early,
    }


def keep(
    folder: Path,
    tracker: Tracker,
    trials: Iterable[tuple[Task, Trial]],
    metrics: Mapping[str, float],
    note: str,
    artifacts: Sequence[Path],
    undrawn: Sequence[str] = (),
) -> None:
    """Write down all that MLflow is to have of a sweep, before it is logged.

    undrawn: what the report lacks, and why.
    """
    record = {
        "uri": hidden(tracker.uri),
        **tracker.opened,
        "trials": [trial_as_json(task, trial) for task, trial in trials],
        "metrics": {**_test_metrics(folder), **metrics},
        "note": note,
        "artifacts": [str(path.relative_to(folder)) for path in artifacts],
    }
    _write(folder, record)
    _mark(folder / NOT_LOGGED, INTERRUPTED)
    (folder / NOT_DRAWN).unlink(missing_ok=True)
    if failed := [hidden(each) for each in undrawn if each]:
        _mark(folder / NOT_DRAWN, "; ".join(failed))


def log(folder: Path, tracker: Tracker | None = None) -> None:
    """Log what MLflow lacks of a finished sweep. Where that fails, incomplete() has the reason. tracker: open, if there
    is one."""
    record = _read(folder)
    uri = tracking_uri(record["uri"])
    waits = Timer(PATIENCE_SECONDS, warn, [f"all is found; waiting for MLflow at {hidden(uri)}"])
    waits.daemon = True
    waits.start()
    try:
        with tracker.hurried() if tracker else nullcontext():
            _log(record, folder, tracker or _open(record, uri))
    except ValueError as error:
        _mark(folder / NOT_LOGGED, hidden(str(error)))
    else:
        (folder / NOT_LOGGED).unlink(missing_ok=True)
    finally:
        waits.cancel()


def log_again(folder: Path) -> None:
    """Log what an earlier process could not."""
    if (folder / NOT_LOGGED).exists():
        with only_process(folder):
            log(folder)


def finished_report(folder: Path, **flags: object) -> str | None:
    """The report of a sweep that has ended with these flags; what could not be logged then is logged now. None
    where the sweep is to run, if only to draw what could not be drawn."""
    if not (folder / RESULTS).exists() or (folder / NOT_DRAWN).exists():
        return None
    log_again(folder)
    known = read_results(folder)["flags"]
    same = all(known.get(name) == value for name, value in flags.items())
    return (folder / "report.txt").read_text(encoding="utf-8") if same else None


def add(folder: Path, experiment: str, metrics: Mapping[str, float], artifacts: Sequence[Path] = ()) -> None:
    """Have log_again() give a sweep's run more metrics. experiment: of a sweep that was made before such records were
    kept."""
    record: dict[str, Any] = {"params": {}, "trials": [], "metrics": {}, "note": "", "artifacts": []}
    record |= {"uri": hidden(uri_of(folder)), "experiment": experiment, "key": folder.name, "name": folder.name}
    if (folder / TRACKED).exists():
        record = _read(folder)
    names = [*record["artifacts"], *(str(path.relative_to(folder)) for path in artifacts)]
    _write(folder, record | {"metrics": record["metrics"] | metrics, "artifacts": list(dict.fromkeys(names))})
    _mark(folder / NOT_LOGGED, INTERRUPTED)


def uri_of(folder: Path) -> str:
    """Where a sweep is logged: MLFLOW_TRACKING_URI, else where it was."""
    if (folder / TRACKED).exists():
        return tracking_uri(_read(folder)["uri"])
    database = started_in(folder) / "mlflow.db"
    return tracking_uri(f"sqlite:///{database}" if database.exists() else "")


def name_of(folder: Path) -> str:
    """A sweep's own name, whatever its folder is called now."""
    return _read(folder)["key"] if (folder / TRACKED).exists() else folder.resolve().name


def check(folder: Path) -> None:
    """Raises ValueError where a sweep's run in MLflow cannot be opened, before there is more to log."""
    if (folder / TRACKED).exists():
        _open(_read(folder), uri_of(folder))
    else:
        check_server(uri_of(folder))


def incomplete(folder: Path, marks: Sequence[str] = (NOT_DRAWN, NOT_LOGGED)) -> str:
    """What of a finished sweep could not be logged or drawn, and why; empty where all is whole."""
    return "; ".join((folder / mark).read_text(encoding="utf-8") for mark in marks if (folder / mark).exists())


def sync(folders: Sequence[Path], out: Path, task: str) -> str:
    """Log finished sweeps to MLFLOW_TRACKING_URI, those of a task in `out` where no folder is given; what is there is
    not logged again. Returns a line a sweep. Raises ValueError for the first that cannot be logged."""
    lines = []
    for folder in folders or sorted(path.parent for path in out.glob(f"{task}-*/{RESULTS}")):
        read_results(folder)
        record = _read(folder)
        if not record["trials"]:
            raise ValueError(f"{folder} {EARLIER}")
        uri = tracking_uri(record["uri"])
        with only_process(folder):
            _log(record, folder, _open(record, uri))
        lines.append(f"{folder} is logged to {hidden(uri)}")
    if not lines:
        raise ValueError(f"no finished sweep of {task} in --out {out}; name folders after --sync")
    return "\n".join(lines)


def _mark(path: Path, reason: str) -> None:
    path.write_text(reason, **ANY_LETTER)


def _open(record: Mapping[str, Any], uri: str) -> Tracker:
    check_server(uri)
    tracker = Tracker(uri, record["experiment"], record["key"], record["name"])
    tracker.log_params(record["params"])
    if view := record.get("view"):
        tracker.show(**view)
    return tracker


def _log(record: Mapping[str, Any], folder: Path, tracker: Tracker) -> None:
    for trial in record["trials"]:
        tracker.log_child(**trial)
    files = [folder / name for name in record["artifacts"] if (folder / name).exists()]
    tracker.finish(record["metrics"], files, record["note"])


def _test_metrics(folder: Path) -> dict[str, float]:
    """What final_test.py has added for an earlier answer of the same sweep."""
    known = _read(folder)["metrics"] if (folder / TRACKED).exists() else {}
    return {name: value for name, value in known.items() if name.startswith("test_")}


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    with published(folder / TRACKED) as part:
        part.write_text(json.dumps(record, default=lambda number: number.item()))


def _read(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / TRACKED).read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{folder} {EARLIER}") from error
    except ValueError as error:
        raise ValueError(
            f"{folder / TRACKED} is damaged; delete {RESULTS} beside it and give its command again"
        ) from error
