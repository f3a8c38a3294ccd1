"""Writes what a sweep has found into its folder, and logs it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ddae.report.page import Page, Section, render
from storage.tracking import Tracker
from sweeps.findings import logged
from sweeps.findings.folder import ANY_LETTER, answered, attempt, write_results
from sweeps.findings.table import write_csv
from sweeps.search.study import write_study
from sweeps.search.task import Task, Trial


@dataclass(frozen=True)
class Publication:
    """What a finished sweep leaves behind."""

    report: str
    """What a person reads at the end."""
    draw: Callable[[], Sequence[Section]]
    """Makes the page's sections, with pictures in the folder's figures/."""
    page: Callable[[Sequence[Section]], Page]
    """Makes the page, from the sections that could be drawn."""
    tables: Mapping[str, Callable[[Path], object]]
    """File -> what writes it."""
    trials: Sequence[tuple[Task, Trial]]
    metrics: Mapping[str, float]
    note: Callable[[], str]
    """The parent run in MLflow has both."""
    results: Callable[[], dict[str, Any]]
    """All numbers, for results.json."""
    more_files: Sequence[str] = ()
    """Files of the folder that MLflow is to have besides."""
    undrawn: Sequence[str] = ()
    """What could not be drawn before, and why."""


class Tried(Protocol):
    """Findings of one Task."""

    @property
    def task(self) -> Task: ...

    @property
    def tried(self) -> Sequence[Trial]: ...

    @property
    def trials(self) -> Sequence[Mapping[str, Any]]:
        """One row a trial."""


def trial_tables(found: Tried) -> dict[str, Callable[[Path], object]]:
    """The trials as rows, and as a study of Optuna's."""
    return {
        "trials.csv": lambda path: write_csv(path, found.trials),
        "optuna.log": lambda path: write_study(path, found.task, found.tried),
    }


def publish(found: Publication, folder: Path, tracker: Tracker) -> None:
    """A sweep that has results.json is done; then it is logged. The answer depends on no picture, page or table: what
    could not be made is written down, and the same command tries again."""
    with answered(found.report):
        (folder / "report.txt").write_text(found.report, **ANY_LETTER)
        sections, failed = _drawn(found, folder / "figures")
        failed += [*found.undrawn, *_write_page(folder / "report.html", found, sections)]
        failed += [attempt(folder / name, write) for name, write in found.tables.items()]
        files = ["report.html", "report.txt", *found.tables, "config.yaml", *found.more_files]
        artifacts = [*sorted((folder / "figures").glob("*.png")), *(folder / name for name in files)]
        logged.keep(folder, tracker, found.trials, found.metrics, found.note(), artifacts, failed)
        write_results(folder, found.results())
    logged.log(folder, tracker)


def _drawn(found: Publication, figures: Path) -> tuple[Sequence[Section], list[str]]:
    """The sections, and why there are none."""
    try:
        return found.draw(), []
    except Exception as error:  # of any library
        return [], [f"the pictures in {figures} could not be drawn ({type(error).__name__}: {error})"]


def _write_page(path: Path, found: Publication, sections: Sequence[Section]) -> list[str]:
    """Write the page, without sections where it cannot be made with them. Returns why, if so."""
    trouble = attempt(path, lambda file: file.write_text(render(found.page(sections)), **ANY_LETTER))
    if not trouble:
        return []
    attempt(path, lambda file: file.write_text(render(found.page([])), **ANY_LETTER))
    return [trouble]
