"""What every head looks like to the probe."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class StackedHead(nn.Module):
    """S fits of one head, alike but for their settings (learning rate, penalty, ...), so that one pass makes all.

    forward: features [N, C, g, g] -> class scores [S, N, K].
    """

    def __init__(self, settings: tuple[str, ...]):
        super().__init__()
        self.settings = settings

    def only(self, setting: str) -> "StackedHead":
        """The fit of one setting alone: scores [1, N, K]."""
        raise NotImplementedError

    def probabilities(self, scores: Tensor) -> Tensor:
        """Of the classes, from what forward returns."""
        return scores.softmax(-1)


Fit = Callable[..., StackedHead]
"""fit(features float32 [N, C, g, g], labels int64 [N], num_classes, seed, *sizes) fits a head close to convergence, for
its whole grid of settings at once; `sizes` are the structural sizes, where the head has any."""
Empty = Callable[..., StackedHead]
"""empty(features [N, C, g, g], num_classes, *sizes) is what a fit on features of this shape leaves of one setting, but
for the numbers, which load_state_dict brings; called with features on the meta device."""


@dataclass(frozen=True)
class Head:
    """A family of heads: one fit, its shape for numbers that were saved, and the sizes it comes in."""

    fit: Fit
    empty: Empty
    sizes: tuple[tuple[int, ...], ...] = ((),)
    """What a search tries by default, in the papers' notation after the name: (64, 64) is cnn-64-64."""
    min_grid: int = 1
    """The smallest pooled grid it makes sense on."""
    more_sizes: bool = False
    """Whether it takes more sizes than the default ones have (an MLP's further hidden layers)."""


class Standardise(nn.Module):
    """Subtract the training mean and divide by the training deviation, each taken over `dims`.

    forward: [N, C, g, g] -> [N, C, g, g]. dims (0,) treats every dimension apart, (0, 2, 3) every channel.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: Tensor, dims: tuple[int, ...] = (0,)):
        super().__init__()
        deviation, mean = torch.std_mean(features, dim=dims, correction=0, keepdim=True)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", torch.where(deviation > 1e-6 * (1 + mean.abs()), 1 / deviation, 0))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) * self.scale
