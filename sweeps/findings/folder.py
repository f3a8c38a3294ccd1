"""A sweep's own folder: which process works in it, the results that say that it is done, and the record that its
answer has been measured on the test set, which happens once."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import yaml
from filelock import Timeout

from storage.files import locked, published

RESULTS, RECORD = "results.json", "final_test.json"
ANY_LETTER = {"encoding": "utf-8", "errors": "backslashreplace"}
"""How text is written that may name a file whose name is no text."""


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Two drivers of one sweep would take each other's trials for interrupted ones, so the second is refused."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock", 0))
        except Timeout as error:
            raise ValueError(f"another process is running this sweep ({folder}); wait for it, or stop it") from error
        yield


@contextmanager
def answered(report: str) -> Iterator[None]:
    """What keeps the block from ending does not keep the answer from being printed."""
    try:
        yield
    except Exception:
        print(report)
        raise


def attempt(path: Path, make: Callable[[Path], object]) -> str:
    """Make a file. Returns why that failed, if it did: the answer does not depend on it."""
    try:
        make(path)
    except Exception as error:  # of any library
        return f"{path} could not be made ({type(error).__name__}: {error})"
    return ""


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


def named(folder: Path) -> Path:
    """The folder by its own name, where it was given as . or by a link."""
    return folder if folder.name == folder.resolve().name else folder.resolve()


def started_in(folder: Path) -> Path:
    """The working folder in which a sweep was started, to which an earlier version has recorded its paths; the present
    one where that is not known."""
    try:
        out = Path(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["out"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return Path.cwd()
    above, depth = folder.resolve().parent, len(out.parts)
    is_there = not out.is_absolute() and above.parts[len(above.parts) - depth :] == out.parts
    return Path(*above.parts[: len(above.parts) - depth]) if is_there else Path.cwd()


def newest_sweep(out: Path, *tasks: str) -> Path:
    """The folder of the sweep that was finished last, of these kinds."""
    results = [path for task in tasks for path in out.glob(f"{task}-*/{RESULTS}")]
    finished = sorted(results, key=lambda path: path.stat().st_mtime)
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
    """What else the test images say: what does not choose, and what those that are in train do to the number."""
    measure: str = "accuracy"
    """What has chosen, accuracy or balanced accuracy."""
    test_balanced_accuracy: float | None = None
    test_balanced_stderr: float | None = None
    val_balanced_accuracy: float | None = None

    @property
    def percent(self) -> str:
        """What has chosen, on the test images, and its standard error."""
        if self.test_balanced_accuracy is None or self.test_balanced_stderr is None or self.measure == "accuracy":
            return f"{100 * self.test_accuracy:.1f} +- {100 * self.test_stderr:.1f} %"
        return f"{100 * self.test_balanced_accuracy:.1f} +- {100 * self.test_balanced_stderr:.1f} %"

    @property
    def val_chosen(self) -> float:
        """What has chosen, on val."""
        balanced = self.val_balanced_accuracy
        return self.val_accuracy if balanced is None or self.measure == "accuracy" else balanced


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
        once = f"python sweeps/final_test.py --sweep {quote(str(folder))}"
        return f"The test images have not been looked at. Once: {once}"
    other = "" if tested.cell == cell else f", of {tested.cell}, which was the answer then"
    named = f" {tested.measure}" * (tested.measure != "accuracy")
    says = f"On test {tested.percent}{named} ({tested.num_test:,} images), measured once, on {tested.date}{other}"
    return "; ".join(filter(None, [says, tested.notes])) + "."
