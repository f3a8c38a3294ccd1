"""Noise levels and noise draws, the same for every model, batch size and machine."""

import numpy as np
import torch
from torch import Tensor


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


def vp_diffuse(x0: Tensor, noise: Tensor, alpha_cumprod: float) -> Tensor:
    """x_t = sqrt(a) x0 + sqrt(1 - a) noise, a = prod(1 - beta) (Ho et al. 2020, equation 4). Any shape."""
    return alpha_cumprod**0.5 * x0 + (1 - alpha_cumprod) ** 0.5 * noise


def vp_sigma(alpha_cumprod: float) -> float:
    """Noise-to-signal ratio sqrt((1 - a) / a): the sigma at which EDM sees the same noise level."""
    return float(((1 - alpha_cumprod) / alpha_cumprod) ** 0.5)
