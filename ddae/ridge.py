"""Ridge regression in closed form, on the principal axes of the features."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ddae.scaling import Standardise
from ddae.streaming import Features, Streamed, blocks, num_features

VERSION = 1
"""Raise it when leave_one_out gives another result for the same features: stored results carry it in their key."""
PENALTIES = tuple(10.0**exponent for exponent in range(-4, 4))
"""L2 penalties on the weights of standardised features, in units of the mean squared error."""
ROWS_AT_ONCE = 4096
"""Whose predictions at all penalties are in memory at a time."""


def fit(x: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Least squares on one-hot labels for every penalty at once: w = (X'X / N + penalty I)^-1 X'Y / N.

    x: standardised features [N, D]. Returns weight [D, S, K] and bias [S, K], S the number of PENALTIES.
    """
    targets = functional.one_hot(labels, num_classes).to(x.dtype)
    projected, axes, variances = principal_axes(x)
    moments = projected.T @ (targets - targets.mean(0)) / len(labels)
    return _shrunk(axes, variances, moments), targets.mean(0).expand(len(PENALTIES), -1)


def fit_streamed(features: Streamed, scale: Standardise, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """What fit returns, in one read of features that are standardised on the way."""
    axes, variances, sums = streamed_axes(features, scale, labels, num_classes)
    shares = class_shares(labels, num_classes, features.dtype)  # the standardised features have a mean of 0
    return _shrunk(axes, variances, axes.T @ sums / len(labels)), shares.expand(len(PENALTIES), -1)


def _shrunk(axes: Tensor, variances: Tensor, moments: Tensor) -> Tensor:
    """The weights [D, S, K] for every penalty from X'Y / N [r, K] on the principal axes."""
    penalties = variances.new_tensor(PENALTIES)
    return torch.tensordot(axes, moments[:, None] / (variances[:, None, None] + penalties[:, None]), 1)


def class_shares(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Which share of the labels each class has, [K]."""
    return labels.bincount(minlength=num_classes).to(dtype) / len(labels)


def leave_one_out(features: Tensor, labels: Tensor, num_classes: int) -> np.ndarray:
    """Tell which images ridge regression gets right when it is fitted on all the others: bool [N].

    Closed form: without image i its residual is r_i / (1 - H_ii), where r = (I - H) y and H is the hat matrix (Allen
    1974, Technometrics 16). I - H is summed over the principal axes, in double precision, because 1 - H_ii loses its
    digits where there are more numbers than images. The penalty is the one that gets most images right.
    features: float32 [N, ...]; labels: int64 [N].
    """
    projected, _, variances = principal_axes(Standardise(features)(features).flatten(1).double())
    num_images = len(labels)
    axes = projected / (variances * num_images).sqrt()
    targets = functional.one_hot(labels, num_classes).double()
    centred = targets - targets.mean(0)
    along = axes.T @ centred
    beyond, slack_beyond = centred - axes @ along, 1 - 1 / num_images - axes.square().sum(1)
    if len(variances) >= num_images - 1:  # the axes and the mean reach every direction
        beyond, slack_beyond = torch.zeros_like(beyond), torch.zeros_like(slack_beyond)
    right = []
    for penalty in PENALTIES:
        kept = penalty / (variances + penalty)
        residual = axes @ (kept[:, None] * along) + beyond
        slack = (axes.square() @ kept + slack_beyond).clamp(min=1e-12)
        right.append(((targets - residual / slack[:, None]).argmax(1) == labels).cpu().numpy())
    return max(right, key=np.mean)


def principal_axes(x: Tensor, least: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate centred x [N, D] onto its axes of most variance, and return (x @ axes [N, r], axes [D, r], variances [r]),
    the least variance first.

    Axes with less than the share `least` of the largest variance are dropped; float64 resolves 1e-12. L2-penalised
    fits lie in the span of these axes, so nothing is lost where D > N.
    """
    num_rows, num_columns = x.shape
    variances, vectors = _eigenvectors((x @ x.T if num_rows < num_columns else x.T @ x) / num_rows, least)
    axes = x.T @ vectors / (variances * num_rows).sqrt() if num_rows < num_columns else vectors
    return x @ axes, axes, variances


def streamed_axes(
    features: Streamed, scale: Standardise, labels: Tensor, num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The axes [D, r] and variances [r] of standardised features, and the sums of these over each class, [D, K], from
    one read."""
    width = num_features(features)
    gram = torch.zeros(width, width, device=features.device)
    sums = torch.zeros(num_classes, width, device=features.device)
    for rows, maps in blocks(features):
        x = scale(maps).flatten(1)
        gram.addmm_(x.T, x)
        sums.index_add_(0, labels[rows], x)
    variances, axes = _eigenvectors(gram.div_(len(features)), 1e-6)
    return axes, variances, sums.T


def axes_of(features: Features, scale: Standardise, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """What streamed_axes returns, of held features too."""
    if not isinstance(features, Tensor):
        return streamed_axes(features, scale, labels, num_classes)
    x = scale(features).flatten(1)
    _, axes, variances = principal_axes(x)
    return axes, variances, x.T @ functional.one_hot(labels, num_classes).to(x.dtype)


def _eigenvectors(gram: Tensor, least: float) -> tuple[Tensor, Tensor]:
    variances, vectors = torch.linalg.eigh(gram)
    keep = variances > least * variances[-1].clamp(min=1e-12)
    return variances[keep], vectors[:, keep]
