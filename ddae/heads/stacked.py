"""Stacking: a ridge regression a block, and one classifier on what they predict of images that they have not seen
(Wolpert 1992; Breiman 1996)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ddae import ridge
from ddae.heads.kept import Kept
from ddae.heads.linear import PENALTIES, StackedLinear, fit_linear, linear_memory
from ddae.heads.parts import split
from ddae.scaling import Standardise
from ddae.streaming import Features, blocks


def fit_stacked(
    features: Features, labels: Tensor, num_classes: int, seed: int, channels: Sequence[int], kept: Kept | None = None
) -> StackedLinear:
    """Logistic regression, all penalties at once, on the leave-one-out predictions of a ridge a block, each at the
    penalty that gets most images right. The composition is linear in the features, and is kept as such. channels: of
    each block."""
    parts = [out_of_sample(part, labels, num_classes) for part in split(features, channels)]
    predicted = torch.cat([scores for _, scores in parts], 1)[..., None, None]
    above = fit_linear(predicted, labels, num_classes, seed)
    scale, mean = above.standardise.scale.flatten(), above.standardise.mean.flatten()
    onto = scale[:, None, None] * above.weight  # [k * K, S, K]
    grid = features.shape[2] * features.shape[3]
    weights = [
        torch.tensordot(weight, share, 1).view(width * grid, *onto.shape[1:])
        for (weight, _), share, width in zip(parts, onto.split(num_classes), channels, strict=True)
    ]
    shares = ridge.class_shares(labels, num_classes, onto.dtype).repeat(len(parts))
    bias = above.bias + torch.tensordot(shares - mean, onto, 1)
    return StackedLinear(above.settings, Standardise(features), torch.cat(weights), bias)


def out_of_sample(features: Features, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Ridge regression on one-hot labels at the best penalty: its weight [D, K] on standardised features, beside a bias
    of the classes' shares; and what it predicts of every image when it is fitted on all the others, [N, K].

    With z the image on the principal axes, of variances v, its leverage is 1 / N + sum of z^2 / (N (v + penalty)), and
    without it its residual is larger by 1 / (1 - leverage) (Allen 1974).
    """
    num_images, scale = len(labels), Standardise(features)
    axes, variances, sums = ridge.axes_of(features, scale, labels, num_classes)
    penalties = variances.new_tensor(ridge.PENALTIES)
    shrunk = 1 / (variances[:, None] + penalties)  # [r, S]
    weights = (axes.T @ sums / num_images)[:, None] * shrunk[..., None]  # [r, S, K]
    shares = ridge.class_shares(labels, num_classes, axes.dtype)

    def left_out(maps: Tensor, targets: Tensor, settings: slice) -> Tensor:
        z = scale(maps).flatten(1) @ axes
        residual = targets[:, None] - shares - torch.tensordot(z, weights[:, settings], 1)
        leverage = z.square() @ shrunk[:, settings] / num_images + 1 / num_images
        return targets[:, None] - residual / (1 - leverage).clamp(min=1e-6)[..., None]

    def all_left_out(settings: slice):
        for rows, maps in blocks(features, ridge.ROWS_AT_ONCE):
            targets = functional.one_hot(labels[rows], num_classes).to(axes.dtype)
            yield labels[rows], left_out(maps, targets, settings)

    right = sum((scores.argmax(-1) == truth[:, None]).sum(0) for truth, scores in all_left_out(slice(None)))
    best = int(right.argmax())
    scores = torch.cat([each[:, 0] for _, each in all_left_out(slice(best, best + 1))])
    return axes @ weights[:, best], scores


def stacked_memory(shape: tuple[int, ...], num_classes: int, channels: Sequence[int]) -> tuple[int, int]:
    """Beside what a ridge of the widest block takes, the predictions of all."""
    widest = shape[0], max(channels), *shape[2:]
    held, streamed = linear_memory(len(ridge.PENALTIES), widest, num_classes)
    above, _ = linear_memory(len(PENALTIES), (shape[0], len(channels) * num_classes, 1, 1), num_classes)
    return held + above, streamed + above
