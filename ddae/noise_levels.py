"""Noise levels of a schedule on one axis for every kind of diffusion: log sigma = ln(sigma / alpha)."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from ddae.noise import Schedule

Levels = Mapping[int, float]
"""timestep -> log sigma, growing."""


def log_sigma(schedule: Schedule, timestep: int) -> float:
    """ln(sigma / alpha) at a native timestep; minus or plus infinity where there is no noise, or nothing else."""
    sigma = schedule.sigma(timestep)
    return math.log(sigma) if sigma else -math.inf


def all_levels(schedule: Schedule) -> Levels:
    """Every timestep that has noise and leaves something of the image; of equal ones the first."""
    found: dict[float, int] = {}
    for timestep in schedule.timesteps:
        found.setdefault(log_sigma(schedule, timestep), timestep)
    return {timestep: level for level, timestep in sorted(found.items()) if math.isfinite(level)}


def choose_grid(levels: Levels, num_levels: int) -> Levels:
    """Timesteps that are nearest to evenly spaced log sigmas, num_levels of them, or the few more that come of taking
    each once. Raises ValueError where there are fewer, or none would be left between."""
    if num_levels >= len(levels):
        raise ValueError(
            f"num_levels={num_levels} is too many: the network has {len(levels)} noise levels, and some must stay "
            "between those of the grid; give fewer, or, of EDM, a longer schedule, as --num-steps 200"
        )
    timesteps, known = np.array(list(levels)), np.array(list(levels.values()))
    for count in range(num_levels, 100 * len(levels)):
        wanted = np.linspace(known[0], known[-1], count)
        nearest = np.unique(np.abs(known[:, None] - wanted).argmin(0))
        if len(nearest) >= num_levels:
            break
    return {int(timesteps[place]): float(known[place]) for place in nearest}


def between(levels: Levels, grid: Levels, num_levels: int) -> Levels:
    """At most so many levels that lie in the middle between neighbours of the grid, from all over it."""
    found = []
    for low, high in pairwise(grid.values()):
        inside = [(abs(level - (low + high) / 2), timestep) for timestep, level in levels.items() if low < level < high]
        if inside:
            found.append(min(inside)[1])
    places = np.unique(np.linspace(0, len(found) - 1, min(num_levels, len(found))).round().astype(int))
    return {found[place]: levels[found[place]] for place in places}


def uniform_in_t(levels: Levels, grid: Sequence[float]) -> np.ndarray:
    """Share of all timesteps that are nearest to each level of the grid."""
    known = np.array(list(levels.values()))
    nearest = np.abs(known[:, None] - np.array(grid)).argmin(1)
    return np.bincount(nearest, minlength=len(grid)) / len(known)


def uniform_in_log_sigma(levels: Levels, grid: Sequence[float]) -> np.ndarray:
    """Every level of the grid alike, which are evenly spaced but where timesteps are few."""
    return np.full(len(grid), 1 / len(grid))


DISTRIBUTIONS: Mapping[str, Callable[[Levels, Sequence[float]], np.ndarray]] = {
    "uniform-t": uniform_in_t,
    "log-sigma": uniform_in_log_sigma,
}
"""(all levels, log sigmas of a grid) -> how often each level of the grid is trained on, float [L], 1 in all."""
