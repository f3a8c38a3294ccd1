"""What a fusing sweep has found, as numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeps.findings.answer import table
from sweeps.fusing import selection
from sweeps.fusing.task import FusionTask
from sweeps.probing.task import Read
from sweeps.search.task import Trial, Value


@dataclass(frozen=True)
class Fused:
    """A cell on all training images, against the sweep's answer on the same val images."""

    cell: Read
    trial: Trial
    passes: float
    """Full forward passes an image."""
    num_features: int
    """Numbers an image."""
    gain: float
    stderr: float
    """Paired standard error of the gain."""


@dataclass(frozen=True)
class Findings:
    task: FusionTask
    tried: tuple[Trial, ...]
    """In the order of proposal."""
    paths: tuple[selection.Path, ...]
    best: tuple[Fused, ...]
    """The sweep's answer, then the best sets of one timestep, of two, and so on, each under another head."""
    answer: Fused
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
    def pays(self) -> bool:
        return self.answer is not self.best[0]


def paired(task: FusionTask, trial: Trial, other: Trial) -> tuple[float, float]:
    """By how much a trial is better than another on the same val images, in the metric that chooses, and the standard
    error of that."""
    gained = trial.last.correct.astype(float) - other.last.correct.astype(float)
    weights = task.weigh(task.labels["val"])
    gained = gained if weights is None else gained * weights
    return float(gained.mean()), float(gained.std() / len(gained) ** 0.5)


def compare(task: FusionTask, trial: Trial, single: Trial) -> Fused:
    """A trial on all images against the sweep's answer."""
    cell = trial.cell
    return Fused(cell, trial, task.passes(cell), task.num_features(cell), *paired(task, trial, single))


def choose(task: FusionTask, best: Sequence[Fused]) -> Fused:
    """The first, the sweep's answer, unless a set gains more than a standard error over it; and of sets one that takes
    more passes only if it gains as much over one that takes fewer."""
    chosen = best[0]
    for each in sorted(best[1:], key=lambda each: (each.passes, -each.gain)):
        gain, stderr = paired(task, each.trial, chosen.trial)
        if gain > stderr:
            chosen = each
    return chosen
