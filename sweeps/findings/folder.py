"""A sweep's own folder: which process works in it, and the results that say that it is done."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from storage.files import published

RESULTS = "results.json"


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Two drivers of one sweep would take each other's trials for interrupted ones, so the second is refused."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"another process is running this sweep ({folder}); wait for it, or stop it") from error
    try:
        yield
    finally:
        lock.release()


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Written last: a sweep that has results is done."""
    with published(folder / RESULTS) as part:
        part.write_text(json.dumps(results, indent=1))


def read_results(folder: Path) -> dict[str, Any]:
    """Raises ValueError where the folder holds no finished sweep of this version."""
    path = folder / RESULTS
    if not path.exists():
        raise ValueError(f"--sweep {folder} holds no finished sweep; give a folder that holds {RESULTS}")
    try:
        results = json.loads(path.read_text())
        assert {"task", "flags", "answer"} <= results.keys()
    except (ValueError, AttributeError, AssertionError) as error:
        raise ValueError(f"{path} is damaged, or of an earlier version; run its sweep again") from error
    return results


def newest_sweep(out: Path, task: str = "*") -> Path:
    """The folder of the sweep that was finished last, of one kind or of any."""
    finished = sorted(out.glob(f"{task}-*/{RESULTS}"), key=lambda path: path.stat().st_mtime)
    if not finished:
        raise ValueError(f"no finished sweep in --out {out}; run `python sweeps/layer_noise.py` first")
    return finished[-1].parent
