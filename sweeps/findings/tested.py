"""The record that an answer has been measured on the test set, which happens once."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from storage.files import published

RECORD = "final_test.json"


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
        f"({tested.num_test:,} images), measured once, on {tested.date}{other}."
    )
