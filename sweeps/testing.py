"""Measures the answer of a finished sweep on the test set, of any Task that ends in a classifier."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ddae.datasets import is_uneven
from ddae.probe import measured
from ddae.report.page import with_test
from storage.files import published
from sweeps.classifiers import Classifier, newest, room_of
from sweeps.cli import check_writable
from sweeps.findings import logged
from sweeps.findings.answer import without_text
from sweeps.findings.folder import RECORD, Tested, named, read_test, test_text, write_test
from sweeps.findings.logged import NOT_LOGGED, incomplete, log_again

__all__ = [
    "NOT_LOGGED",
    "RECORD",
    "incomplete",
    "log_again",
    "measure",
    "named",
    "newest",
    "read_test",
    "room_of",
]


def measure(folder: Path, date: str) -> Tested:
    """Score the answer, fitted on all training images, on the test images, and record that in the folder, then on its
    page and in MLflow."""
    check_writable(folder)
    logged.check(folder)
    fitted: Classifier = room_of(folder).reopen(folder, ("test",))
    correct, labels, on_val = fitted.correct("test"), fitted.dataset.labels("test"), fitted.result.metrics
    metrics = dict(zip(("test_accuracy", "test_stderr"), measured(correct, labels, "accuracy"), strict=True))
    chosen_by = fitted.task.objectives[0].measure
    if chosen_by != "accuracy" or "val_balanced_accuracy" in on_val or is_uneven(labels):
        balanced = measured(correct, labels, "balanced accuracy")
        metrics |= zip(("test_balanced_accuracy", "test_balanced_stderr"), balanced, strict=True)
    tested = Tested(
        cell=fitted.name,
        setting=str(fitted.result.params.get("setting", "")),
        num_train=fitted.num_train,
        num_test=len(correct),
        **metrics,
        **{name: on_val[name] for name in ("val_accuracy", "val_balanced_accuracy") if name in on_val},
        date=date,
        notes=notes_of(fitted, correct, metrics),
        measure=chosen_by,
    )
    page = folder / "report.html"
    logged.add(folder, fitted.experiment, metrics, [page])
    write_test(folder, tested)
    if page.exists():
        html = with_test(page.read_text(encoding="utf-8"), test_text(tested, folder, fitted.name))
        with published(page) as part:
            part.write_text(html, encoding="utf-8")
    log_again(folder)
    return tested


def notes_of(fitted: Classifier, correct: np.ndarray, metrics: Mapping[str, float]) -> str:
    """What else there is to say of the test images that are right, bool [n]. metrics: what is measured on them."""
    notes, twins = [], fitted.dataset.twins.get("test", np.zeros(0, dtype=bool))
    labels, chosen_by = fitted.dataset.labels("test"), fitted.task.objectives[0].measure
    if "test_balanced_accuracy" in metrics:
        other = "balanced accuracy" if chosen_by == "accuracy" else "accuracy"
        value, stderr = measured(correct, labels, other)
        notes.append(f"{other} {100 * value:.1f} +- {100 * stderr:.1f} %")
    if twins.any():
        notes.append(without_text(correct, labels, twins, "test", "train or val", chosen_by))
    return "; ".join(notes)
