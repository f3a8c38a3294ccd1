"""Efficient probing: learned queries that attend to the tokens themselves (Psomas et al. 2026)."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from ddae.heads.kept import Kept
from ddae.heads.training import Parts, Recipe, StackedNetworks, memory, train, untrained
from ddae.scaling import Standardise
from ddae.streaming import Features

RECIPE = Recipe(settings=((3e-3, 0.1), (1e-2, 0.1)), num_epochs=40)


def fit_efficient(
    features: Features, labels: Tensor, num_classes: int, seed: int, num_queries: int, kept: Kept | None = None
) -> StackedNetworks:
    """Fit so many queries on features standardised channel by channel."""
    return train(*parts(features, num_classes, num_queries), features, labels, seed, RECIPE, kept)


def parts(features: Features, num_classes: int, num_queries: int) -> Parts:
    scale = Standardise(features, dims=(0, 2, 3))
    return nn.Sequential(scale, Tokens()), lambda: Queries(features.shape[1], num_queries, num_classes)


empty_efficient = partial(untrained, parts)
efficient_memory = partial(memory, parts, RECIPE)


class Tokens(nn.Module):
    """[N, C, g, g] -> [N, g * g, C]"""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.flatten(2).transpose(1, 2)


class Queries(nn.Module):
    """[N, T, C] -> [N, K]: each query's mean of the tokens, weighted by a softmax over T, is projected to its own share
    of C numbers, and all of these are classified linearly. Tokens are their own keys."""

    def __init__(self, channels: int, num_queries: int, num_classes: int):
        super().__init__()
        share = math.ceil(channels / num_queries)
        self.queries = nn.Parameter(torch.randn(num_queries, channels) * 0.02)
        self.values = nn.Parameter(torch.empty(num_queries, channels, share).uniform_(-1, 1) / channels**0.5)
        self.classify = nn.Sequential(nn.LayerNorm(num_queries * share), nn.Linear(num_queries * share, num_classes))

    def forward(self, tokens: Tensor) -> Tensor:
        weights = (tokens @ self.queries.T / tokens.shape[-1] ** 0.5).softmax(1)
        means = torch.einsum("ntq,ntc->nqc", weights, tokens)
        return self.classify(torch.einsum("nqc,qcs->nqs", means, self.values).flatten(1))
