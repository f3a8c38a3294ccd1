"""Scores of a feature that never see a label, and the ranking they give."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 256


def on_sphere(features: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Standardise each dimension, then L2-normalise each row. features: [N, D].

    Without the first step a few dimensions of large variance decide every distance: on the network that ships with
    the package the paper's plain L2 normalisation ranks worse (README.md, "How to read the result").
    """
    return functional.normalize((features - mean) / deviation.clamp(min=1e-6), dim=1)


def alignment(x: Tensor, y: Tensor) -> float:
    """E ||x - y||^2 over two noise draws of the same images (DDAE paper, equation 3; Wang & Isola 2020).

    x, y: [N, D], L2-normalised, row i of both from image i. 0 to 4, lower is better.
    """
    return float((x - y).square().sum(1).mean())


def uniformity(x: Tensor) -> float:
    """log E exp(-2 ||x_i - x_j||^2) over all pairs i < j of a sample (DDAE paper, equation 4; Wang & Isola 2020).

    x: [N, D], L2-normalised. -8 to 0, lower is better. Pairs are visited in tiles of 256 rows, so memory is bounded.
    """
    total = 0.0
    for start in range(0, len(x), CHUNK):
        rows = x[start : start + CHUNK]
        squared = (2 - 2 * rows @ x[start:].T).clamp(min=0)
        total += float((-2 * squared).exp().double().triu(diagonal=1).sum())
    num_pairs = len(x) * (len(x) - 1) / 2
    return float(torch.tensor(total / num_pairs).log())


def align_uniform(first: Tensor, second: Tensor) -> dict[str, float]:
    """Both scores of two noise draws of the same images. first, second: [N, D], as the network gave them."""
    deviation, mean = torch.std_mean(torch.cat([first, second]), dim=0)
    x, y = on_sphere(first, mean, deviation), on_sphere(second, mean, deviation)
    return {"alignment": alignment(x, y), "uniformity": (uniformity(x) + uniformity(y)) / 2}


def rank(scores: list[dict[str, float]]) -> Tensor:
    """Higher is better, one number a cell: minus the sum of the standardised alignment and uniformity.

    The paper finds the best layers near the lower left of its alignment-uniformity plane; each axis is standardised
    over the cells so that neither decides alone.
    """
    table = torch.tensor([[s[name] for name in SCORES] for s in scores], dtype=torch.float64)
    deviation, mean = torch.std_mean(table, dim=0, correction=0)
    return -((table - mean) / deviation.clamp(min=1e-12)).sum(1)


SCORES: dict[str, Callable[..., float]] = {"alignment": alignment, "uniformity": uniformity}
