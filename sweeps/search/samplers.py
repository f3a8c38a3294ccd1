"""Who proposes cells: a sampler is a line in SAMPLERS."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler


class Sampler(NamedTuple):
    make: Callable[[int], BaseSampler] | None
    """seed -> Optuna's sampler; None where all cells are tried in their order."""
    learns: bool
    """Whether it is told results."""
    rounds: bool
    """Whether it proposes some cells at a time, each round from the results of those before it, or all at once."""


def tpe(seed: int) -> BaseSampler:
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # group=True
    return TPESampler(seed=seed, n_startup_trials=8, multivariate=True, group=True)


SAMPLERS: dict[str, Sampler] = {
    "optuna": Sampler(tpe, learns=True, rounds=True),
    "random": Sampler(RandomSampler, learns=False, rounds=False),
    "grid": Sampler(None, learns=False, rounds=False),
}


def find_sampler(name: str) -> Sampler:
    """Raises ValueError for an unknown name."""
    if name not in SAMPLERS:
        raise ValueError(f"search={name!r} is not known; allowed: {', '.join(SAMPLERS)}")
    return SAMPLERS[name]
