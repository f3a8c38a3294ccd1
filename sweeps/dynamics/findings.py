"""What a sweep of feature learning has found, as numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from storage.checkpoints import StoredCheckpoint
from sweeps.dynamics.task import ImageTask, PatchCell, PatchTask, packed, unpacked
from sweeps.findings.answer import table
from sweeps.search.task import Trial, Value

LEAST = 1e-6
"""Signal over noise, or noise over signal, below this counts as this: an autoencoder forgets one of them wholly."""
BALANCED = 3.0
"""Signal and noise are balanced where neither is so many times the other."""


@dataclass(frozen=True)
class Measured:
    """A mean over seeds, and its standard error."""

    mean: float
    stderr: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} +- {self.stderr:.2g}"


@dataclass(frozen=True)
class Summary:
    """One objective over all n and |mu|; each number is a mean over seeds, and None where there are too few cells."""

    order: Measured | None
    """p in dx/dt ~ x^p early on, the mean over cells."""
    growth_factor: Measured | None
    growth_exponent: Measured | None
    """Signal grows factor * (n SNR^2)^exponent times as fast as noise, early on."""
    least: float
    largest: float
    """Signal over noise at the end, the geometric mean over seeds of a cell, in the least and the largest cell."""
    final_exponent: Measured | None
    """The exponent of n SNR^2 in that ratio."""
    crossing: Measured | None
    """The n SNR^2 at which the ratio passes 1, for an objective that is unbalanced on both sides."""
    balance: Measured
    """The weaker over the stronger, the mean over cells."""
    num_diverged: int


@dataclass(frozen=True)
class Findings:
    patches: PatchTask
    images: ImageTask | None
    trials: tuple[Trial, ...]
    image_trials: tuple[Trial, ...]
    store: str
    folder: Path
    tracked: str
    """How a person sees the trials in MLflow."""
    wall_seconds: float

    @property
    def rows(self) -> list[dict[str, Value]]:
        """One row a trial, the most balanced first; pandas.DataFrame takes it."""
        return table(self.patches, self.trials)

    @property
    def image_rows(self) -> list[dict[str, Value]]:
        return table(self.images, self.image_trials) if self.images else []

    @cached_property
    def summaries(self) -> Mapping[str, Summary]:
        return {name: summarise(self.patches, self.of(name)) for name in self.patches.trained}

    def of(self, objective: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.cell.objective == objective]

    def snr(self, trial: Trial) -> float:
        return self.patches.relative_snr(trial.cell)

    def course(self, cell: PatchCell) -> dict[str, np.ndarray] | None:
        """steps, signal, noise and loss, [T] each; None where the training diverged. Trained again where the store has
        lost it."""
        [trial] = [trial for trial in self.trials if trial.cell == cell]
        if trial.last.params["ended"] == "diverged":
            return None
        rung = self.patches.rungs[-1]
        kept = StoredCheckpoint(self.store, self.patches.key(cell, rung)).load()
        return unpacked(kept or packed(self.patches.course(cell, rung)))

    def near(self, relative_snr: float) -> tuple[int, float]:
        """n and |mu| of n SNR^2 nearest to this; of equals the n in the middle."""
        middle = float(np.median(self.patches.num_samples))

        def apart(pair: tuple[int, float]) -> tuple[float, float]:
            has = self.patches.relative_snr(PatchCell("", *pair, 0))
            return round(abs(float(np.log(has / relative_snr))), 2), abs(np.log(pair[0] / middle))

        pairs = [(n, norm) for n in self.patches.num_samples for norm in self.patches.signal_norms]
        return min(pairs, key=apart)


def summarise(task: PatchTask, trials: Sequence[Trial]) -> Summary:
    """The trials of one objective."""
    whole = [trial for trial in trials if "ratio" in trial.last.metrics]
    grown = [trial for trial in whole if "growth_ratio" in trial.last.metrics]
    ratios = [ratio for _, ratio in curve(task, whole)]
    growth = over_seeds(grown, lambda own: power_law(task, own, "growth_ratio"))
    final = over_seeds(whole, lambda own: power_law(task, own, "ratio"))
    flips = bool(ratios) and min(ratios) < 1 / BALANCED and max(ratios) > BALANCED
    crossing = over_seeds(whole, lambda own: _crossing(curve(task, own))) if flips else None
    balance = over_seeds(trials, lambda own: [_mean(own, "balance")])
    order = over_seeds(grown, lambda own: [_mean(own, "growth_order")])
    assert balance is not None
    return Summary(
        order=order[0] if order else None,
        growth_factor=growth[0] if growth else None,
        growth_exponent=growth[1] if growth else None,
        least=min(ratios, default=0),
        largest=max(ratios, default=0),
        final_exponent=final[1] if final else None,
        crossing=crossing[0] if crossing else None,
        balance=balance[0],
        num_diverged=len(trials) - len(whole),
    )


def curve(task: PatchTask, trials: Sequence[Trial]) -> list[tuple[float, float]]:
    """(n SNR^2, signal over noise at the end) of each n and |mu|, the geometric mean over seeds, n SNR^2 growing."""
    ratios: dict[tuple[float, int], list[float]] = {}
    for trial in trials:
        place = round(task.relative_snr(trial.cell), 3), trial.cell.num_samples
        ratios.setdefault(place, []).append(trial.last.metrics["ratio"])
    return [(snr, float(np.exp(log_ratio(np.array(each)).mean()))) for (snr, _), each in sorted(ratios.items())]


def log_ratio(ratios: np.ndarray) -> np.ndarray:
    return np.log(np.clip(ratios, LEAST, 1 / LEAST))


def over_seeds(
    trials: Sequence[Trial], of_one: Callable[[Sequence[Trial]], Sequence[float] | None]
) -> list[Measured] | None:
    """Means and standard errors of numbers that the trials of one seed give; an error is 0 where there is one."""
    seeds = sorted({trial.cell.seed for trial in trials})
    found = [of_one([trial for trial in trials if trial.cell.seed == seed]) for seed in seeds]
    numbers = np.array([each for each in found if each is not None], dtype=float)
    if not len(numbers):
        return None
    return [mean_of(each) for each in numbers.T]


def mean_of(numbers: np.ndarray) -> Measured:
    """numbers: one a seed."""
    error = numbers.std(ddof=1) / len(numbers) ** 0.5 if len(numbers) > 1 else 0.0
    return Measured(float(numbers.mean()), float(error))


def power_law(task: PatchTask, trials: Sequence[Trial], metric: str) -> list[float] | None:
    """factor and exponent of metric = factor * (n SNR^2)^exponent; None where n SNR^2 is one."""
    x = np.log([task.relative_snr(trial.cell) for trial in trials])
    values = np.array([trial.last.metrics[metric] for trial in trials])
    if not len(x) or np.ptp(x) < 1e-6:
        return None
    exponent, log_factor = np.polyfit(x, log_ratio(values), 1)
    return [float(np.exp(log_factor)), float(exponent)]


def _crossing(ratios: Sequence[tuple[float, float]]) -> list[float] | None:
    """Where the ratio passes 1 for good, between two neighbours in n SNR^2; of equal n SNR^2 the mean counts."""
    snrs = sorted({snr for snr, _ in ratios})
    logs = [float(np.mean([np.log(ratio) for each, ratio in ratios if each == snr])) for snr in snrs]
    for (low, below), (high, above) in reversed(list(pairwise(zip(np.log(snrs), logs, strict=True)))):
        if below < 0 <= above:
            return [float(np.exp(low + (high - low) * -below / (above - below)))]
    return None


def _mean(trials: Sequence[Trial], metric: str) -> float:
    return float(np.mean([trial.last.metrics[metric] for trial in trials]))
