"""All that a probing sweep has found, as numbers; text, page and files are made from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddae.probe import measured, paired_loss
from sweeps.findings.answer import Answer, table
from sweeps.probing.cost import Cost
from sweeps.probing.examples import Examples
from sweeps.probing.screening import LabelFree, Screening
from sweeps.probing.space import Cell
from sweeps.probing.task import ProbeTask
from sweeps.search.task import Result, Trial, Value


@dataclass(frozen=True)
class FirstChoice:
    """The site that a score ranks first, against the answer's site under ridge in the first round of screening."""

    block: str
    timestep: int
    lost: tuple[float, float] | None
    """Points of the metric that chooses, and their standard error; None where ridge did not screen the site."""

    @property
    def name(self) -> str:
        return f"{self.block}/{self.timestep}"


@dataclass(frozen=True)
class Findings:
    task: ProbeTask
    tried: tuple[Trial, ...]
    """In the order of proposal."""
    answer: Answer
    screening: Screening
    label_free: LabelFree
    raw_pixels: Result | None
    """Raw pixels under the answer's head; None where that failed."""
    examples: Examples | None
    """None where they could not be found."""
    cost: Cost
    folder: Path
    tracked: str
    """How a person sees the trials in MLflow."""
    round_size: int | None = None
    """How many cells were proposed at once; None where all were."""
    began: str = ""
    """Where other sweeps had it begin, if they had."""
    added: str = ""
    """Where it lies in the atlas, if it does."""

    @property
    def trials(self) -> list[dict[str, Value]]:
        """One row a trial, best first; pandas.DataFrame takes it."""
        return table(self.task, self.fitted)

    @property
    def fitted(self) -> list[Trial]:
        """What was tried, and the answer on all images where that was not."""
        return [*self.tried, *([self.answer.final] if self.answer.final else [])]

    @property
    def cell(self) -> Cell:
        return self.answer.cell

    @property
    def full(self) -> list[Trial]:
        """The trials that reached the last rung."""
        return [trial for trial in self.tried if trial.state == "finished"]

    @property
    def more_metrics(self) -> dict[str, float]:
        """The share of the largest class in val, where classes are uneven; the share of val images that are in train
        too, where there are some, and what the answer comes to without them."""
        labels, metrics = self.task.labels["val"], dict[str, float]()
        if self.task.is_balanced:
            metrics["val_majority_share"] = float(np.bincount(labels).max() / len(labels))
        twins = self.task.twins.get("val", np.zeros(0, dtype=bool))
        if twins.any():
            metrics["val_copies_share"] = float(twins.mean())
        if twins.any() and not twins.all():
            for measure in self.task.measures:
                value, _ = measured(self.answer.result.correct[~twins], labels[~twins], measure)
                metrics[f"val_{measure.replace(' ', '_')}_without_copies"] = value
        return metrics

    def first_choice(self, merit: np.ndarray) -> FirstChoice:
        """The first choice of a score, of which higher is better, [blocks, timesteps]."""
        block, timestep = self.task.space.ranked(merit)[0]
        first, lost = self.screening.rounds[0], None
        if timestep in first:
            lost = paired_loss(first[timestep][block], first[self.cell.timestep][self.cell.block])
        return FirstChoice(block, timestep, lost)

    def best_accuracies(self) -> np.ndarray | None:
        """The metric that chooses, of the best pooling and head at every site, on all images, [blocks, timesteps]; None
        where a site lacks such a trial, as in any search but the grid."""
        best: dict[tuple[str, int], float] = {}
        for trial in self.full:
            site = trial.cell.block, trial.cell.timestep
            best[site] = max(best.get(site, 0.0), self.task.objectives[0].merit(trial.last))
        accuracies = self.task.space.table(best)
        return accuracies if np.isfinite(accuracies).all() else None


def first_cells(task: ProbeTask, screening: Screening, won: Sequence[Cell] = ()) -> list[Cell]:
    """Cells to try first: those that won elsewhere, every pooling and head at the best site that screening has left,
    then the middle pooling with the first head at the others."""
    (block, timestep), *others = screening.ranked
    middle, head = task.space.poolings[len(task.space.poolings) // 2], task.space.heads[0]
    return [*won, *task.space.cells_at({timestep: (block,)}), *(Cell(*site, middle, head) for site in others)]
