"""Linear heads without a learning rate: ridge regression and multinomial logistic regression.

Both work on the principal axes of the standardised features, where every penalty is diagonal and all of them are
fitted in one pass.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ddae.heads.base import StackedHead, Standardise

PENALTIES = (1e-3, 1e-2, 1e-1)
"""L2 penalties of the linear head, a weight's share of the mean loss."""
NUM_STEPS = 60
RIDGE_PENALTIES = tuple(10.0**exponent for exponent in range(-4, 4))
COSTS = tuple(10.0 ** (half / 2) for half in range(-6, 5))
"""C of `logistic`: the part of DINOv2's 1e-6 to 1e5 where accuracies peak, half a decade apart."""


class StackedLinear(StackedHead):
    """weight: [D, S, K] on standardised features; bias: [S, K]."""

    weight: Tensor
    bias: Tensor

    def __init__(self, settings: tuple[str, ...], standardise: Standardise, weight: Tensor, bias: Tensor):
        super().__init__(settings)
        self.standardise = standardise
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, features: Tensor) -> Tensor:
        scores = self.standardise(features).flatten(1) @ self.weight.flatten(1)
        return (scores.view(-1, *self.bias.shape) + self.bias).transpose(0, 1)

    def only(self, setting: str) -> "StackedLinear":
        place = slice(number := self.settings.index(setting), number + 1)
        return StackedLinear((setting,), self.standardise, self.weight[:, place], self.bias[place])


def empty_linear(features: Tensor, num_classes: int) -> StackedLinear:
    weight = features.new_empty(features[0].numel(), 1, num_classes)
    return StackedLinear(("",), Standardise(features), weight, weight[0])


def fit_ridge(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> StackedLinear:
    """Least squares on one-hot labels with an L2 penalty, closed form: w = (X'X / N + penalty I)^-1 X'Y / N."""
    standardise = Standardise(features)
    projected, axes, variances = principal_axes(standardise(features).flatten(1))
    targets = functional.one_hot(labels, num_classes).float()
    moments = projected.T @ (targets - targets.mean(0)) / len(labels)
    penalties = variances.new_tensor(RIDGE_PENALTIES)
    shrunk = moments[:, None] / (variances[:, None, None] + penalties[:, None])
    bias = targets.mean(0).expand(len(penalties), -1)
    settings = tuple(f"penalty={penalty:g}" for penalty in RIDGE_PENALTIES)
    return StackedLinear(settings, standardise, (axes @ shrunk.flatten(1)).view(-1, *shrunk.shape[1:]), bias)


def fit_linear(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> StackedLinear:
    """Multinomial logistic regression with an L2 penalty on standardised features, all penalties at once."""
    settings = tuple(f"penalty={penalty:g}" for penalty in PENALTIES)
    return _descend(Standardise(features), features, labels, num_classes, PENALTIES, settings, NUM_STEPS)


def fit_logistic(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> StackedLinear:
    """Logistic regression as DINOv2 evaluates it (Oquab et al. 2023), on features as they are, all C at once:
    min 0.5 |w|^2 + C sum_i loss_i, which is scikit-learn's objective too."""
    centre = Standardise(features)
    centre.scale = torch.ones_like(centre.scale)  # moves only the bias, which is free of the penalty
    penalties = tuple(1 / (cost * len(features)) for cost in COSTS)
    settings = tuple(f"C={cost:g}" for cost in COSTS)
    return _descend(centre, features, labels, num_classes, penalties, settings, num_steps=200)


def _descend(
    standardise: Standardise,
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    penalties: tuple[float, ...],
    settings: tuple[str, ...],
    num_steps: int,
) -> StackedLinear:
    """Mean cross-entropy + 0.5 penalty |weight|^2 on the principal axes, where one pass makes all penalties.

    Accelerated descent (Nesterov 1983) with a fixed preconditioner: the Hessian of the multinomial loss is at most
    half of X'X / N for any weights (Boehning 1992, Annals of the Institute of Statistical Mathematics 44), which is
    diagonal on the principal axes, so a full step is safe and there is no learning rate.
    """
    projected, axes, variances = principal_axes(standardise(features).flatten(1))
    penalty = variances.new_tensor(penalties)[:, None]
    step = 1 / (0.5 * variances[:, None, None] + penalty)
    targets = functional.one_hot(labels, num_classes).float()[:, None]
    weight = projected.new_zeros(projected.shape[1], len(penalties), num_classes)
    bias = (targets.mean(0) + 1e-6).log().repeat(len(penalties), 1)
    ahead_weight, ahead_bias = weight, bias
    for iteration in range(num_steps):
        scores = (projected @ ahead_weight.flatten(1)).view(-1, *bias.shape) + ahead_bias
        residual = (scores.softmax(-1) - targets) / len(labels)
        gradient = (projected.T @ residual.flatten(1)).view_as(weight) + penalty * ahead_weight
        momentum = iteration / (iteration + 3)
        weight, previous_weight = ahead_weight - step * gradient, weight
        bias, previous_bias = ahead_bias - 2 * residual.sum(0), bias
        ahead_weight = weight + momentum * (weight - previous_weight)
        ahead_bias = bias + momentum * (bias - previous_bias)
    return StackedLinear(settings, standardise, (axes @ weight.flatten(1)).view(-1, *weight.shape[1:]), bias)


def principal_axes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(x @ axes [N, r], axes [D, r], variances [r]) of centred x [N, D]; r <= min(N, D) axes of non-zero variance.

    L2-penalised fits lie in the span of these axes, so nothing is lost where D > N.
    """
    num_rows, num_columns = x.shape
    gram = (x @ x.T if num_rows < num_columns else x.T @ x) / num_rows
    variances, vectors = torch.linalg.eigh(gram)
    keep = variances > 1e-6 * variances[-1].clamp(min=1e-12)
    variances, vectors = variances[keep], vectors[:, keep]
    axes = x.T @ vectors / (variances * num_rows).sqrt() if num_rows < num_columns else vectors
    return x @ axes, axes, variances
