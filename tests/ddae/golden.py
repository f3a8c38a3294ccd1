"""A fixed problem and a digest of what is computed on it, which hold the versions of heads, screening and scores."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def problem(num_images: int, grid: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Maps of 4 channels of unlike scale, float64 [N, 4, grid, grid], and labels of 3 classes that overlap in them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=num_images)
    maps = rng.standard_normal((num_images, 4, grid, grid)) * np.linspace(0.3, 3, 4)[:, None, None]
    maps[np.arange(num_images), labels] += 0.4
    return torch.from_numpy(maps), torch.from_numpy(labels)


def digest(results: Iterable) -> float:
    """Sum all numbers, each with its own weight. Compare within 1e-6: in double precision machines agree to 1e-10."""
    values = np.concatenate([np.asarray(result, dtype=np.float64).ravel() for result in results])
    return float(values @ np.cos(np.arange(len(values))))
