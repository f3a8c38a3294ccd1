"""Linear heads without a learning rate: ridge regression and multinomial logistic regression.

Both work on the principal axes of the standardised features, where every penalty is diagonal and all of them are
fitted in one pass.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ddae import ridge
from ddae.heads.base import StackedHead
from ddae.heads.kept import Kept
from ddae.scaling import Standardise
from ddae.streaming import Features, blocks

PENALTIES = (1e-3, 1e-2, 1e-1)
"""L2 penalties of the linear head, relative to the mean loss."""
NUM_STEPS = 60
SCORES_AT_ONCE = 2**24
"""Class scores, of rows x settings x classes, that are in memory at a time."""
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


def fit_ridge(
    features: Features,
    labels: Tensor,
    num_classes: int,
    seed: int,
    kept: Kept | None = None,
    standardise: Standardise | None = None,
) -> StackedLinear:
    """Ridge regression on one-hot labels and standardised features, all penalties at once."""
    standardise = standardise or Standardise(features)
    if isinstance(features, Tensor):
        weight, bias = ridge.fit(standardise(features).flatten(1), labels, num_classes)
    else:
        weight, bias = ridge.fit_streamed(features, standardise, labels, num_classes)
    return StackedLinear(tuple(f"penalty={penalty:g}" for penalty in ridge.PENALTIES), standardise, weight, bias)


def fit_linear(
    features: Features,
    labels: Tensor,
    num_classes: int,
    seed: int,
    kept: Kept | None = None,
    standardise: Standardise | None = None,
) -> StackedLinear:
    """Multinomial logistic regression with an L2 penalty on standardised features, all penalties at once."""
    penalties = {f"penalty={penalty:g}": penalty for penalty in PENALTIES}
    inputs = standardise or Standardise(features)
    return _descend(inputs, features, labels, num_classes, penalties, NUM_STEPS, kept or Kept())


def fit_logistic(
    features: Features, labels: Tensor, num_classes: int, seed: int, kept: Kept | None = None
) -> StackedLinear:
    """Logistic regression as DINOv2 evaluates it (Oquab et al. 2023), on features as they are, all C at once:
    min 0.5 |w|^2 + C sum_i loss_i, which is scikit-learn's objective too."""
    centre = Standardise(features)
    centre.scale = torch.ones_like(centre.scale)  # moves only the bias, which is free of the penalty
    penalties = {f"C={cost:g}": 1 / (cost * len(features)) for cost in COSTS}
    return _descend(centre, features, labels, num_classes, penalties, 200, kept or Kept())


def linear_memory(num_settings: int, shape: tuple[int, ...], num_classes: int) -> tuple[int, int]:
    """Beside the features: the standardised and the rotated ones, X'X with its eigenvectors and what finding them
    takes, the weights and what descends with them, and the scores of some rows."""
    num_rows, width = shape[0], math.prod(shape[1:])
    fixed = 4 * (6 * width * num_settings * num_classes + 3 * SCORES_AT_ONCE)
    return 4 * (2 * num_rows * width + 4 * min(width, num_rows) ** 2) + fixed, 4 * 4 * width**2 + fixed


def _descend(
    inputs: Standardise,
    features: Features,
    labels: Tensor,
    num_classes: int,
    penalties: dict[str, float],
    num_steps: int,
    kept: Kept,
) -> StackedLinear:
    """Minimise mean cross-entropy + 0.5 penalty |weight|^2 for every setting -> penalty at once.

    Accelerated descent (Nesterov 1983) with a fixed preconditioner: the Hessian of the multinomial loss is at most
    half of X'X / N for any weights (Boehning 1992, Annals of the Institute of Statistical Mathematics 44), which is
    diagonal on the principal axes, so a full step is safe and there is no learning rate.
    """
    found = kept.load()
    passes = Rotated(inputs, features, labels, num_classes, len(penalties), found)
    state = found or passes.start(labels)
    weight, bias, ahead_weight, ahead_bias = (state[name].to(features.device) for name in VARIABLES)
    penalty = weight.new_tensor(list(penalties.values()))[:, None]
    step = 1 / (0.5 * passes.variances[:, None, None] + penalty)
    for iteration in range(state["iteration"], num_steps):
        gradient, bias_gradient = passes.gradient(ahead_weight, ahead_bias, labels)
        gradient = gradient + penalty * ahead_weight
        momentum = iteration / (iteration + 3)
        weight, previous_weight = ahead_weight - step * gradient, weight
        bias, previous_bias = ahead_bias - 2 * bias_gradient, bias
        ahead_weight = weight + momentum * (weight - previous_weight)
        ahead_bias = bias + momentum * (bias - previous_bias)
        reached = weight, bias, ahead_weight, ahead_bias
        kept.save(partial(passes.state, iteration + 1, *reached))
    kept.done()
    return StackedLinear(tuple(penalties), inputs, torch.tensordot(passes.axes, weight, 1), bias)


SCALE = "mean", "scale", "axes", "variances"
VARIABLES = "weight", "bias", "ahead_weight", "ahead_bias"


class Rotated:
    """Standardised features on their principal axes [D, r]: held ones are rotated once; of streamed ones, at every
    read, the weights are.

    found: the state of a descent that goes on, which has the axes.
    """

    def __init__(
        self,
        inputs: Standardise,
        features: Features,
        labels: Tensor,
        num_classes: int,
        num_settings: int,
        found: dict[str, Any] | None,
    ):
        self.inputs, self.features, self.shape = inputs, features, (num_settings, num_classes)
        self.held: Tensor | None = None
        self.rows_at_once = max(1, SCORES_AT_ONCE // (num_settings * num_classes))
        if found:
            inputs.mean, inputs.scale, self.axes, self.variances = (found[name].to(features.device) for name in SCALE)
            if isinstance(features, Tensor):
                self.held = inputs(features).flatten(1) @ self.axes
        elif isinstance(features, Tensor):
            self.held, self.axes, self.variances = ridge.principal_axes(inputs(features).flatten(1))
        else:
            self.axes, self.variances, _ = ridge.streamed_axes(features, inputs, labels, num_classes)

    def start(self, labels: Tensor) -> dict[str, Any]:
        """The state of a descent that begins: no weights, and the classes' shares as bias."""
        weight = self.axes.new_zeros(self.axes.shape[1], *self.shape)
        shares = ridge.class_shares(labels, self.shape[1], weight.dtype)
        bias = (shares + 1e-6).log().repeat(self.shape[0], 1)
        return self.state(0, weight, bias, weight, bias)

    def state(self, iteration: int, *variables: Tensor) -> dict[str, Any]:
        """All that the descent goes on from."""
        scale = self.inputs.mean, self.inputs.scale, self.axes, self.variances
        return {"iteration": iteration} | dict(zip((*SCALE, *VARIABLES), (*scale, *variables), strict=True))

    def gradient(self, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the mean cross-entropy at weight [r, S, K] and bias [S, K]."""
        seen = weight if self.held is not None else torch.tensordot(self.axes, weight, 1)
        by_weight, by_bias = torch.zeros_like(seen), torch.zeros_like(bias)
        for rows, x in blocks(self.features if self.held is None else self.held, self.rows_at_once):
            x = x if self.held is not None else self.inputs(x).flatten(1)
            residual = (torch.tensordot(x, seen, 1) + bias).softmax(-1)
            residual[torch.arange(len(x), device=x.device), :, labels[rows]] -= 1
            residual /= len(labels)
            by_weight += torch.tensordot(x.T, residual, 1)
            by_bias += residual.sum(0)
        return by_weight if self.held is not None else torch.tensordot(self.axes.T, by_weight, 1), by_bias
