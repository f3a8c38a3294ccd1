"""Linear heads trained as in their papers, so that accuracies can be compared with the published ones."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ddae.heads.kept import Kept
from ddae.heads.mlp import mlp
from ddae.heads.training import ADAM, Parts, Recipe, StackedNetworks, memory, train, untrained
from ddae.streaming import Features, num_features

DDAE = Recipe(settings=((1e-3, 0.0),), batch_size=128, num_epochs=15, min_steps=500)
"""Adam, which is AdamW without weight decay."""
BN_LINEAR = Recipe(
    settings=((0.01, 0.0), (0.1, 0.0), (1.0, 0.0)),
    num_epochs=28,
    optimizer=partial(SGD, momentum=0.9, fused=True),
)


def fit_ddae(
    features: Features, labels: Tensor, num_classes: int, seed: int, kept: Kept | None = None
) -> StackedNetworks:
    """Train a linear layer on features as they are, as Table 6 of Denoising Diffusion Autoencoders has it (Xiang et al.
    2023): Adam at 1e-3, batches of 128, 15 epochs. The cosine schedule falls at every step, in the official code at
    every epoch."""
    return train(*plain(features, num_classes), features, labels, seed, DDAE, kept)


def plain(features: Features, num_classes: int) -> Parts:
    return nn.Identity(), lambda: mlp(num_features(features), (), num_classes)


empty_ddae = partial(untrained, plain)
ddae_memory = partial(memory, plain, DDAE)


def fit_bn_linear(
    features: Features, labels: Tensor, num_classes: int, seed: int, kept: Kept | None = None
) -> StackedNetworks:
    """Train a linear layer behind a batch normalisation without parameters, by SGD with momentum and no weight decay
    (MAE, He et al. 2022, appendix A.1; VISSL, Goyal et al. 2019). MAE uses LARS for its batches of 16,384 images."""
    return train(*batch_normalised(features, num_classes), features, labels, seed, BN_LINEAR, kept)


def batch_normalised(features: Features, num_classes: int) -> Parts:
    num_inputs = num_features(features)
    normalise = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(num_inputs, affine=False, eps=1e-6))
    return normalise, lambda: mlp(num_inputs, (), num_classes)


empty_bn_linear = partial(untrained, batch_normalised)
bn_linear_memory = partial(memory, batch_normalised, BN_LINEAR)


def lars(parameters: list) -> Optimizer:
    """LARS (You et al. 2017) with momentum 0.9, by which MAE and efficient probing train. timm's adapts the rates of
    biases too."""
    from timm.optim import Lars

    return Lars(parameters, momentum=0.9, always_adapt=True)


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {"adam": ADAM, "sgd": partial(SGD, lr=1.0), "lars": lars}
"""What papers train heads by; each group of parameters has a learning rate of its own."""
