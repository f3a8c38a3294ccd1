"""A first look at a feature that needs no val image: ridge regression, one image left out at a time."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ddae.heads.base import Standardise
from ddae.heads.linear import RIDGE_PENALTIES, principal_axes


def leave_one_out(features: Tensor, labels: Tensor, num_classes: int) -> np.ndarray:
    """Which images ridge regression gets right when it is fitted on all the others: bool [N].

    Closed form: without image i its residual is r_i / (1 - H_ii), where r = (I - H) y and H is the hat matrix (Allen
    1974, Technometrics 16). I - H is summed over the principal axes, in double precision, because 1 - H_ii loses its
    digits where there are more numbers than images. The penalty is the one that gets most images right.
    features: float32 [N, C, g, g]; labels: int64 [N].
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
    for penalty in RIDGE_PENALTIES:
        kept = penalty / (variances + penalty)
        residual = axes @ (kept[:, None] * along) + beyond
        slack = (axes.square() @ kept + slack_beyond).clamp(min=1e-12)
        right.append(((targets - residual / slack[:, None]).argmax(1) == labels).cpu().numpy())
    return max(right, key=np.mean)
