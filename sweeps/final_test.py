"""Test a sweep's answer on the test set, once.

    python sweeps/final_test.py                              # the newest sweep under out/
    python sweeps/final_test.py --sweep out/layer-noise-1a2b3c4d

The sweep chose on val, so its val accuracy is a little too good; this number is not. It is recorded beside the
sweep and in MLflow, and given again, not measured again, when the command is repeated: a test set that is looked at
twice is a second val set.
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps import cli

if TYPE_CHECKING:
    from ddae.probe import Candidate
    from sweeps.tuning.outcome import Tested


@dataclass(frozen=True)
class FinalTest:
    sweep: Path | None = None
    """Folder of a finished sweep."""
    out: Path = Path("out")
    """Where the newest finished sweep is taken from if --sweep is not given."""


def main(config: FinalTest) -> None:
    from sweeps.tuning.outcome import read_test
    from sweeps.tuning.refit import newest_sweep, read_winner

    folder = config.sweep or newest_sweep(config.out)
    record, winner = folder / "final_test.json", read_winner(folder)
    result = read_test(folder) or measure(folder, winner, record)
    if result.cell != winner.name:
        raise ValueError(
            f"the test set has been looked at for {result.cell} ({100 * result.test_accuracy:.1f} %), and the "
            f"sweep has since chosen {winner.name}; delete {record} if you mean to look again"
        )
    print(
        f"{result.cell} ({result.setting}), {result.num_train:,} training images\n"
        f"test accuracy  {100 * result.test_accuracy:.1f} +- {100 * result.test_stderr:.1f} % "
        f"on {result.num_test:,} images, measured once on {result.date}\n"
        f"val accuracy   {100 * result.val_accuracy:.1f} % when it was chosen"
    )


def measure(folder: Path, cell: "Candidate", record: Path) -> "Tested":
    """Fit the cell again on all training images and score it on the test images; returns what it records."""
    from ddae.probe import standard_error
    from ddae.report import with_test
    from storage.feature_store import published
    from storage.tracking import Tracker, check_server, tracking_uri
    from sweeps.tuning.outcome import Tested
    from sweeps.tuning.refit import refit
    from sweeps.tuning.reporting import test_text

    check_server(tracking_uri())
    fitted = refit(folder, cell, with_test=True)
    features, labels = fitted.features("test")
    accuracy = float((fitted.head(features)[0].argmax(-1) == labels).float().mean())
    stderr = standard_error(accuracy, len(labels))
    tested = Tested(
        cell=cell.name,
        setting=fitted.result.setting,
        num_train=len(fitted.plan.labels["train"]),
        num_test=len(labels),
        test_accuracy=accuracy,
        test_stderr=stderr,
        val_accuracy=fitted.result.val_accuracy,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    page = folder / "report.html"
    if page.exists():
        html = with_test(page.read_text(encoding="utf-8"), test_text(tested, folder, cell.name))
        with published(page) as part:
            part.write_text(html, encoding="utf-8")
    tracker = Tracker(tracking_uri(), fitted.plan.name, folder.name, folder.name)
    tracker.finish({"test_accuracy": accuracy, "test_stderr": stderr}, [page] if page.exists() else [])
    with published(record) as part:
        part.write_text(json.dumps(asdict(tested), indent=1))
    return tested


if __name__ == "__main__":
    cli.run(main, FinalTest, __doc__)
