"""Measures the answer of a finished sweep on the test set, of any Task that ends in a classifier."""

from pathlib import Path
from typing import Any

import numpy as np

from ddae.datasets import is_uneven
from ddae.probe import balanced_accuracy, standard_error
from ddae.report.page import with_test
from storage.files import published
from storage.tracking import Tracker, check_server, tracking_uri
from sweeps.classifiers import room_of
from sweeps.findings.answer import without_text
from sweeps.findings.folder import RECORD, Tested, newest_sweep, read_test, test_text, write_test

__all__ = ["RECORD", "measure", "newest_sweep", "read_test", "room_of"]


def measure(folder: Path, date: str) -> Tested:
    """Fit the answer again on all training images, score it on the test images, and record that in the folder, on its
    page and in MLflow."""
    check_server(tracking_uri())
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
    page = folder / "report.html"
    if page.exists():
        html = with_test(page.read_text(encoding="utf-8"), test_text(tested, folder, fitted.name))
        with published(page) as part:
            part.write_text(html, encoding="utf-8")
    tracker = Tracker(tracking_uri(), fitted.experiment, folder.name, folder.name)
    metrics = {"test_accuracy": accuracy, "test_stderr": tested.test_stderr}
    tracker.finish(metrics, [page] if page.exists() else [])
    write_test(folder, tested)
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
