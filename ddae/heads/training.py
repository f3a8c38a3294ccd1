"""The training loop of every head that is fitted by gradient descent."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer

from ddae.heads.base import StackedHead
from ddae.heads.kept import Kept
from ddae.scaling import Standardise
from ddae.streaming import Features, between, shuffled

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
    step_epochs: int = 0
    """The learning rate falls to a tenth every so many epochs, and not along a cosine; 0 is the cosine."""
    by_epoch: bool = False
    """Whether the cosine falls after each epoch, and not after each step."""
    warmup_epochs: int = 0
    """The learning rate rises linearly for so long first."""
    views: int = 1
    """The features are so many views of the same images, one view after the other, and every epoch sees one of them in
    turn. With 1 all rows are seen every epoch."""
    as_they_are: bool = False
    """Whether the head reads features without standardising them first."""

    @property
    def key(self) -> str:
        """All that decides what it trains, the same in every process."""
        made: Any = self.optimizer
        how = {}
        if isinstance(made, partial):
            made, how = made.func, made.keywords
        return f"{made.__module__}.{made.__qualname__} {how} {replace(self, optimizer=ADAM)}"

    def rate(self, progress: float, num_epochs: int) -> float:
        """Share of the learning rate. progress: share of all epochs that have passed, in [0, 1)."""
        if (epochs := progress * num_epochs) < self.warmup_epochs:
            return max(epochs, 1e-3) / self.warmup_epochs
        whole = math.floor(epochs + 1e-6)
        if self.step_epochs:
            return 0.1 ** (whole // self.step_epochs)
        progress = whole / num_epochs if self.by_epoch else progress
        if self.warmup_epochs:
            progress = (progress * num_epochs - self.warmup_epochs) / (num_epochs - self.warmup_epochs)
        return (1 + math.cos(math.pi * progress)) / 2


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


def untrained(parts: Callable[..., Parts], features: Features, num_classes: int, *sizes: int) -> StackedNetworks:
    with features.device:
        inputs, build = parts(features, num_classes, *sizes)
        return StackedNetworks(("",), inputs, build()).eval().requires_grad_(False)


def memory(
    parts: Callable[..., Parts], recipe: Recipe, shape: tuple[int, ...], num_classes: int, *sizes: int
) -> tuple[int, int]:
    """Beside the features: of every setting the weights, their gradients and moments, and a batch with what it leaves
    for the backward pass, which is guessed at 32 times the batch, and 24 times for each Transformer block more."""
    num_weights, num_blocks = size_of(parts, shape, num_classes, *sizes)
    batch = recipe.batch_size * ((8 + 24 * max(1, num_blocks)) * math.prod(shape[1:]) + 4 * num_classes)
    fixed = 4 * (len(recipe.settings) * (4 * num_weights + batch))
    return fixed, fixed


@lru_cache(maxsize=1024)
def size_of(parts: Callable[..., Parts], shape: tuple[int, ...], num_classes: int, *sizes: int) -> tuple[int, int]:
    """The weights and the Transformer blocks of one setting. A plan asks for them at every block, and many blocks have
    the same shape."""
    network = untrained(parts, torch.empty(shape, device="meta"), num_classes, *sizes).networks
    num_weights = sum(parameter.numel() for parameter in network.parameters())
    return num_weights, sum(isinstance(module, nn.MultiheadAttention) for module in network.modules())


def train(
    inputs: nn.Module,
    build: Callable[[], nn.Module],
    features: Features,
    labels: Tensor,
    seed: int,
    recipe: Recipe,
    kept: Kept | None = None,
) -> StackedNetworks:
    """Minimise the cross-entropy of all settings at once; they share no parameters, so the loss is their sum."""
    inputs = unscaled(inputs) if recipe.as_they_are else inputs
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        names = tuple(f"lr={rate:g} weight_decay={decay:g}" for rate, decay in recipe.settings)
        head = StackedNetworks(names, inputs, build()).to(features.device)
    groups = [
        {"params": network.parameters(), "lr": rate, "weight_decay": decay}
        for network, (rate, decay) in zip(head.networks, recipe.settings, strict=True)
    ]
    optimizer = recipe.optimizer(groups)
    kept, order = kept or Kept(), Batches(features, recipe, seed)
    if found := kept.load():
        head.load_state_dict(found["head"])
        optimizer.load_state_dict(found["optimizer"])
        order.go_on(found["order"])
    for progress, rows, maps in order:
        scores = head.scores(maps)
        targets = labels[rows.to(labels.device)].repeat(len(scores))
        loss = functional.cross_entropy(scores.flatten(0, 1), targets, reduction="sum") / len(rows)
        for group, (rate, _) in zip(optimizer.param_groups, recipe.settings, strict=True):
            group["lr"] = rate * recipe.rate(progress, order.num_epochs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        kept.save(lambda: {"head": head.state_dict(), "optimizer": optimizer.state_dict(), "order": order.state()})
    kept.done()
    return head.eval().requires_grad_(False)


def unscaled(inputs: nn.Module) -> nn.Module:
    """What features pass first, without the standardisation in it."""
    if isinstance(inputs, Standardise):
        return nn.Identity()
    for name, child in inputs.named_children():
        setattr(inputs, name, unscaled(child))
    return inputs


class Batches:
    """(progress in [0, 1), numbers of rows, their maps) of every batch, shuffled anew every epoch and without a last,
    smaller one."""

    def __init__(self, features: Features, recipe: Recipe, seed: int):
        self.features, self.rng, self.views = features, torch.Generator().manual_seed(seed), recipe.views
        self.num_images = len(features) // recipe.views
        self.batch_size = min(recipe.batch_size, self.num_images)
        self.per_epoch = self.num_images // self.batch_size
        self.num_epochs = max(recipe.num_epochs, math.ceil(recipe.min_steps / self.per_epoch))
        self._step, self._rng_state = 0, self.rng.get_state()

    def __iter__(self) -> Iterator[tuple[float, Tensor, Tensor]]:
        while self._step < self.num_epochs * self.per_epoch:
            self._rng_state = self.rng.get_state()
            skip = self._step % self.per_epoch
            first = self._step // self.per_epoch % self.views * self.num_images
            seen = between(self.features, first, first + self.num_images)
            for rows, maps in shuffled(seen, self.batch_size, self.rng, skip):
                epoch, place = divmod(self._step, self.per_epoch)
                self._step += 1
                yield (epoch + place / self.per_epoch) / self.num_epochs, first + rows, maps

    def state(self) -> dict[str, Any]:
        """Which batch is next, and what the generator was at the beginning of its epoch."""
        at_end = self._step % self.per_epoch == 0
        return {"step": self._step, "rng": self.rng.get_state() if at_end else self._rng_state}

    def go_on(self, state: dict[str, Any]) -> None:
        """From what state() was."""
        self._step = state["step"]
        self.rng.set_state(state["rng"])
