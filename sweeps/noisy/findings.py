"""What a sweep of noise-conditional classifiers has found, as numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddae.probe import standard_error, tied_with_best
from sweeps.findings.answer import table
from sweeps.noisy.baseline import BaselineTask
from sweeps.noisy.task import NoisyCell, NoisyTask, mean_over_levels
from sweeps.search.task import Result, Trial, Value

Curve = Sequence[tuple[float, float, float]]
"""(sigma / alpha, accuracy, standard error), sigma growing."""


OWN = "a head at each level"


@dataclass(frozen=True)
class Findings:
    task: NoisyTask
    tried: tuple[Trial, ...]
    """In the order of proposal."""
    answer: Trial
    tied: tuple[Trial, ...]
    """Those that are statistically tied with the answer, best first."""
    recipes: Mapping[str, Trial]
    """DDAE's recipe, and what is changed of it, on all images that the sweep has."""
    own: Mapping[int, np.ndarray]
    """What heads get right that are fitted at one level each, bool [levels that are looked at, num_val]; by pooling,
    that of the answer, and 1, that of DDAE's recipe."""
    baselines: Mapping[str, tuple[BaselineTask, Trial]]
    num_parameters: Mapping[str, int]
    """Who classifies -> numbers that are trained for it; and those of the frozen network."""
    folder: Path
    tracked: str
    """How a person sees the trials in MLflow."""
    wall_seconds: float
    new_passes: float
    """Full forward passes that were run."""

    @property
    def trials(self) -> list[dict[str, Value]]:
        """One row a trial, best first; pandas.DataFrame takes it."""
        return table(self.task, self.tried)

    @property
    def cell(self) -> NoisyCell:
        return self.answer.cell

    @property
    def correct(self) -> Mapping[str, np.ndarray]:
        """Who classifies -> bool [levels that are looked at, num_val]."""
        shared = {"shared head": self.task.correct_at(self.answer.last)}
        own = {OWN: self.own[self.cell.pooling]}
        scratch = {name: self.task.correct_at(trial.last) for name, (_, trial) in self.baselines.items()}
        return shared | own | scratch

    @property
    def of_recipes(self) -> Mapping[str, np.ndarray]:
        """The same of DDAE's recipe, what is changed of it, and heads of one level at its pooling."""
        found = {name: self.task.correct_at(trial.last) for name, trial in self.recipes.items()}
        return found | {OWN: self.own[1]}

    def curve(self, correct: np.ndarray, between: bool = False) -> Curve:
        """Accuracy against sigma, at the levels of the grid or at those between."""
        count = len(self.task.grid)
        levels = self.task.between if between else self.task.grid
        rows = correct[count:] if between else correct[:count]
        accuracies = [float(row.mean()) for row in rows]
        return [
            (math.exp(level), accuracy, standard_error(accuracy, rows.shape[1]))
            for level, accuracy in zip(levels.values(), accuracies, strict=True)
        ]

    def means(self, correct: np.ndarray) -> tuple[tuple[float, float], tuple[float, float] | None]:
        """Accuracy averaged over the grid, and over the levels between, with standard errors."""
        count = len(self.task.grid)
        return mean_over_levels(correct[:count]), mean_over_levels(correct[count:]) if len(correct) > count else None


def choose(task: NoisyTask, trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The trials that are statistically tied with the best on val, the best first. Raises ValueError where none
    reached the last rung."""
    full = [trial for trial in trials if trial.state == "finished"]
    if not full:
        raise ValueError("no trial reached the last rung; raise --num-trials")
    means = np.stack([task.correct_at(trial.last)[: len(task.grid)].mean(0) for trial in full])
    tied = [trial for trial, tie in zip(full, tied_with_best(means), strict=True) if tie]
    return tuple(sorted(tied, key=lambda trial: -trial.last.metrics["val_accuracy"]))


def own_of(results: Mapping[int, Sequence[Result]], num_val: int) -> np.ndarray:
    """At each level what the better head gets right, bool [levels, num_val]. results: timestep -> those of its heads,
    in the order in which levels are looked at."""
    return np.stack([max((each.correct[:num_val] for each in found), key=np.mean) for found in results.values()])
