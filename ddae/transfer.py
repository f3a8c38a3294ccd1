"""How far what is best on one dataset is best on another (Mukhopadhyay et al. 2023, section 4.2, ask for it and print
no table): regret, agreement of orders, and the same site in another network.

A site is a (block, timestep). `right` is bool, or float where images count unequally, [blocks, timesteps, images]:
which images a probe at each site classifies correctly.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ddae.probe import CLEARLY, paired_loss

LEAST_SIGMA = 1e-3
"""Less noise than this counts as this much, so that clean images have a place on a logarithmic axis."""
NUM_HALVINGS = 20
MOST_AT_ONCE = 2**22
"""Numbers of resampled accuracies that are held at once."""

C = TypeVar("C", bound=Hashable)
Correct = Mapping[str, Mapping[C, np.ndarray]]
"""dataset -> cell -> [num_val], which of its val images the cell classifies correctly, as they count; every cell on
every dataset."""


@dataclass(frozen=True)
class Loss:
    """Points of accuracy that one choice loses against another on the same images, and their standard error."""

    points: float
    stderr: float

    @property
    def is_tied(self) -> bool:
        """Whether these images cannot tell the two apart."""
        return abs(self.points) <= CLEARLY * self.stderr


@dataclass(frozen=True)
class Agreement:
    """A rank correlation, and a 95 % interval of what it is without noise."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ForAll(Loss):
    """A cell that is used on every dataset: its mean loss against the cells that were chosen on each."""

    cell: Any
    against_best: Loss
    """Its mean loss against the cell that has the least."""


def regret_matrix(correct: Correct[C], chosen: Mapping[str, C]) -> dict[tuple[str, str], Loss]:
    """(row, column) -> what the cell that was chosen on the row's dataset loses on the column's, against the column's
    own. Below zero where it is better there."""
    return {
        (row, column): Loss(*paired_loss(correct[column][cell], correct[column][chosen[column]]))
        for row, cell in chosen.items()
        for column in chosen
    }


def one_for_all(correct: Correct[C], chosen: Mapping[str, C]) -> list[ForAll]:
    """Every cell as the one for all datasets, least mean loss first; of equals the one that comes first."""

    def mean(cell: C, others: Mapping[str, C]) -> Loss:
        losses = [paired_loss(correct[name][cell], correct[name][others[name]]) for name in chosen]
        points, errors = np.array(losses).T
        return Loss(float(points.mean()), float(np.linalg.norm(errors) / len(errors)))

    losses = {cell: mean(cell, chosen) for cell in next(iter(correct.values()))}
    ranked = sorted(losses, key=lambda cell: losses[cell].points)
    least = dict.fromkeys(chosen, ranked[0])
    return [ForAll(losses[cell].points, losses[cell].stderr, cell, mean(cell, least)) for cell in ranked]


def left_out(correct: Correct[C], chosen: Mapping[str, C]) -> dict[str, tuple[C, Loss]]:
    """dataset -> which of the cells that were chosen on the others is the one for all of them, and what it loses on
    this dataset, which had no say."""
    found = {}
    for name in chosen:
        others = {other: cell for other, cell in chosen.items() if other != name}
        if others:
            cells = dict.fromkeys(others.values())
            known = {other: {cell: correct[other][cell] for cell in cells} for other in others}
            cell: C = one_for_all(known, others)[0].cell
            found[name] = cell, Loss(*paired_loss(correct[name][cell], correct[name][chosen[name]]))
    return found


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's rho along the last axis; equal numbers share the mean of their ranks, and it is 0 where all of one are
    equal."""
    from scipy.stats import rankdata

    ranks = [rankdata(each, axis=-1) for each in (a, b)]
    x, y = (each - each.mean(-1, keepdims=True) for each in ranks)
    scale = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return (x * y).sum(-1) / np.where(scale > 0, scale, np.inf)


def over_all(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a, b: accuracies [..., blocks, timesteps]."""
    return rank_correlation(*(each.reshape(*each.shape[:-2], -1) for each in (a, b)))


def over_blocks(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """As over_all, of the blocks at one timestep; the mean over the timesteps."""
    return rank_correlation(a.swapaxes(-1, -2), b.swapaxes(-1, -2)).mean(-1)


def over_timesteps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """As over_all, of the timesteps at one block; the mean over the blocks."""
    return rank_correlation(a, b).mean(-1)


Scope = Callable[[np.ndarray, np.ndarray], np.ndarray]
SCOPES: dict[str, Scope] = {
    "all sites": over_all,
    "blocks at one timestep": over_blocks,
    "timesteps at one block": over_timesteps,
}


def scopes_of(shape: Sequence[int]) -> dict[str, Scope]:
    """The SCOPES that have three sites or more to put in order, and differ. shape: (blocks, timesteps, ...)."""
    num_blocks, num_timesteps, *_ = shape
    lengths = num_blocks * num_timesteps, num_blocks * (num_timesteps > 1), num_timesteps * (num_blocks > 1)
    return {name: scope for (name, scope), length in zip(SCOPES.items(), lengths, strict=True) if length >= 3}


def agreement(a: np.ndarray, b: np.ndarray, scope: Scope, num_resamples: int = 1000, seed: int = 0) -> Agreement:
    """How far two datasets put the sites of one network in the same order. a, b: right, of either dataset.

    The interval is the basic bootstrap's (Davison & Hinkley 1997, equation 5.6) over the images of each dataset. Images
    that are drawn anew add noise, which lowers a rank correlation as much as the noise that is in it already; the basic
    interval reflects it, so it is one for the correlation without noise, and may lie above the value as a whole.
    """
    rng = np.random.default_rng(seed)
    value = float(scope(a.mean(-1), b.mean(-1)))
    at_once = max(1, MOST_AT_ONCE // max(a.shape[0] * a.shape[1], a.shape[2], b.shape[2]))
    sizes = [min(at_once, num_resamples - start) for start in range(0, num_resamples, at_once)]
    drawn = np.concatenate([scope(resampled(a, size, rng), resampled(b, size, rng)) for size in sizes])
    low, high = np.clip(2 * value - np.quantile(drawn, [0.975, 0.025]), -1, 1)
    return Agreement(value, float(low), float(high))


def resampled(right: np.ndarray, num_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Accuracies on images that are drawn anew, [num_resamples, blocks, timesteps]."""
    num_images = right.shape[-1]
    counts = rng.multinomial(num_images, np.full(num_images, 1 / num_images), num_resamples)
    return np.tensordot(counts / num_images, right.astype(float), axes=(1, 2))


def of_halves(right: np.ndarray, scope: Scope, seed: int = 0) -> float:
    """How far two halves of one dataset agree, the mean over NUM_HALVINGS random ones, stepped up to all of the images
    (Spearman 1910, Brown 1910): what another dataset of as many images with the same order would come to."""
    rng, half = np.random.default_rng(seed), right.shape[-1] // 2
    found = []
    for _ in range(NUM_HALVINGS):
        order = rng.permutation(right.shape[-1])
        one, other = right[..., order[:half]], right[..., order[half : 2 * half]]
        found.append(float(scope(one.mean(-1), other.mean(-1))))
    mean = max(0.0, float(np.mean(found)))
    return 2 * mean / (1 + mean)


def nearest_of(depth: float, sigma: float, sites: Sequence[tuple[float, float]]) -> int:
    """The number of the site with the nearest noise level in log sigma, and of several the one at the nearest depth.
    sites: (depth, sigma) of each; depth: the share of a forward pass after which the block is done."""

    def distance(number: int) -> tuple[float, float]:
        its_depth, its_sigma = sites[number]
        noise = abs(math.log(max(its_sigma, LEAST_SIGMA)) - math.log(max(sigma, LEAST_SIGMA)))
        return round(noise, 9), abs(its_depth - depth)

    return min(range(len(sites)), key=distance)


def nearest_site(depth: float, sigma: float, depths: Sequence[float], sigmas: Sequence[float]) -> tuple[int, int]:
    """(number of the block, of the timestep) in another network, as nearest_of() finds it."""
    sites = [(its_depth, its_sigma) for its_depth in depths for its_sigma in sigmas]
    block, timestep = divmod(nearest_of(depth, sigma, sites), len(sigmas))
    return block, timestep


def mean_standing(
    depths: Sequence[float], sigmas: Sequence[float], rankings: Sequence[Sequence[tuple[float, float]]]
) -> np.ndarray:
    """How well each site stood elsewhere, [blocks, timesteps]: 1 where it was the best of a ranking, 0 where it was the
    last, the mean over the rankings. rankings: (depth, sigma) of every site of each, best first; a site stands as the
    nearest to it does."""
    standing = [
        [1 - nearest_of(depth, sigma, ranking) / max(1, len(ranking) - 1) for depth in depths for sigma in sigmas]
        for ranking in rankings
    ]
    return np.mean(standing, axis=0).reshape(len(depths), len(sigmas))
