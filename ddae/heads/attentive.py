"""Attentive fusion: learned queries attend to the tokens of all blocks (Ciernik et al. 2026)."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ddae.heads.efficient import Queries, Tokens
from ddae.heads.kept import Kept
from ddae.heads.training import Parts, Recipe, StackedNetworks, memory, train, untrained
from ddae.scaling import Standardise
from ddae.streaming import Features

RECIPE = Recipe(settings=((1e-3, 0.1), (3e-3, 1.0)), num_epochs=20)
WIDTH = 128
"""To which the tokens of every block are projected."""


def fit_attentive(
    features: Features,
    labels: Tensor,
    num_classes: int,
    seed: int,
    channels: Sequence[int],
    num_queries: int,
    kept: Kept | None = None,
) -> StackedNetworks:
    """Fit so many queries, on features standardised channel by channel. channels: of each block."""
    return train(*parts(features, num_classes, channels, num_queries), features, labels, seed, RECIPE, kept)


def parts(features: Features, num_classes: int, channels: Sequence[int], num_queries: int) -> Parts:
    return Standardise(features, dims=(0, 2, 3)), lambda: Attentive(channels, num_queries, num_classes)


empty_attentive = partial(untrained, parts)
attentive_memory = partial(memory, parts, RECIPE)


class Attentive(nn.Module):
    """[N, sum of C_i, g, g] -> [N, K]: the g * g tokens of every block are projected to one width and marked with a
    vector of their block, and queries read all of them."""

    def __init__(self, channels: Sequence[int], num_queries: int, num_classes: int):
        super().__init__()
        self.channels, self.tokens = list(channels), Tokens()
        self.project = nn.ModuleList(nn.Linear(each, WIDTH) for each in channels)
        self.marks = nn.Parameter(torch.randn(len(channels), WIDTH) * 0.02)
        self.norm = nn.LayerNorm(WIDTH)
        self.read = Queries(WIDTH, num_queries, num_classes)

    def forward(self, maps: Tensor) -> Tensor:
        parts = zip(maps.split(self.channels, 1), self.project, self.marks, strict=True)
        return self.read(self.norm(torch.cat([project(self.tokens(part)) + mark for part, project, mark in parts], 1)))
