"""Linear heads trained as published, for numbers to set beside a paper's."""

from functools import partial

from torch import Tensor, nn
from torch.optim import SGD

from ddae.heads.mlp import mlp
from ddae.heads.training import Parts, Recipe, StackedNetworks, train, untrained

DDAE = Recipe(settings=((1e-3, 0.0),), batch_size=128, num_epochs=15, min_steps=500)
"""Adam is AdamW without decay."""
BN_LINEAR = Recipe(
    settings=((0.01, 0.0), (0.1, 0.0), (1.0, 0.0)),
    num_epochs=28,
    optimizer=partial(SGD, momentum=0.9, fused=True),
)


def fit_ddae(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> StackedNetworks:
    """Denoising Diffusion Autoencoders, Table 6 (Xiang et al. 2023): a linear layer on features as they are, Adam at
    1e-3, batches of 128, 15 epochs. The cosine falls step by step, the official code's epoch by epoch."""
    return train(*plain(features, num_classes), features, labels, seed, DDAE)


def plain(features: Tensor, num_classes: int) -> Parts:
    return nn.Identity(), lambda: mlp(features[0].numel(), (), num_classes)


empty_ddae = partial(untrained, plain)


def fit_bn_linear(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> StackedNetworks:
    """A batch normalisation without parameters, then a linear layer, by SGD with momentum and no decay (MAE, He et
    al. 2022, appendix A.1; VISSL, Goyal et al. 2019). MAE's LARS is for its batches of 16,384 images."""
    return train(*batch_normalised(features, num_classes), features, labels, seed, BN_LINEAR)


def batch_normalised(features: Tensor, num_classes: int) -> Parts:
    num_inputs = features[0].numel()
    normalise = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(num_inputs, affine=False, eps=1e-6))
    return normalise, lambda: mlp(num_inputs, (), num_classes)


empty_bn_linear = partial(untrained, batch_normalised)
