"""A multi-layer perceptron (Mukhopadhyay et al. 2023, Table 7)."""

from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from ddae.heads.kept import Kept
from ddae.heads.training import Parts, Recipe, StackedNetworks, memory, train, untrained
from ddae.scaling import Standardise
from ddae.streaming import Features, num_features

RECIPE = Recipe(settings=((3e-3, 0.1), (1e-2, 1.0)), min_steps=50)


def fit_mlp(
    features: Features, labels: Tensor, num_classes: int, seed: int, *hidden: int, kept: Kept | None = None
) -> StackedNetworks:
    """Fit hidden layers of these sizes, on features standardised dimension by dimension."""
    return train(*parts(features, num_classes, *hidden), features, labels, seed, RECIPE, kept)


def parts(features: Features, num_classes: int, *hidden: int) -> Parts:
    return Standardise(features), lambda: mlp(num_features(features), hidden, num_classes)


empty_mlp = partial(untrained, parts)
mlp_memory = partial(memory, parts, RECIPE)


def mlp(num_inputs: int, hidden: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """[N, C, g, g] -> [N, K]: flatten, then hidden layers with ReLU, then a linear layer."""
    network = nn.Sequential(nn.Flatten())
    for size, next_size in pairwise((num_inputs, *hidden)):
        network.extend([nn.Linear(size, next_size), nn.ReLU()])
    return network.append(nn.Linear((num_inputs, *hidden)[-1], num_classes))
