"""Averaging: a head of its own for every block, and the mean of what they say."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddae.heads.base import StackedHead
from ddae.heads.kept import Kept
from ddae.heads.mlp import RECIPE, empty_mlp, fit_mlp, mlp_memory
from ddae.heads.parts import split
from ddae.streaming import Features


class Average(StackedHead):
    """The mean over blocks of the logarithms of class probabilities. heads: one a block, all of the same settings."""

    def __init__(self, heads: Sequence[StackedHead], channels: Sequence[int]):
        super().__init__(heads[0].settings)
        self.heads, self.channels = torch.nn.ModuleList(heads), list(channels)

    def forward(self, features: Tensor) -> Tensor:
        parts = zip(self.heads, features.split(self.channels, 1), strict=True)
        return torch.stack([head(part).log_softmax(-1) for head, part in parts]).mean(0)

    def only(self, setting: str) -> "Average":
        return Average([head.only(setting) for head in self.heads], self.channels)  # type: ignore[operator]


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
    kept = kept or Kept()
    heads = [
        fit_mlp(part, labels, num_classes, seed, *widths, kept=kept.part(number))
        for number, part in enumerate(split(features, channels))
    ]
    return Average(heads, channels)


def empty_average(features: Tensor, num_classes: int, channels: Sequence[int], *widths: int) -> Average:
    return Average([empty_mlp(part, num_classes, *widths) for part in split(features, channels)], channels)


def average_memory(shape: tuple[int, ...], num_classes: int, channels: Sequence[int], *widths: int) -> tuple[int, int]:
    """What one block's MLP takes while it is fitted, and as much again for each that is held."""
    held, streamed = mlp_memory((shape[0], max(channels), *shape[2:]), num_classes, *widths)
    others = sum(4 * len(RECIPE.settings) * each * shape[2] ** 2 * widths[0] for each in channels)
    return held + others, streamed + others
