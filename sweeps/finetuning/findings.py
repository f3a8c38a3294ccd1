"""What a fine-tuning sweep has found, as numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sweeps.findings.answer import Answer, choose, table
from sweeps.finetuning.task import Cell, FinetuneTask
from sweeps.search.task import Trial, Value


@dataclass(frozen=True)
class Outcome:
    """What one start came to on so many labels: the cell that is best on val, and all its seeds."""

    start: str
    """finetune, scratch, frozen, or a baseline's name."""
    cell: Cell
    accuracies: tuple[float, ...]
    """Val accuracy of each seed."""
    num_val: int
    seconds: float
    """How long one training takes, the mean over the seeds."""

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.accuracies))

    @property
    def stderr(self) -> float:
        """Standard error over the seeds, or, of one seed, over the val images."""
        if len(self.accuracies) > 1:
            return float(np.std(self.accuracies, ddof=1) / len(self.accuracies) ** 0.5)
        return float((self.accuracy * (1 - self.accuracy) / self.num_val) ** 0.5)


@dataclass(frozen=True)
class Kept:
    """What a cut keeps of the network."""

    num_parameters: int
    share_of_parameters: float
    share_of_forward: float


@dataclass(frozen=True)
class Findings:
    searches: tuple[tuple[FinetuneTask, tuple[Trial, ...]], ...]
    """Each start and number of labels, and the trials of its search."""
    outcomes: tuple[Outcome, ...]
    kept: dict[str, Kept]
    """cut -> what it keeps."""
    folder: Path
    tracked: str
    """How a person sees the trials in MLflow."""
    wall_seconds: float
    notes: tuple[str, ...] = ()
    """Dataset.notes"""

    @property
    def task(self) -> FinetuneTask:
        return self.searches[0][0]

    @property
    def answer(self) -> Answer:
        """The best of those on the most labels, baselines apart."""
        own = [(task, trials) for task, trials in self.searches if not task.baseline]
        most = max(task.num_labels[0] for task, _ in own)
        best = [choose(task, trials) for task, trials in own if task.num_labels[0] == most]
        return max(best, key=lambda answer: answer.result.metrics["val_accuracy"])

    @property
    def trials(self) -> list[dict[str, Value]]:
        """One row a trial, a search after the other, best first; pandas.DataFrame takes it."""
        return [row for task, trials in self.searches for row in table(task, trials)]


def outcome_of(task: FinetuneTask, searched: Sequence[Trial], repeated: Sequence[Trial]) -> Outcome:
    """searched: the trials of a search. repeated: its best cell with each seed, the first seed first."""
    accuracies = tuple(trial.last.metrics["val_accuracy"] for trial in repeated)
    whole = {trial.cell: trial for trial in [*repeated, *searched]}
    seconds = [sum(result.run_seconds for result in whole[trial.cell].results.values()) for trial in repeated]
    return Outcome(task.start, repeated[0].cell, accuracies, len(repeated[0].last.correct), float(np.mean(seconds)))
