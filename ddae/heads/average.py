"""Averaging: a head of its own for every block, and the weighted mean of what they say."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ddae.heads.base import StackedHead
from ddae.heads.kept import Kept
from ddae.heads.mlp import RECIPE, empty_mlp, fit_mlp, mlp_memory
from ddae.heads.parts import split
from ddae.heads.stacked import out_of_sample, stacked_memory
from ddae.streaming import Features

ROUNDS = 20
"""How often a block is taken in the choice of weights, which are multiples of 1 / ROUNDS."""


class Average(StackedHead):
    """The weighted mean over blocks of the logarithms of class probabilities. heads: one a block, all of the same
    settings. weights: of each block, summing to 1."""

    weights: Tensor

    def __init__(self, heads: Sequence[StackedHead], channels: Sequence[int], weights: Tensor):
        super().__init__(heads[0].settings)
        self.heads, self.channels = torch.nn.ModuleList(heads), list(channels)
        self.register_buffer("weights", weights)

    def forward(self, features: Tensor) -> Tensor:
        parts = zip(self.heads, features.split(self.channels, 1), strict=True)
        return torch.tensordot(self.weights, torch.stack([head(part).log_softmax(-1) for head, part in parts]), 1)

    def only(self, setting: str) -> "Average":
        return Average([head.only(setting) for head in self.heads], self.channels, self.weights)  # type: ignore[operator]


def fit_average(
    features: Features,
    labels: Tensor,
    num_classes: int,
    seed: int,
    channels: Sequence[int],
    *widths: int,
    kept: Kept | None = None,
) -> Average:
    """An MLP a block. channels: of each block. widths: of the hidden layers."""
    kept, parts = kept or Kept(), split(features, channels)
    weights = choose_weights([out_of_sample(part, labels, num_classes)[1] for part in parts], labels)
    heads = [
        fit_mlp(part, labels, num_classes, seed, *widths, kept=kept.part(number)) for number, part in enumerate(parts)
    ]
    return Average(heads, channels, weights)


def choose_weights(scores: Sequence[Tensor], labels: Tensor) -> Tensor:
    """How often each block is taken when, again and again, the one is added with which the sum is right most often, and
    of equal ones nearest to the labels (Caruana et al. 2004). scores: of each block, [N, K], of images that it has not
    seen."""
    targets = functional.one_hot(labels, scores[0].shape[1]).to(scores[0].dtype)
    total, counts = torch.zeros_like(scores[0]), torch.zeros(len(scores), device=labels.device)
    for number in range(1, ROUNDS + 1):

        def merit(each: Tensor, total: Tensor = total, number: int = number) -> tuple[int, float]:
            mean = (total + each) / number
            return int((mean.argmax(1) == labels).sum()), -float((mean - targets).square().mean())

        best = max(range(len(scores)), key=lambda block: merit(scores[block]))
        total, counts[best] = total + scores[best], counts[best] + 1
    return counts / ROUNDS


def empty_average(features: Tensor, num_classes: int, channels: Sequence[int], *widths: int) -> Average:
    heads = [empty_mlp(part, num_classes, *widths) for part in split(features, channels)]
    return Average(heads, channels, features.new_empty(len(channels)))


def average_memory(shape: tuple[int, ...], num_classes: int, channels: Sequence[int], *widths: int) -> tuple[int, int]:
    """What one block's MLP takes while it is fitted, or before that all ridges, and as much again for each that is
    held."""
    fits = mlp_memory((shape[0], max(channels), *shape[2:]), num_classes, *widths)
    held, streamed = map(max, zip(fits, stacked_memory(shape, num_classes, channels), strict=True))
    others = sum(4 * len(RECIPE.settings) * each * shape[2] ** 2 * widths[0] for each in channels)
    return held + others, streamed + others
