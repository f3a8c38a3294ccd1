"""A first look at a feature that needs no val image: ridge regression, one image left out at a time."""

import numpy as np
from torch import Tensor
from torch.nn import functional

from ddae.heads.base import Standardise
from ddae.heads.linear import RIDGE_PENALTIES, principal_axes


def leave_one_out(features: Tensor, labels: Tensor, num_classes: int) -> np.ndarray:
    """Which images ridge regression gets right when it is fitted on all the others: bool [N].

    Closed form: without image i its residual is r_i / (1 - H_ii), where r = (I - H) y and H is the hat matrix (Allen
    1974, Technometrics 16). I - H is summed over the principal axes, because 1 - H_ii loses its digits where there are
    more numbers than images. The penalty is the one that gets most images right.
    features: float32 [N, C, g, g]; labels: int64 [N].
    """
    projected, _, variances = principal_axes(Standardise(features)(features).flatten(1))
    num_images = len(labels)
    axes = projected / (variances * num_images).sqrt()
    penalties = variances.new_tensor(RIDGE_PENALTIES)
    kept = penalties / (variances[:, None] + penalties)
    targets = functional.one_hot(labels, num_classes).float()
    centred = targets - targets.mean(0)
    along = axes.T @ centred
    residual = (axes @ (kept[..., None] * along[:, None]).flatten(1)).view(num_images, -1, num_classes)
    slack = axes.square() @ kept
    if len(variances) < num_images - 1:  # else the axes and the mean reach every direction
        residual += (centred - axes @ along)[:, None]
        slack += (1 - 1 / num_images - axes.square().sum(1)).clamp(min=0)[:, None]
    left_out = targets[:, None] - residual / slack.clamp(min=1e-12)[..., None]
    correct = left_out.argmax(-1) == labels[:, None]
    return correct[:, correct.sum(0).argmax()].cpu().numpy()
