"""Scores of a feature that never see a label, and the ranking they give."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

TILE = 256


def on_sphere(features: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Standardise each dimension, then L2-normalise each row. features: [N, D].

    Without the first step a few dimensions of large variance decide every distance.
    """
    return functional.normalize((features - mean) / deviation.clamp(min=1e-6), dim=1)


def alignment(first: Tensor, second: Tensor) -> float:
    """E ||x - y||^2 over two noise draws of the same images (DDAE paper, equation 3; Wang & Isola 2020).

    first, second: [N, D], L2-normalised, row i of both from image i. 0 to 4, lower is better.
    """
    return float((first - second).square().sum(1).mean())


def uniformity(first: Tensor, second: Tensor) -> float:
    """log E exp(-2 ||x_i - x_j||^2) over all pairs i < j of a draw (DDAE paper, equation 4; Wang & Isola 2020), the
    mean of both draws.

    first, second: [N, D], L2-normalised. -8 to 0, lower is better. Pairs are visited in tiles of 256 rows, so memory
    is bounded.
    """
    return (_log_mean_potential(first) + _log_mean_potential(second)) / 2


SCORES: dict[str, Callable[[Tensor, Tensor], float]] = {"alignment": alignment, "uniformity": uniformity}
"""Of two noise draws on the sphere; lower is better."""


def measure(first: Tensor, second: Tensor) -> dict[str, float]:
    """Every score of two noise draws of the same images. first, second: [N, D], as the network gave them."""
    deviation, mean = torch.std_mean(torch.cat([first, second]), dim=0)
    x, y = on_sphere(first, mean, deviation), on_sphere(second, mean, deviation)
    return {name: of(x, y) for name, of in SCORES.items()}


def rank(scores: list[dict[str, float]]) -> Tensor:
    """One number a cell, higher is better: minus the sum of alignment and uniformity, each standardised over the
    cells so that neither decides alone. The paper finds the best layers near the lower left of that plane."""
    table = torch.tensor([[cell[name] for name in SCORES] for cell in scores], dtype=torch.float64)
    deviation, mean = torch.std_mean(table, dim=0, correction=0)
    return -((table - mean) / deviation.clamp(min=1e-12)).sum(1)


def _log_mean_potential(x: Tensor) -> float:
    total = 0.0
    for start in range(0, len(x), TILE):
        squared = (2 - 2 * x[start : start + TILE] @ x[start:].T).clamp(min=0)
        total += float((-2 * squared).exp().double().triu(diagonal=1).sum())
    return math.log(total / (len(x) * (len(x) - 1) / 2))
