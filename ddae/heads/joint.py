"""Linear heads on all blocks at once: their features side by side, none counting more because it is wide."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from ddae import ridge
from ddae.heads.kept import Kept
from ddae.heads.linear import PENALTIES, StackedLinear, empty_linear, fit_linear, fit_ridge, linear_memory
from ddae.heads.parts import Balanced
from ddae.streaming import Features


def fit_joint(
    features: Features, labels: Tensor, num_classes: int, seed: int, channels: Sequence[int], kept: Kept | None = None
) -> StackedLinear:
    """Multinomial logistic regression. channels: of each block."""
    return fit_linear(features, labels, num_classes, seed, kept, Balanced(features, channels))


def fit_joint_ridge(
    features: Features, labels: Tensor, num_classes: int, seed: int, channels: Sequence[int], kept: Kept | None = None
) -> StackedLinear:
    """Ridge regression on one-hot labels."""
    return fit_ridge(features, labels, num_classes, seed, kept, Balanced(features, channels))


def empty_joint(features: Tensor, num_classes: int, channels: Sequence[int]) -> StackedLinear:
    return empty_linear(features, num_classes)


def memory(num_settings: int, shape: tuple[int, ...], num_classes: int, channels: Sequence[int]) -> tuple[int, int]:
    return linear_memory(num_settings, shape, num_classes)


joint_memory = partial(memory, len(PENALTIES))
joint_ridge_memory = partial(memory, len(ridge.PENALTIES))
