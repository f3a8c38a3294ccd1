"""Noise levels and noise draws, the same for every model, batch size and machine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Schedule(Protocol):
    """Says how much noise each native timestep of a model stands for."""

    @property
    def timesteps(self) -> range:
        """All allowed timesteps."""

    @property
    def defaults(self) -> tuple[int, ...]:
        """The timesteps that a search tries unless it is given others."""

    def sigma(self, timestep: int) -> float:
        """The noise-to-signal ratio at a timestep, by which models of different kinds can be compared."""

    def scales(self, timestep: int) -> tuple[float, float]:
        """(alpha, sigma) of x_t = alpha x0 + sigma noise, the forward process of the model."""

    def diffuse(self, x0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """Noises x0 (of any shape) as the forward process of the model does."""


class VP:
    """Variance-preserving noise, x_t = sqrt(a) x0 + sqrt(1 - a) noise, a = prod(1 - beta) (Ho et al. 2020, equation 4).

    first is the number of the first noised step. diffusers, DiT and guided diffusion count 0..T-1, and t = 0 is noised
    by beta_0; the DDAE paper and its code count 1..T, so that their t = 11 is diffusers' t = 10.
    """

    def __init__(self, alphas_cumprod: Sequence[float] | np.ndarray | Tensor, first: int = 0):
        self.alphas_cumprod = [float(a) for a in alphas_cumprod]
        if not self.alphas_cumprod or not all(0 <= a <= 1 for a in self.alphas_cumprod):
            raise ValueError("the schedule has no steps, or betas beyond 0 to 1; mend the scheduler's configuration")
        self.first = first
        self.timesteps = range(first, first + len(self.alphas_cumprod))
        self.defaults = tuple(t + first for t in (0, 10, 30, 60, 120, 250, 500) if t < len(self.alphas_cumprod))

    def sigma(self, timestep: int) -> float:
        a = self.alphas_cumprod[timestep - self.first]
        return float(((1 - a) / a) ** 0.5) if a else math.inf

    def scales(self, timestep: int) -> tuple[float, float]:
        a = self.alphas_cumprod[timestep - self.first]
        return a**0.5, (1 - a) ** 0.5

    def diffuse(self, x0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        alpha, sigma = self.scales(timestep)
        return alpha * x0 + sigma * noise


@dataclass(frozen=True)
class VE:
    """EDM's noise, x = x0 + sigma noise, at the steps of its sampler (Karras et al. 2022, equation 5). Step 1 is
    sigma_min, the least noise, and step num_steps is sigma_max."""

    num_steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"sigma_min={self.sigma_min} must lie above 0 and below sigma_max={self.sigma_max}")
        if self.num_steps < 2:
            raise ValueError(f"num_steps={self.num_steps} is no schedule; give 2 or more: 18 or 50 in the DDAE paper")

    @property
    def timesteps(self) -> range:
        return range(1, self.num_steps + 1)

    @property
    def defaults(self) -> tuple[int, ...]:
        """At most nine steps up to sigma = 2.5, past which little of an image is left."""
        steps = [step for step in self.timesteps if self.sigma(step) < 2.5]
        return tuple(steps[:: -(-len(steps) // 9)])

    def sigma(self, timestep: int) -> float:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        share = (timestep - 1) / (self.num_steps - 1)
        return float((low + share * (high - low)) ** self.rho)

    def scales(self, timestep: int) -> tuple[float, float]:
        return 1.0, self.sigma(timestep)

    def diffuse(self, x0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        return x0 + self.sigma(timestep) * noise


@dataclass(frozen=True)
class Flow:
    """Rectified flow, x_t = (1 - s) x0 + s noise with s = t / num_steps (Liu et al. 2023; Esser et al. 2024,
    equation 13). t is what diffusers' FlowMatchEulerDiscreteScheduler calls a timestep; the last, num_steps, is noise
    alone and left out. A sampler's shift moves the steps that it takes, not what a timestep means, unless `levels` says
    that the model's pipeline tells its network other timesteps than the noise has."""

    num_steps: int = 1000
    levels: tuple[float, ...] = ()
    """s at t = 0, 1, ..., num_steps, where it is not t / num_steps."""

    @property
    def timesteps(self) -> range:
        return range(1, self.num_steps)

    @property
    def defaults(self) -> tuple[int, ...]:
        """Timesteps whose sigmas are close to those of VP's defaults."""
        return tuple(sorted({max(1, t * self.num_steps // 1000) for t in (10, 50, 100, 170, 280, 480, 770)}))

    def level(self, timestep: int) -> float:
        return self.levels[timestep] if self.levels else timestep / self.num_steps

    def sigma(self, timestep: int) -> float:
        if not self.levels:
            return timestep / (self.num_steps - timestep)
        s = self.level(timestep)
        return s / (1 - s) if s < 1 else math.inf

    def scales(self, timestep: int) -> tuple[float, float]:
        s = self.level(timestep)
        return 1 - s, s

    def diffuse(self, x0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        alpha, sigma = self.scales(timestep)
        return alpha * x0 + sigma * noise


@dataclass(frozen=True)
class FirstChannels:
    """Noise on the first channels alone, for networks that are given more than the noised image."""

    schedule: Schedule
    channels: int

    @property
    def timesteps(self) -> range:
        return self.schedule.timesteps

    @property
    def defaults(self) -> tuple[int, ...]:
        return self.schedule.defaults

    def sigma(self, timestep: int) -> float:
        return self.schedule.sigma(timestep)

    def scales(self, timestep: int) -> tuple[float, float]:
        return self.schedule.scales(timestep)

    def diffuse(self, x0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        noised = self.schedule.diffuse(x0[:, : self.channels], noise[:, : self.channels], timestep)
        return torch.cat([noised, x0[:, self.channels :]], dim=1)


@dataclass(frozen=True)
class Clean:
    """No noise, for networks that were trained without it; the only timestep is 0."""

    timesteps: range = range(1)
    defaults: tuple[int, ...] = (0,)

    def sigma(self, timestep: int) -> float:
        return 0.0

    def scales(self, timestep: int) -> tuple[float, float]:
        return 1.0, 0.0

    def diffuse(self, x0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        return x0


def image_noise(
    indices: np.ndarray, shape: tuple[int, ...], timestep: int, seed: int, draw: int = 0, view: int = 0
) -> Tensor:
    """Standard normal noise [N, *shape], float32; row i depends on (seed, timestep, indices[i], draw, view) alone.

    Philox is counter-based (Salmon et al. 2011): (seed, timestep) is its key and (view, draw, index) the
    high part of its counter, so no two rows share a stream and no batch, shard or worker can change one.
    """
    rows = np.empty((len(indices), *shape), dtype=np.float32)
    for row, index in zip(rows, indices, strict=True):
        bits = np.random.Philox(key=[seed, timestep], counter=[0, view, draw, int(index)])
        np.random.Generator(bits).standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(rows)
