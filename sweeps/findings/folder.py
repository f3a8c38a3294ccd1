"""A sweep's own folder: which process works in it, the results that say that it is done, and the record that its
answer has been measured on the test set, which happens once."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from storage.files import published

RESULTS, RECORD = "results.json", "final_test.json"


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


@dataclass(frozen=True)
class Tested:
    """What final_test.json records: the cell, fitted again, on the test images."""

    cell: str
    setting: str
    num_train: int
    num_test: int
    test_accuracy: float
    test_stderr: float
    val_accuracy: float
    date: str
    notes: str = ""
    """What else the test images say: balanced accuracy, and what those that are in train do to the number."""


def read_test(folder: Path) -> Tested | None:
    """What final_test.py has recorded of the sweep in a folder, if it has."""
    record = folder / RECORD
    if not record.exists():
        return None
    try:
        return Tested(**json.loads(record.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{record}, the record that the test set has been looked at, is damaged; restore it, "
            "or delete it to look again"
        ) from error


def write_test(folder: Path, tested: Tested) -> None:
    with published(folder / RECORD) as part:
        part.write_text(json.dumps(asdict(tested), indent=1))


def test_text(tested: Tested | None, folder: Path, cell: str) -> str:
    """What the page says of the test set. cell: the answer."""
    if tested is None:
        return f"The test images have not been looked at. Once: python sweeps/final_test.py --sweep {folder}"
    other = "" if tested.cell == cell else f", of {tested.cell}, which was the answer then"
    return (
        f"On test {100 * tested.test_accuracy:.1f} +- {100 * tested.test_stderr:.1f} % "
        f"({tested.num_test:,} images), measured once, on {tested.date}{other}.{' ' * bool(tested.notes)}{tested.notes}"
    )
