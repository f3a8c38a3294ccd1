"""Scores that need about a hundred labels. Features are [N, D], as the network gives them; labels int64 [N]."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from ddae.label_free.unlabelled import ledoit_wolf
from ddae.ridge import leave_one_out, principal_axes

RATIOS = torch.logspace(-6, 12, 721, dtype=torch.float64)
"""Signal-to-noise ratios that logme tries for the strongest direction of the features, forty a decade."""


def logme(features: Tensor, labels: Tensor, num_classes: int) -> float:
    """Log evidence of Bayesian linear regression on one-hot labels, maximised over the precisions of weights and noise,
    divided by N and averaged over the classes that occur (LogME, You et al. 2021).

    In nats per image, unbounded, higher is better. Labels ~ N(0, (I + F F' / ratio) / noise precision): the best noise
    precision has a closed form, and the ratio of the two precisions is found on a grid, where the paper iterates.
    """
    _check_classes(labels)
    vectors, values, _ = torch.linalg.svd(features.double(), full_matrices=False)
    targets = functional.one_hot(labels, num_classes).double()
    targets = targets[:, targets.any(0)]
    along = (vectors.T @ targets).square()
    beyond = (targets.square().sum(0) - along.sum(0)).clamp(min=0)
    energies = (values / values[0].clamp(min=1e-300)).square()[:, None] * RATIOS.to(values.device)
    squares = (along.T @ (1 / (1 + energies)) + beyond[:, None]) / len(labels)
    volumes = (1 + energies).log().sum(0) / len(labels)
    evidence = -0.5 * (math.log(2 * math.pi) + 1 + squares.clamp(min=1e-15).log() + volumes)
    return float(evidence.amax(1).mean())


def h_score(features: Tensor, labels: Tensor, num_classes: int) -> float:
    """Regularised H-score: tr(C^-1 (1 - a) B), B the covariance of the class means and C that of the features, shrunk
    by a (Ibrahim et al. 2021; Ledoit & Wolf 2004).

    0 to the number of classes - 1, higher is better. The means lie in the span of the features, so the principal axes
    are enough and no D x D matrix is needed.
    """
    _check_classes(labels)
    features = features.double()
    projected, _, variances = principal_axes(features - features.mean(0), least=1e-12)
    shrinkage = ledoit_wolf(features)
    targets = functional.one_hot(labels, num_classes).double()
    counts = targets.sum(0)
    means = targets.T @ projected / counts.clamp(min=1)[:, None]
    between = counts / len(labels) @ means.square()
    within = (1 - shrinkage) * variances + shrinkage * variances.sum() / features.shape[1]
    return float((1 - shrinkage) * (between / within).sum())


def ridge(features: Tensor, labels: Tensor, num_classes: int) -> float:
    """Accuracy of ridge regression with one image left out at a time (see ddae.ridge), 0 to 1, higher is better."""
    _check_classes(labels)
    return float(leave_one_out(features, labels, num_classes).mean())


def ridges(features: Tensor, labels: Tensor, num_classes: int, weights: Tensor) -> Tensor:
    """The accuracy under each of several weightings of the images that are judged, of fits to all of them: [B].

    weights: [B, N], how often an image is counted; a weighting that counts none gets the accuracy on all."""
    right = torch.from_numpy(leave_one_out(features, labels, num_classes)).to(weights)
    counted = weights.sum(1)
    return torch.where(counted > 0, weights @ right / counted.clamp(min=1), right.mean())


def _check_classes(labels: Tensor) -> None:
    if len(labels.unique()) < 2:
        raise ValueError(f"{len(labels)} labels are all of one class; give more labels")
