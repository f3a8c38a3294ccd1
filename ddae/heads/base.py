"""What every head looks like to the probe."""

from typing import Protocol

import torch
from torch import Tensor, nn


class StackedHead(nn.Module):
    """S fits of one head, alike but for their settings (learning rate, penalty, ...), so that one pass makes all.

    forward: features [N, C, g, g] -> class scores [S, N, K].
    """

    def __init__(self, settings: tuple[str, ...]):
        super().__init__()
        self.settings = settings


class Head(Protocol):
    """Fits a head on frozen features, close to convergence, for its whole grid of settings at once."""

    def __call__(self, features: Tensor, labels: Tensor, num_classes: int, seed: int) -> StackedHead:
        """features: float32 [N, C, g, g]; labels: int64 [N]."""
        ...


class Standardise(nn.Module):
    """Flatten, then subtract the training mean and divide by the training deviation, dimension by dimension."""

    mean: Tensor
    scale: Tensor

    def __init__(self, features: Tensor):
        super().__init__()
        flat = features.flatten(1)
        deviation, mean = torch.std_mean(flat, dim=0, correction=0)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", torch.where(deviation > 1e-6 * (1 + mean.abs()), 1 / deviation, 0))

    def forward(self, features: Tensor) -> Tensor:
        return (features.flatten(1) - self.mean) * self.scale
