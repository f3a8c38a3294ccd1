"""Samplers for every network and schedule, in x_t = alpha x0 + sigma noise, whatever the network predicts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ddae.backbones import Backbone
from ddae.backbones.base import Pixels
from ddae.noise import VE, VP, Flow, Schedule, image_noise

Denoise = Callable[[Tensor, int, np.ndarray], Tensor]
"""(x_t [N, *shape], native timestep, numbers of the images [N]) -> x0, float32 [N, *shape]."""

STEP_NOISE = 1
"""The draw of the noise that a sampler adds on the way; that of the start is 0."""


@dataclass(frozen=True)
class Step:
    """From a timestep to the next less noisy one; the last step ends at alpha = 1, sigma = 0."""

    timestep: int
    alpha: float
    sigma: float
    next_timestep: int | None
    next_alpha: float
    next_sigma: float


Update = Callable[[Tensor, Step, Callable[[Tensor, int], Tensor], Callable[[], Tensor]], Tensor]
"""(x_t, step, denoise, noise) -> x at the end of the step."""


def ddim(
    x_t: Tensor, step: Step, denoise: Callable[[Tensor, int], Tensor], noise: Callable[[], Tensor] | None = None
) -> Tensor:
    """One step of DDIM without noise (Song et al. 2021, equation 12). Under noise that is added alone, and on a
    rectified flow, it is Euler's."""
    x0 = denoise(x_t, step.timestep)
    return step.next_alpha * x0 + step.next_sigma * (x_t - step.alpha * x0) / step.sigma


def ancestral(x_t: Tensor, step: Step, denoise: Callable[[Tensor, int], Tensor], noise: Callable[[], Tensor]) -> Tensor:
    """A draw from q(x_s | x_t, x0), DDPM's posterior between any two steps (Ho et al. 2020, equation 7)."""
    x0 = denoise(x_t, step.timestep)
    ratio = step.alpha / step.next_alpha
    added = max(0.0, step.sigma**2 - (ratio * step.next_sigma) ** 2)
    variance = added * (step.next_sigma / step.sigma) ** 2
    kept = math.sqrt(max(0.0, step.next_sigma**2 - variance))
    mean = step.next_alpha * x0 + kept * (x_t - step.alpha * x0) / step.sigma
    return mean + math.sqrt(variance) * noise() if variance else mean


def heun(
    x_t: Tensor, step: Step, denoise: Callable[[Tensor, int], Tensor], noise: Callable[[], Tensor] | None = None
) -> Tensor:
    """Heun's second-order step on y = x / alpha against sigma / alpha (Karras et al. 2022, algorithm 1). The last step
    is Euler's, and so is one from x_t that holds nothing of the image."""
    x0 = denoise(x_t, step.timestep)
    slope = (x_t - step.alpha * x0) / step.sigma
    euler = step.next_alpha * x0 + step.next_sigma * slope
    if step.next_timestep is None or not step.alpha:
        return euler
    corrected = (euler - step.next_alpha * denoise(euler, step.next_timestep)) / step.next_sigma
    ratio = step.next_sigma / step.next_alpha - step.sigma / step.alpha
    return step.next_alpha * (x_t / step.alpha + ratio * (slope + corrected) / 2)


SAMPLERS: dict[str, Update] = {"ddim": ddim, "ancestral": ancestral, "heun": heun, "euler": ddim}
"""euler is another name of ddim, by which it is known for EDM and for flows."""


def usual_sampler(schedule: Schedule) -> str:
    """The one that networks of this kind of noise are published with."""
    return "heun" if isinstance(schedule, VE) else "euler" if isinstance(schedule, Flow) else "ddim"


def steps_of(schedule: Schedule, num_steps: int) -> list[Step]:
    """num_steps steps evenly over the native timesteps, the noisiest first and always among them ("trailing", Lin et
    al. 2024); all timesteps where there are fewer. num_steps need not divide their number.

    Raises ValueError if nothing is noised."""
    timesteps = range(1, schedule.num_steps + 1) if isinstance(schedule, Flow) else schedule.timesteps
    noised = [timestep for timestep in timesteps if schedule.scales(timestep)[1] > 0]
    if not noised:
        raise ValueError("the network was trained without noise; give a diffusion network")
    num_steps = min(num_steps, len(noised))
    places = np.round(len(noised) - np.arange(num_steps) * len(noised) / num_steps).astype(int) - 1
    taken = [noised[place] for place in places]
    levels = [*((t, *schedule.scales(t)) for t in taken), (None, 1.0, 0.0)]
    return [Step(*now, *after) for now, after in pairwise(levels)]


def num_passes(sampler: str, num_steps: int) -> int:
    """Passes of the network for one image."""
    return 2 * num_steps - 1 if sampler == "heun" else num_steps


def clips(backbone: Backbone) -> bool:
    """Whether x0 is cut off at [-1, 1] in every step, as DDPM's and ADM's codes do for pixels; EDM's and those of flows
    do not."""
    return isinstance(backbone.encoder, Pixels) and isinstance(backbone.schedule, VP)


def sample(
    backbone: Backbone,
    indices: Sequence[int] | np.ndarray,
    seed: int = 0,
    num_steps: int = 50,
    sampler: str = "auto",
    denoise: Denoise | None = None,
    x0: Tensor | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Tensor:
    """Samples x0, float32 [N, *shape] on the network's device, for backbone.encoder.decode. Image i depends on (seed,
    indices[i]) alone, up to the rounding of other batches.

    denoise: used in place of backbone.denoise, for example to guide; gradients are its own to enable.
    x0: encoded images [N, *shape] whose noised versions are started from, instead of noise alone.
    Raises ValueError for an unknown sampler, and where a network cannot be sampled from.
    """
    is_clipped = clips(backbone)

    def denoised(x_t: Tensor, timestep: int, numbers: np.ndarray) -> Tensor:
        found = denoise(x_t, timestep, numbers) if denoise else backbone.denoise(x_t, timestep)
        return found.clamp(-1, 1) if is_clipped else found

    device, shape = backbone.settings.device, backbone.encoder.shape
    return sample_by(denoised, backbone.schedule, indices, shape, seed, num_steps, sampler, x0, device, on_step)


@torch.no_grad()
def sample_by(
    denoise: Denoise,
    schedule: Schedule,
    indices: Sequence[int] | np.ndarray,
    shape: tuple[int, ...],
    seed: int = 0,
    num_steps: int = 50,
    sampler: str = "auto",
    x0: Tensor | None = None,
    device: str | torch.device = "cpu",
    on_step: Callable[[Step], None] = lambda step: None,
) -> Tensor:
    """As sample(), of a denoiser that is no backbone, such as a network in training. shape: of an encoded image."""
    name = usual_sampler(schedule) if sampler == "auto" else sampler
    if name not in SAMPLERS:
        raise ValueError(f"sampler={sampler!r} is not known; choose auto, {', '.join(SAMPLERS)}")
    numbers, steps = np.asarray(indices), steps_of(schedule, num_steps)

    def draw(timestep: int, draw: int) -> Tensor:
        return image_noise(numbers, shape, timestep, seed, draw).to(device)

    first, x = steps[0], draw(0, 0)
    if x0 is None:
        x = x * (first.sigma if first.alpha == 1 else math.hypot(first.alpha, first.sigma))
    else:
        x = first.alpha * x0.to(device) + first.sigma * x
    for step in steps:
        x = SAMPLERS[name](
            x, step, lambda x_t, timestep: denoise(x_t, timestep, numbers), partial(draw, step.timestep, STEP_NOISE)
        )
        on_step(step)
    return x
