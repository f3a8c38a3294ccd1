"""What networks predict, turned into the image that they denoise: one formula for each kind, in x_t = alpha x0 + sigma
noise, so that one sampler serves them all."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ddae.noise import VE, VP, Flow, Schedule

Denoised = Callable[[Any, Tensor, int], Tensor]
"""(output of the network, x_t [N, *shape], native timestep) -> x0 as the network sees it, float32 [N, *shape]."""


def from_noise(predicted: Tensor, x_t: Tensor, alpha: float, sigma: float) -> Tensor:
    """Ho et al. 2020, equation 15. Raises ValueError where x_t holds nothing of the image."""
    if not alpha:
        raise ValueError("a network that predicts noise says nothing of the image where x_t is noise alone")
    return (x_t - sigma * predicted) / alpha


PREDICTIONS: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "epsilon": from_noise,
    "sample": lambda predicted, x_t, alpha, sigma: predicted,
    "v_prediction": lambda predicted, x_t, alpha, sigma: alpha * x_t - sigma * predicted,
    "flow_prediction": lambda predicted, x_t, alpha, sigma: x_t - sigma * predicted,
}
"""(prediction, x_t, alpha, sigma) -> x0, by the prediction_type of diffusers: the noise; the image; alpha noise - sigma
x0, where alpha^2 + sigma^2 = 1 (Salimans & Ho 2022); noise - x0, where alpha + sigma = 1."""


def first_channels(output: Any, x_t: Tensor) -> Tensor:
    """What a network returns for x_t, float32, without the variances that some predict in as many further channels.

    Raises ValueError if it is of another shape."""
    tensor = output if isinstance(output, Tensor) else output[0]
    if not isinstance(tensor, Tensor) or tensor.ndim != x_t.ndim or tensor.shape[1] not in (c := x_t.shape[1], 2 * c):
        raise ValueError(f"the network returns nothing of the shape of its images, {list(x_t.shape[1:])}")
    return tensor[:, : x_t.shape[1]].float()


def predicts(kind: str, schedule: Schedule) -> Denoised | None:
    """For one of PREDICTIONS; None for another."""
    if kind not in PREDICTIONS:
        return None

    def denoised(output: Any, x_t: Tensor, timestep: int) -> Tensor:
        return PREDICTIONS[kind](first_channels(output, x_t), x_t, *schedule.scales(timestep))

    return denoised


def preconditioned(schedule: Schedule, skip: Callable[[float], float], out: Callable[[float], float]) -> Denoised:
    """x0 = skip(sigma) x_t + out(sigma) prediction, under noise that is added alone."""

    def denoised(output: Any, x_t: Tensor, timestep: int) -> Tensor:
        sigma = schedule.sigma(timestep)
        return skip(sigma) * x_t + out(sigma) * first_channels(output, x_t)

    return denoised


def edm_denoised(schedule: Schedule, sigma_data: float, sign: int = 1) -> Denoised:
    """EDM's preconditioning (Karras et al. 2022, table 1). sign: -1 where diffusers' schedulers say v_prediction."""
    return preconditioned(
        schedule,
        lambda sigma: sigma_data**2 / (sigma**2 + sigma_data**2),
        lambda sigma: sign * sigma * sigma_data / math.hypot(sigma, sigma_data),
    )


def of_scheduler(scheduler: Any, schedule: Schedule) -> Denoised | None:
    """What a network predicts that was trained with this scheduler of diffusers; None where that is not known, as of
    consistency models."""
    kind = scheduler.config.get("prediction_type", "epsilon")
    if isinstance(schedule, Flow):
        return predicts("flow_prediction", schedule)
    if isinstance(schedule, VP):
        return predicts(kind, schedule)
    signs = {"epsilon": 1, "v_prediction": -1}
    if isinstance(schedule, VE) and hasattr(scheduler, "precondition_outputs") and kind in signs:
        return edm_denoised(schedule, scheduler.config.sigma_data, signs[kind])
    return None
