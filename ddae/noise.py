"""Noise levels and noise draws, the same for every model, batch size and machine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Schedule(Protocol):
    """What a model's native timesteps mean."""

    @property
    def timesteps(self) -> range:
        """All that are allowed."""
        ...

    @property
    def defaults(self) -> tuple[int, ...]:
        """Those a search tries where it is not told which."""
        ...

    def sigma(self, timestep: int) -> float:
        """Noise-to-signal ratio, by which models of different kinds can be compared."""
        ...

    def diffuse(self, x0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """The noised image, as the forward process of the model has it. Any shape."""
        ...


class VP:
    """Variance-preserving noise, x_t = sqrt(a) x0 + sqrt(1 - a) noise, a = prod(1 - beta) (Ho et al. 2020, equation 4).

    first: the number of the first noised step. diffusers, DiT and guided diffusion count 0..T-1, t = 0 being noised by
    beta_0; the DDAE paper and its code count 1..T, so that their t = 11 is diffusers' t = 10.
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

    def diffuse(self, x0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        a = self.alphas_cumprod[timestep - self.first]
        return a**0.5 * x0 + (1 - a) ** 0.5 * noise


@dataclass(frozen=True)
class VE:
    """EDM's noise, x = x0 + sigma noise, at the steps of its sampler (Karras et al. 2022, equation 5), counted from the
    least: step 1 is sigma_min, step num_steps is sigma_max."""

    num_steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"sigma_min={self.sigma_min} must lie above 0 and below sigma_max={self.sigma_max}")

    @property
    def timesteps(self) -> range:
        return range(1, self.num_steps + 1)

    @property
    def defaults(self) -> tuple[int, ...]:
        """Up to sigma = 2.5, past which little of an image is left."""
        steps = [step for step in self.timesteps if self.sigma(step) < 2.5]
        return tuple(steps[:: -(-len(steps) // 9)])

    def sigma(self, timestep: int) -> float:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        share = (timestep - 1) / (self.num_steps - 1)
        return float((low + share * (high - low)) ** self.rho)

    def diffuse(self, x0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        return x0 + self.sigma(timestep) * noise


@dataclass(frozen=True)
class Flow:
    """Rectified flow, x_t = (1 - s) x0 + s noise with s = t / num_steps (Liu et al. 2023; Esser et al. 2024,
    equation 13). t is what diffusers' FlowMatchEulerDiscreteScheduler calls a timestep; its last, num_steps, is noise
    alone, and left out. A sampler's shift moves the steps that it takes, not what a timestep means."""

    num_steps: int = 1000

    @property
    def timesteps(self) -> range:
        return range(1, self.num_steps)

    @property
    def defaults(self) -> tuple[int, ...]:
        """Those whose sigmas are about VP's."""
        return tuple(sorted({max(1, t * self.num_steps // 1000) for t in (10, 50, 100, 170, 280, 480, 770)}))

    def sigma(self, timestep: int) -> float:
        return timestep / (self.num_steps - timestep)

    def diffuse(self, x0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        s = timestep / self.num_steps
        return (1 - s) * x0 + s * noise


@dataclass(frozen=True)
class Clean:
    """No noise, for networks that never saw any: timestep 0 alone."""

    timesteps: range = range(1)
    defaults: tuple[int, ...] = (0,)

    def sigma(self, timestep: int) -> float:
        return 0.0

    def diffuse(self, x0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        return x0


def image_noise(indices: np.ndarray, shape: tuple[int, ...], timestep: int, seed: int, draw: int = 0) -> Tensor:
    """Standard normal noise [N, *shape], float32; row i depends on (seed, timestep, indices[i], draw) alone.

    Philox is counter-based (Salmon et al. 2011): (seed, timestep) is its key and (draw, index) the
    high half of its counter, so no two rows share a stream and no batch, shard or worker can change one.
    """
    rows = np.empty((len(indices), *shape), dtype=np.float32)
    for row, index in zip(rows, indices, strict=True):
        bits = np.random.Philox(key=[seed, timestep], counter=[0, 0, draw, int(index)])
        np.random.Generator(bits).standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(rows)
