"""The training loop of every head that is fitted by gradient descent."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer

from ddae.heads.base import StackedHead

Parts = tuple[nn.Module, Callable[[], nn.Module]]
"""A module that the features pass first, and a function that builds the network behind it."""
ADAM = partial(AdamW, fused=True)
ROWS_AT_ONCE = 1024
"""Images in one forward pass outside training, so that memory does not grow with their number."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: once for every setting, the learning rate falling to 0 along a cosine."""

    settings: tuple[tuple[float, float], ...]
    """(learning rate, weight decay)"""
    batch_size: int = 256
    num_epochs: int = 10
    min_steps: int = 100
    """Few images get at least this many updates, so that every rung compares converged heads."""
    optimizer: Callable[..., Optimizer] = ADAM


class StackedNetworks(StackedHead):
    """One copy of a network for every setting, all on the same `inputs(features)`."""

    def __init__(self, settings: tuple[str, ...], inputs: nn.Module, network: nn.Module):
        super().__init__(settings)
        self.inputs = inputs
        self.networks = nn.ModuleList(copy.deepcopy(network) for _ in settings)

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([self.scores(rows) for rows in features.split(ROWS_AT_ONCE)], 1)

    def scores(self, features: Tensor) -> Tensor:
        x = self.inputs(features)
        return torch.stack([network(x) for network in self.networks])

    def only(self, setting: str) -> "StackedNetworks":
        return StackedNetworks((setting,), self.inputs, self.networks[self.settings.index(setting)]).eval()


def untrained(parts: Callable[..., Parts], features: Tensor, num_classes: int, *sizes: int) -> StackedNetworks:
    with features.device:
        inputs, build = parts(features, num_classes, *sizes)
        return StackedNetworks(("",), inputs, build()).eval().requires_grad_(False)


def train(
    inputs: nn.Module, build: Callable[[], nn.Module], features: Tensor, labels: Tensor, seed: int, recipe: Recipe
) -> StackedNetworks:
    """Minimise the cross-entropy of all settings at once; they share no parameters, so the loss is their sum."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        names = tuple(f"lr={rate:g} weight_decay={decay:g}" for rate, decay in recipe.settings)
        head = StackedNetworks(names, inputs, build()).to(features.device)
    groups = [
        {"params": network.parameters(), "lr": rate, "weight_decay": decay}
        for network, (rate, decay) in zip(head.networks, recipe.settings, strict=True)
    ]
    optimizer = recipe.optimizer(groups)
    for progress, batch in batches(len(features), recipe, seed):
        rows = batch.to(features.device)
        scores = head.scores(features[rows])
        targets = labels[rows].repeat(len(scores))
        loss = functional.cross_entropy(scores.flatten(0, 1), targets, reduction="sum") / len(rows)
        for group, (rate, _) in zip(optimizer.param_groups, recipe.settings, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * progress)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.eval().requires_grad_(False)


def batches(num_images: int, recipe: Recipe, seed: int) -> Iterator[tuple[float, Tensor]]:
    """Yield (progress in [0, 1), rows of a batch), shuffled anew every epoch and without a last, smaller batch."""
    rng = torch.Generator().manual_seed(seed)
    batch_size = min(recipe.batch_size, num_images)
    per_epoch = num_images // batch_size
    num_epochs = max(recipe.num_epochs, math.ceil(recipe.min_steps / per_epoch))
    for epoch in range(num_epochs):
        order = torch.randperm(num_images, generator=rng)
        for i in range(per_epoch):
            yield (epoch + i / per_epoch) / num_epochs, order[i * batch_size : (i + 1) * batch_size]
