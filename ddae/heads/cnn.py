"""A convolutional head (Mukhopadhyay et al. 2023, appendix A and Table 8)."""

from functools import partial

from torch import Tensor, nn

from ddae.heads.kept import Kept
from ddae.heads.training import Parts, Recipe, StackedNetworks, memory, train, untrained
from ddae.scaling import Standardise
from ddae.streaming import Features

RECIPE = Recipe(settings=((3e-3, 0.1), (1e-2, 0.1)), batch_size=128)


def fit_cnn(
    features: Features, labels: Tensor, num_classes: int, seed: int, first: int, second: int, kept: Kept | None = None
) -> StackedNetworks:
    """Fit two convolutions with these numbers of output channels, on features standardised channel by channel."""
    return train(*parts(features, num_classes, first, second), features, labels, seed, RECIPE, kept)


def parts(features: Features, num_classes: int, first: int, second: int) -> Parts:
    return Standardise(features, dims=(0, 2, 3)), lambda: cnn(features.shape[1], first, second, num_classes)


empty_cnn = partial(untrained, parts)
cnn_memory = partial(memory, parts, RECIPE)


def cnn(channels: int, first: int, second: int, num_classes: int) -> nn.Sequential:
    """[N, C, g, g] -> [N, K]: two 2x2 convolutions, each with a 2x2 max pool, then average pooling to 2x2 and a linear
    layer.

    Padding and rounding up bring a 4x4 map to 2x2 (4 -> 5 -> 3 -> 4 -> 2); the paper's maps are 16x16 and larger.
    """
    return nn.Sequential(
        nn.Conv2d(channels, first, 2, padding=1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(first, second, 2, padding=1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * second, num_classes),
    )
