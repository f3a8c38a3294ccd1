"""The answer of a search, read off its trials."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddae.probe import measured, tied_with_best
from sweeps.search.task import Cell, Result, Task, Trial, Value


@dataclass(frozen=True)
class Answer:
    winner: Trial
    """The best, or the cheapest where that is preferred."""
    best: Trial
    """The trial that is best on val."""
    cheapest: Trial
    """The cheapest of those that are statistically tied with the best."""
    tied: tuple[Trial, ...]
    """All that are statistically tied with the best, best first."""
    num_full: int
    """How many trials reached the last rung."""
    final: Trial | None = None
    """The winner's cell with all that there is of the resource, where the search had less."""

    @property
    def cell(self) -> Cell:
        return self.winner.cell

    @property
    def trial(self) -> Trial:
        """What is handed over, and whose numbers are given."""
        return self.final or self.winner

    @property
    def result(self) -> Result:
        return self.trial.last


def choose(
    task: Task,
    trials: Sequence[Trial],
    cost: Callable[[Cell], Any] = lambda cell: 0,
    weights: np.ndarray | None = None,
    prefer: str = "best",
) -> Answer:
    """The answer among the trials that reached the last rung: the best on val, or the cheapest of those that a paired
    bootstrap over the val images cannot tell from it. Of equals the cheapest comes first. Trials that do not end in a
    classifier are never tied.

    weights: how much each val image counts; all alike if None. prefer: best or cheapest. Raises ValueError where no
    trial reached the last rung.
    """
    merit, price = (lambda trial: task.objectives[0].merit(trial.last)), (lambda trial: cost(trial.cell))
    full = [trial for trial in trials if trial.state == "finished"]
    if not full:
        raise ValueError("no trial reached the last rung; raise --num-trials")
    if all(trial.last.right for trial in full):
        ties = tied_with_best(np.stack([trial.last.correct for trial in full]), weights=weights)
        tied = sorted((trial for trial, tie in zip(full, ties, strict=True) if tie), key=price)
    else:
        tied = [max(full, key=merit)]
    cheapest, ranked = tied[0], sorted(tied, key=merit, reverse=True)
    return Answer(cheapest if prefer == "cheapest" else ranked[0], ranked[0], cheapest, tuple(ranked), len(full))


def row(task: Task, trial: Trial) -> dict[str, Value]:
    """A trial as one row of a table: axes, how far it came, metrics, what was chosen inside it."""
    axes = {name: getattr(trial.cell, name) for name in task.axes}
    last = trial.last
    return {**axes, task.resource: trial.rung, **last.metrics, **last.params, "stopped_early": trial.stopped_early}


def table(task: Task, trials: Sequence[Trial]) -> list[dict[str, Value]]:
    """One row a trial, those that came furthest first, best first; pandas.DataFrame takes it."""
    objective = task.objectives[0]
    ranked = sorted(trials, key=lambda trial: (-trial.rung, -objective.merit(trial.last)))
    return [row(task, trial) for trial in ranked]


def without_text(
    correct: np.ndarray, labels: np.ndarray, twins: np.ndarray, split: str, others: str, measure: str = "accuracy"
) -> str:
    """The accuracy, or the balanced one, on the images of a split that are not among the others, too. correct, twins:
    bool [n]."""
    if twins.all():
        return f"all {len(twins):,} {split} images are in {others}, too: it says nothing of others"
    value, stderr = measured(correct[~twins], labels[~twins], measure)
    return (
        f"{100 * value:.1f} +- {100 * stderr:.1f} %{f' {measure}' * (measure != 'accuracy')} on the "
        f"{int((~twins).sum()):,} {split} images that are not in {others} too; {int(twins.sum()):,} are"
    )
