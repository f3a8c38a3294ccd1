"""Ridge regression in closed form, on the principal axes of the features."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ddae.scaling import Standardise

VERSION = 1
"""Raise it when leave_one_out gives another result for the same features: stored results carry it in their key."""
PENALTIES = tuple(10.0**exponent for exponent in range(-4, 4))
"""L2 penalties on the weights of standardised features, in units of the mean squared error."""


def fit(x: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Least squares on one-hot labels for every penalty at once: w = (X'X / N + penalty I)^-1 X'Y / N.

    x: standardised features [N, D]. Returns weight [D, S, K] and bias [S, K], S the number of PENALTIES.
    """
    projected, axes, variances = principal_axes(x)
    targets = functional.one_hot(labels, num_classes).to(x.dtype)
    moments = projected.T @ (targets - targets.mean(0)) / len(labels)
    penalties = variances.new_tensor(PENALTIES)
    shrunk = moments[:, None] / (variances[:, None, None] + penalties[:, None])
    return torch.tensordot(axes, shrunk, 1), targets.mean(0).expand(len(penalties), -1)


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
    gram = (x @ x.T if num_rows < num_columns else x.T @ x) / num_rows
    variances, vectors = torch.linalg.eigh(gram)
    keep = variances > least * variances[-1].clamp(min=1e-12)
    variances, vectors = variances[keep], vectors[:, keep]
    axes = x.T @ vectors / (variances * num_rows).sqrt() if num_rows < num_columns else vectors
    return x @ axes, axes, variances
