"""Bring features onto one scale before their distances are taken or their weights penalised."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddae.streaming import Features, std_mean


class Standardise(nn.Module):
    """Subtract the training mean and divide by the training deviation, each taken over `dims`.

    dims (0,) scales every dimension of [N, ...] by itself, (0, 2, 3) every channel of [N, C, g, g]; what does not vary
    becomes 0.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: Features, dims: tuple[int, ...] = (0,)):
        super().__init__()
        deviation, mean = std_mean(features, dims)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", torch.where(deviation > 1e-6 * (1 + mean.abs()), 1 / deviation, 0))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) * self.scale


def unit_rows(features: Tensor) -> Tensor:
    """Flatten [N, ...] to [N, D] and divide each row by its L2 norm, so that the product of two rows is their cosine.
    A row of zeros stays as it is."""
    return functional.normalize(features.flatten(1), dim=1)
