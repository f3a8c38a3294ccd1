"""Measures the answer of a finished sweep on the test set, of any Task that ends in a classifier."""

from pathlib import Path
from typing import Any

import numpy as np

from ddae.datasets import is_uneven
from ddae.probe import balanced_accuracy, standard_error
from ddae.report.page import with_test
from storage.files import published
from sweeps.classifiers import room_of
from sweeps.cli import check_writable
from sweeps.findings import logged
from sweeps.findings.answer import without_text
from sweeps.findings.folder import RECORD, Tested, named, newest_sweep, read_test, test_text, write_test
from sweeps.findings.logged import NOT_LOGGED, incomplete, log_again

__all__ = [
    "NOT_LOGGED",
    "RECORD",
    "incomplete",
    "log_again",
    "measure",
    "named",
    "newest_sweep",
    "read_test",
    "room_of",
]


def measure(folder: Path, date: str) -> Tested:
    """Fit the answer again on all training images, score it on the test images, and record that in the folder, then on
    its page and in MLflow."""
    check_writable(folder)
    logged.check(folder)
    fitted = room_of(folder).reopen(folder, ("test",))
    correct = fitted.correct("test")
    accuracy = float(correct.mean())
    tested = Tested(
        cell=fitted.name,
        setting=str(fitted.result.params.get("setting", "")),
        num_train=fitted.num_train,
        num_test=len(correct),
        test_accuracy=accuracy,
        test_stderr=standard_error(accuracy, len(correct)),
        val_accuracy=fitted.result.metrics["val_accuracy"],
        date=date,
        notes=notes_of(fitted, correct),
    )
    metrics, page = {"test_accuracy": accuracy, "test_stderr": tested.test_stderr}, folder / "report.html"
    logged.add(folder, fitted.experiment, metrics, [page])
    write_test(folder, tested)
    if page.exists():
        html = with_test(page.read_text(encoding="utf-8"), test_text(tested, folder, fitted.name))
        with published(page) as part:
            part.write_text(html, encoding="utf-8")
    log_again(folder)
    return tested


def notes_of(fitted: Any, correct: np.ndarray) -> str:
    """What else there is to say of the test images that are right, bool [n]."""
    notes, twins = [], fitted.dataset.twins.get("test", np.zeros(0, dtype=bool))
    labels = fitted.dataset.labels("test")
    if is_uneven(labels):
        accuracy, stderr = balanced_accuracy(correct, labels)
        notes.append(f"balanced accuracy {100 * accuracy:.1f} +- {100 * stderr:.1f} %")
    if twins.any():
        notes.append(without_text(correct, twins, "test", "train or val"))
    return "; ".join(notes)
