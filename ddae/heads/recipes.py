"""Linear heads trained as in their papers, so that accuracies can be compared with the published ones."""

from functools import partial

from torch import Tensor, nn
from torch.optim import SGD

from ddae.heads.mlp import mlp
from ddae.heads.training import Parts, Recipe, StackedNetworks, train, untrained

DDAE = Recipe(settings=((1e-3, 0.0),), batch_size=128, num_epochs=15, min_steps=500)
"""Adam, which is AdamW without weight decay."""
BN_LINEAR = Recipe(
    settings=((0.01, 0.0), (0.1, 0.0), (1.0, 0.0)),
    num_epochs=28,
    optimizer=partial(SGD, momentum=0.9, fused=True),
)


def fit_ddae(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> StackedNetworks:
    """Train a linear layer on features as they are, as Table 6 of Denoising Diffusion Autoencoders has it (Xiang et al.
    2023): Adam at 1e-3, batches of 128, 15 epochs. The cosine schedule falls at every step, in the official code at
    every epoch."""
    return train(*plain(features, num_classes), features, labels, seed, DDAE)


def plain(features: Tensor, num_classes: int) -> Parts:
    return nn.Identity(), lambda: mlp(features[0].numel(), (), num_classes)


empty_ddae = partial(untrained, plain)


def fit_bn_linear(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> StackedNetworks:
    """Train a linear layer behind a batch normalisation without parameters, by SGD with momentum and no weight decay
    (MAE, He et al. 2022, appendix A.1; VISSL, Goyal et al. 2019). MAE uses LARS for its batches of 16,384 images."""
    return train(*batch_normalised(features, num_classes), features, labels, seed, BN_LINEAR)


def batch_normalised(features: Tensor, num_classes: int) -> Parts:
    num_inputs = features[0].numel()
    normalise = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(num_inputs, affine=False, eps=1e-6))
    return normalise, lambda: mlp(num_inputs, (), num_classes)


empty_bn_linear = partial(untrained, batch_normalised)
