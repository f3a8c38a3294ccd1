"""Linear heads without a learning rate: ridge regression and multinomial logistic regression.

Both work on the principal axes of the standardised features, where every penalty is diagonal and all of them are
fitted in one pass.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ddae import ridge
from ddae.heads.base import StackedHead
from ddae.scaling import Standardise

PENALTIES = (1e-3, 1e-2, 1e-1)
"""L2 penalties of the linear head, relative to the mean loss."""
NUM_STEPS = 60
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
        scores = torch.tensordot(self.standardise(features).flatten(1), self.weight, 1)
        return (scores + self.bias).transpose(0, 1)

    def only(self, setting: str) -> "StackedLinear":
        chosen = [self.settings.index(setting)]
        return StackedLinear((setting,), self.standardise, self.weight[:, chosen], self.bias[chosen])


def empty_linear(features: Tensor, num_classes: int) -> StackedLinear:
    weight = features.new_empty(features[0].numel(), 1, num_classes)
    return StackedLinear(("",), Standardise(features), weight, weight[0])


def fit_ridge(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> StackedLinear:
    """Ridge regression on one-hot labels and standardised features, all penalties at once."""
    standardise = Standardise(features)
    weight, bias = ridge.fit(standardise(features).flatten(1), labels, num_classes)
    return StackedLinear(tuple(f"penalty={penalty:g}" for penalty in ridge.PENALTIES), standardise, weight, bias)


def fit_linear(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> StackedLinear:
    """Multinomial logistic regression with an L2 penalty on standardised features, all penalties at once."""
    penalties = {f"penalty={penalty:g}": penalty for penalty in PENALTIES}
    return _descend(Standardise(features), features, labels, num_classes, penalties, NUM_STEPS)


def fit_logistic(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> StackedLinear:
    """Logistic regression as DINOv2 evaluates it (Oquab et al. 2023), on features as they are, all C at once:
    min 0.5 |w|^2 + C sum_i loss_i, which is scikit-learn's objective too."""
    centre = Standardise(features)
    centre.scale = torch.ones_like(centre.scale)  # moves only the bias, which is free of the penalty
    penalties = {f"C={cost:g}": 1 / (cost * len(features)) for cost in COSTS}
    return _descend(centre, features, labels, num_classes, penalties, num_steps=200)


def _descend(
    inputs: Standardise, features: Tensor, labels: Tensor, num_classes: int, penalties: dict[str, float], num_steps: int
) -> StackedLinear:
    """Minimise mean cross-entropy + 0.5 penalty |weight|^2 for every setting -> penalty at once.

    Accelerated descent (Nesterov 1983) with a fixed preconditioner: the Hessian of the multinomial loss is at most
    half of X'X / N for any weights (Boehning 1992, Annals of the Institute of Statistical Mathematics 44), which is
    diagonal on the principal axes, so a full step is safe and there is no learning rate.
    """
    projected, axes, variances = ridge.principal_axes(inputs(features).flatten(1))
    penalty = variances.new_tensor(list(penalties.values()))[:, None]
    step = 1 / (0.5 * variances[:, None, None] + penalty)
    targets = functional.one_hot(labels, num_classes).to(features.dtype)[:, None]
    weight = projected.new_zeros(projected.shape[1], len(penalties), num_classes)
    bias = (targets.mean(0) + 1e-6).log().repeat(len(penalties), 1)
    ahead_weight, ahead_bias = weight, bias
    for iteration in range(num_steps):
        scores = torch.tensordot(projected, ahead_weight, 1) + ahead_bias
        residual = (scores.softmax(-1) - targets) / len(labels)
        gradient = torch.tensordot(projected.T, residual, 1) + penalty * ahead_weight
        momentum = iteration / (iteration + 3)
        weight, previous_weight = ahead_weight - step * gradient, weight
        bias, previous_bias = ahead_bias - 2 * residual.sum(0), bias
        ahead_weight = weight + momentum * (weight - previous_weight)
        ahead_bias = bias + momentum * (bias - previous_bias)
    return StackedLinear(tuple(penalties), inputs, torch.tensordot(axes, weight, 1), bias)
