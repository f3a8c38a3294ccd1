"""Measures the answer of a finished sweep on the test set, of any Task that ends in a classifier."""

from pathlib import Path

from ddae.probe import standard_error
from ddae.report.page import with_test
from storage.files import published
from sweeps.classifiers import room_of
from sweeps.cli import check_writable
from sweeps.findings import logged
from sweeps.findings.folder import RECORD, Tested, named, newest_sweep, read_test, test_text, write_test
from sweeps.findings.logged import incomplete, log_again

__all__ = ["RECORD", "incomplete", "log_again", "measure", "named", "newest_sweep", "read_test", "room_of"]


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
