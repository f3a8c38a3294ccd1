"""What a network is trained for: kinds of diffusion, with their noise, losses and schedulers of diffusers, or to encode
images as latents."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]
"""(what the network is given [N, C, H, W], the time it is told [N]) -> its output [N, C, H, W]."""


@dataclass(frozen=True)
class Levels:
    """The noise levels that a network is trained at."""

    num_levels: int = 1000
    """T, in which a DDPM's timesteps and a flow's time are counted; EDM has no such number."""
    beta_range: tuple[float, float] = (1e-4, 0.02)
    """A DDPM's betas grow linearly from the first to the second over T levels (DDAE, section 4.1.1)."""

    def __post_init__(self) -> None:
        low, high = self.beta_range
        if self.num_levels < 2:
            raise ValueError(f"num_levels={self.num_levels} is no schedule; give 2 or more, 1000 in the papers")
        if not 0 < low <= high < 1:
            raise ValueError(f"beta_range={low:g} {high:g} must grow within 0 and 1, as 0.0001 0.02")


@dataclass(frozen=True)
class Framework:
    """A kind of diffusion, or an autoencoder. x0 is in [-1, 1], or latents of variance 1."""

    name: str
    noise: Callable[[Levels], str]
    """For the model card."""
    network: str
    """The usual one, of NETWORKS."""
    flags: frozenset[str]
    """Fields of Levels that it depends on."""
    make_scheduler: Callable[[Levels], Any]
    """diffusers' scheduler, to sample with; an autoencoder has none."""
    draw_levels: Callable[[Any, int, torch.Generator], Tensor]
    """(scheduler, N, generator) -> the noise levels of N images: timesteps, sigmas, or shares of noise."""
    loss: Callable[[Predict, Any, Tensor, Tensor, Tensor], Tensor]
    """(predict, scheduler, x0 [N, C, H, W], noise levels [N], standard normal noise like x0) -> a scalar."""


def linear_schedule(levels: Levels) -> Any:
    from diffusers import DDPMScheduler

    low, high = levels.beta_range
    return DDPMScheduler(num_train_timesteps=levels.num_levels, beta_schedule="linear", beta_start=low, beta_end=high)


def edm_schedule(levels: Levels) -> Any:
    from diffusers import EDMEulerScheduler

    return EDMEulerScheduler()


def flow_schedule(levels: Levels) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=levels.num_levels)


def draw_timesteps(scheduler: Any, num_images: int, rng: torch.Generator) -> Tensor:
    """Uniform over all timesteps."""
    return torch.randint(scheduler.config.num_train_timesteps, (num_images,), generator=rng)


def draw_sigmas(scheduler: Any, num_images: int, rng: torch.Generator) -> Tensor:
    """ln(sigma) is normal with mean -1.2 and standard deviation 1.2 (Karras et al. 2022, table 1)."""
    return (1.2 * torch.randn(num_images, generator=rng) - 1.2).exp()


def draw_shares(scheduler: Any, num_images: int, rng: torch.Generator) -> Tensor:
    """Uniform over [0, 1) (Liu et al. 2023, algorithm 1)."""
    return torch.rand(num_images, generator=rng)


def ddpm_loss(predict: Predict, scheduler: Any, x0: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
    """Noise-prediction error, L_simple of Ho et al. 2020 (equation 14)."""
    a = scheduler.alphas_cumprod.to(x0.device)[timesteps].view(-1, 1, 1, 1)
    predicted = predict(a.sqrt() * x0 + (1 - a).sqrt() * noise, timesteps)
    return (predicted.float() - noise).square().mean()


def edm_loss(predict: Predict, scheduler: Any, x0: Tensor, sigmas: Tensor, noise: Tensor) -> Tensor:
    """Weighted denoising error (Karras et al. 2022, equation 2; its weight from table 1)."""
    sigma = sigmas.view(-1, 1, 1, 1)
    noised = x0 + sigma * noise
    output = predict(scheduler.precondition_inputs(noised, sigma), scheduler.precondition_noise(sigma).flatten())
    error = scheduler.precondition_outputs(noised, output.float(), sigma) - x0
    sigma_data = scheduler.config.sigma_data
    return ((sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2 * error.square()).mean()


def flow_loss(predict: Predict, scheduler: Any, x0: Tensor, shares: Tensor, noise: Tensor) -> Tensor:
    """Error of the velocity noise - x0 at x = (1 - s) x0 + s noise (Liu et al. 2023, equation 1, with noise at s = 1
    as in diffusers). The network is told s T."""
    s = shares.view(-1, 1, 1, 1)
    predicted = predict((1 - s) * x0 + s * noise, s.flatten() * scheduler.config.num_train_timesteps)
    return (predicted.float() - (noise - x0)).square().mean()


def no_levels(scheduler: None, num_images: int, rng: torch.Generator) -> Tensor:
    return torch.zeros(num_images)


def vae_loss(*args: Any) -> Tensor:
    from ddae.pretraining import autoencoder

    return autoencoder.vae_loss(*args)


def ddpm_noise(levels: Levels) -> str:
    low, high = levels.beta_range
    betas = "" if levels.beta_range == Levels.beta_range else f", betas from {low:g} to {high:g}"
    return f"linear schedule, T = {levels.num_levels}{betas}"


FRAMEWORKS = {
    "ddpm": Framework(
        "DDPM", ddpm_noise, "unet", frozenset({"num_levels", "beta_range"}), linear_schedule, draw_timesteps, ddpm_loss
    ),
    "edm": Framework(
        "EDM", lambda levels: "EDM's preconditioning", "ddpm++", frozenset(), edm_schedule, draw_sigmas, edm_loss
    ),
    "flow": Framework(
        "rectified flow", lambda levels: f"time counted to {levels.num_levels}", "unet", frozenset({"num_levels"}),
        flow_schedule, draw_shares, flow_loss,
    ),
    "vae": Framework(
        "autoencoder", lambda levels: "L1 and KL", "vae", frozenset(), lambda levels: None, no_levels, vae_loss
    ),
}  # fmt: skip
