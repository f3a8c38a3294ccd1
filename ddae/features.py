"""One forward pass -> every requested block, pooled, float16."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from ddae.backbones.base import Backbone, Block
from ddae.datasets import Dataset
from ddae.noise import image_noise
from ddae.pooling import pool, stored_grid
from ddae.views import flip_and_crop

VERSION = 2
"""Raise it when the same FeatureKey would give other bytes."""
FIRST_VIEW = 2
"""The first draw that is augmented."""


@dataclass(frozen=True)
class FeatureKey:
    """Everything that decides a feature's bytes, but for the split, the timestep and the block, which the store's
    folders name."""

    backbone: str
    """Backbone.fingerprint"""
    images: str
    """Images.fingerprint"""
    split_seed: int
    val_fraction: float
    noise_seed: int
    draw: int
    """Which of the samples of an image: 0 and 1 noise it as it is, 2 and more flip and crop it first; each has noise of
    its own."""
    pooling: int
    """The largest grid that can be derived."""
    dtype: str = "float16"
    version: int = VERSION

    def asdict(self) -> dict[str, str | int | float]:
        return asdict(self)


def width(block: Block, pooling: int) -> int:
    """Numbers kept an image."""
    return block.channels * stored_grid(block.size, pooling) ** 2


def extract(
    backbone: Backbone,
    dataset: Dataset,
    rows: np.ndarray,
    timestep: int,
    blocks: Sequence[str],
    key: FeatureKey,
    batch_size: int = 64,
) -> dict[str, np.ndarray]:
    """Features of the images in `rows` (row numbers of dataset.images), one forward pass an image.

    Returns float16 [len(rows), width] a block, each row a flattened [C, g, g] map. Raises ValueError for a
    timestep outside the schedule, an unknown block, and a feature that float16 cannot hold.
    """
    check_timestep(backbone, timestep)
    features: dict[str, np.ndarray] = {}
    reduce = lambda map: pool(map, stored_grid(map.shape[-1], key.pooling)).flatten(1)  # noqa: E731
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        images = dataset.images.read(batch)
        if key.draw >= FIRST_VIEW:
            images = flip_and_crop(images, batch, key.noise_seed, key.draw)
        x0 = backbone.encode(images)
        noise = image_noise(batch, tuple(x0.shape[1:]), timestep, key.noise_seed, key.draw)
        for name, pooled in backbone.activations(x0, noise, timestep, blocks, reduce).items():
            half = _to_half(pooled, name, timestep)
            if name not in features:
                features[name] = np.empty((len(rows), half.shape[1]), dtype=np.float16)
            features[name][start : start + len(batch)] = half
    return features


def check_timestep(backbone: Backbone, timestep: int) -> None:
    if not 0 <= timestep < backbone.num_timesteps:
        raise ValueError(
            f"timestep={timestep} is outside this model's schedule; allowed: 0 to {backbone.num_timesteps - 1}"
        )


def _to_half(pooled: Tensor, name: str, timestep: int) -> np.ndarray:
    half = pooled.half()
    if not torch.isfinite(half.sum(dtype=torch.float32)):
        raise ValueError(
            f"block={name!r} at timestep={timestep} reaches {pooled.abs().max().item():g}, beyond float16's 65504; "
            "check the weights for NaN, or leave the block out with --blocks"
        )
    return half.cpu().numpy()
