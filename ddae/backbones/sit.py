"""SiT, the flows of Ma et al. 2024 with DiT's network, and those that REPA (Yu et al. 2025) trains, as official
checkpoints.

Timesteps 1..999 count the noise: t/1000 of the way from image to noise. SiT's code calls this time 1 - t/1000 (its
t = 1 is the image), REPA's t/1000 (its t = 0 is the image), and each network is told the time of its own code.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddae.backbones.base import Backbone, Settings
from ddae.backbones.dit_layout import KINDS, OPTIONS, UNUSED, kind_of, load_transformer, make_backbone
from ddae.backbones.options import NOTHING, checked_options, name_assumed, read_options
from ddae.backbones.predictions import Denoised, first_channels
from ddae.noise import VP, Flow, Schedule

NUM_STEPS = 1000

SIGNAL: dict[str, Callable[[float], float]] = {
    "cosine": lambda s: math.cos(math.pi / 2 * s) ** 2,
    "vp": lambda s: math.exp(-0.5 * s**2 * (20 - 0.1) - s * 0.1),
}
"""Squared share of the image in x_t, s of the way to noise, on the paths that keep the variance."""

PATHS = {"linear": "linear", "Linear": "linear", "cosine": "cosine", "GVP": "cosine", "VP": "vp"}
"""Paths as the two codes call them; SiT's GVP is REPA's cosine."""


def from_state(
    state: dict[str, Tensor],
    path: Path,
    fingerprint: str,
    settings: Settings,
    said: Mapping[str, Any] = NOTHING,
) -> Backbone:
    """Loads a checkpoint of either code. The path is the `path_type` of the arguments in the file or of the sidecar,
    or linear, which is named then. REPA's projectors, which only its training needs, are left out."""
    is_repa = kind_of(state, path, said) == "REPA"
    options = checked_options(path, {**OPTIONS, "model_type": KINDS, "path_type": tuple(PATHS)}, UNUSED)
    path_type = options.get("path_type", said.get("path_type"))
    if path_type is None:
        name_assumed(path, {"path_type": "linear"})
    elif path_type not in PATHS:
        raise ValueError(f"{path} was trained with path_type={path_type!r}; the known ones are {', '.join(PATHS)}")
    if is_repa:
        state = without_projectors(state)
    network = load_transformer(state, path, said)
    schedule = flow(PATHS[path_type or "linear"])
    time = share_of_noise if is_repa else share_of_image
    prediction = read_options(path).get("prediction", said.get("prediction", "velocity"))
    velocity = flow_denoised(PATHS[path_type or "linear"], schedule, 1 if is_repa else -1)
    denoised = velocity if prediction in ("velocity", "v") else None
    told = lambda timestep: (time(timestep), 1.0)  # noqa: E731
    return make_backbone(network, schedule, path, fingerprint, settings, told, denoised)


def share_of_noise(timestep: int) -> float:
    return timestep / NUM_STEPS


def share_of_image(timestep: int) -> float:
    return 1 - timestep / NUM_STEPS


def flow(path_type: str) -> Schedule:
    if path_type == "linear":
        return Flow(NUM_STEPS)
    return VP([SIGNAL[path_type](t / NUM_STEPS) for t in range(1, NUM_STEPS)], first=1)


SLOPE: dict[str, Callable[[float], float]] = {
    "cosine": lambda s: -math.pi / 2 * math.tan(math.pi / 2 * s),
    "vp": lambda s: -0.5 * (s * (20 - 0.1) + 0.1),
}
"""The derivative of ln(alpha) at s."""


def flow_denoised(path_type: str, schedule: Schedule, sign: int) -> Denoised:
    """x0 from the velocity dx/ds that a network predicts. sign: -1 where its time runs towards the image.

    On a path that keeps the variance, dx/ds = alpha' x0 + sigma' noise with sigma' = -alpha alpha' / sigma, so that
    x0 = alpha x_t + sigma^2 / alpha' dx/ds.
    """

    def denoised(output: Any, x_t: Tensor, timestep: int) -> Tensor:
        alpha, sigma = schedule.scales(timestep)
        velocity = sign * first_channels(output, x_t)
        if path_type == "linear":
            return x_t - sigma * velocity
        return alpha * x_t + sigma**2 / (alpha * SLOPE[path_type](timestep / NUM_STEPS)) * velocity

    return denoised


def without_projectors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drops REPA's projectors, and numbers the blocks of its older files through, which counted those behind the
    projectors from 0 again, as decoder_blocks."""
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("decoder_blocks."):
            _, i, rest = name.split(".", 2)
            name = f"blocks.{depth + int(i)}.{rest}"
        if not name.startswith("projectors."):
            renamed[name] = tensor
    return renamed
