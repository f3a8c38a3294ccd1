"""One forward pass -> every requested block, pooled, float16."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ddae.backbones.base import Backbone, Block
from ddae.datasets import Dataset
from ddae.noise import image_noise
from ddae.pooling import pool, stored_grid
from ddae.views import AUGMENTATIONS, USUAL

Prepared = TypeVar("Prepared")

VERSION = 3
"""Raise it when the same FeatureKey would give other bytes."""


@dataclass(frozen=True)
class FeatureKey:
    """Everything that decides a feature's bytes, except the split, the timestep and the block, which the store's
    folders name."""

    backbone: str
    """Backbone.fingerprint"""
    images: str
    """Images.fingerprint"""
    split_seed: int
    val_fraction: float
    noise_seed: int
    pooling: int
    """The largest grid that can be derived."""
    draw: int = 0
    """Which draw of noise."""
    view: int = 0
    """0 is the image as it is, others flip and crop it first; each has noise of its own."""
    dtype: str = "float16"
    version: int = VERSION
    augment: str = USUAL
    """How views other than 0 change the image: a name in AUGMENTATIONS."""

    def asdict(self) -> dict[str, str | int | float]:
        """The fields that decide. Version 0.1 numbered draws and views together, from draw 2 on; the draws 0 and 1 of
        images as they are keep its keys, so that its stores are read."""
        fields = asdict(self)
        if self.view == 0 and self.draw <= 1:
            del fields["view"]
        if self.view == 0 or self.augment == USUAL:
            del fields["augment"]
        return fields


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
    batch_size: int | None = None,
    encoded: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Features of the images in `rows` (row numbers of dataset.images), one forward pass an image.

    batch_size: None is as many as memory allows, up to 64. encoded: what encode() made of the rows, where it is kept.
    Returns float16 [len(rows), width] a block, each row a flattened [C, g, g] map. Raises ValueError for a
    timestep outside the schedule, an unknown block, and a feature that float16 cannot hold.
    """
    check_timestep(backbone, timestep)
    batch_size = batch_size or fitting_batch(backbone)
    starts = range(0, len(rows), batch_size)

    def prepare(start: int) -> tuple[Tensor, Tensor]:
        batch = rows[start : start + batch_size]
        if encoded is None:
            x0 = backbone.encode(read_view(dataset, batch, key))
        else:
            x0 = torch.tensor(encoded[start : start + batch_size], dtype=torch.float32).to(backbone.settings.device)
            x0 = x0.view(-1, *backbone.encoder.shape)
        return x0, image_noise(batch, backbone.encoder.shape, timestep, key.noise_seed, key.draw, key.view)

    features: dict[str, np.ndarray] = {}
    for start, (x0, noise) in zip(starts, ahead(prepare, starts, backbone.settings.device), strict=True):
        for name, columns in pass_once(backbone, x0, noise, timestep, blocks, key.pooling).items():
            if name not in features:
                features[name] = np.empty((len(rows), columns.shape[1]), dtype=np.float16)
            features[name][start : start + len(columns)] = columns
    return features


def pass_once(
    backbone: Backbone, x0: Tensor, noise: Tensor | None, timestep: int, blocks: Sequence[str], pooling: int
) -> dict[str, np.ndarray]:
    """Do what extract does for one encoded batch. noise: None for images as they are."""
    maps = backbone.activations(x0, noise, timestep, blocks, pooled(pooling))
    half = torch.cat([map.half() for map in maps.values()], dim=1)
    if not torch.isfinite(half.sum(dtype=torch.float32)):
        raise ValueError(_beyond_half(maps, timestep))
    widths = [map.shape[1] for map in maps.values()]
    return dict(zip(maps, np.split(half.cpu().numpy(), np.cumsum(widths)[:-1], axis=1), strict=True))


def read_view(dataset: Dataset, rows: np.ndarray, key: FeatureKey) -> Tensor:
    """The images as they are, or the key's augmented view of them: uint8 [N, 3, H, W]."""
    images = dataset.images.read(rows)
    return AUGMENTATIONS[key.augment](images, rows, key.noise_seed, key.view) if key.view else images


@cache
def pooled(pooling: int) -> Callable[[Tensor], Tensor]:
    """[N, C, S, S] -> [N, C * g * g], g the grid that is stored; one function a pooling, because compiled graphs are
    guarded by it."""
    return lambda map: pool(map, stored_grid(map.shape[-1], pooling)).flatten(1)


def fitting_batch(backbone: Backbone) -> int:
    """How many images pass together: 64, or fewer where their maps would fill 1 GiB, or a quarter of a GPU's memory."""
    image_bytes = sum(4 * block.channels * block.size**2 for block in backbone.blocks)
    on_gpu = backbone.settings.device.startswith("cuda")
    budget = torch.cuda.mem_get_info(backbone.settings.device)[0] // 4 if on_gpu else 2**30
    return max(1, min(64, budget // image_bytes))


def ahead(prepare: Callable[[int], Prepared], starts: range, device: str) -> Iterator[Prepared]:
    """Yield prepare(start) for every start. Where the network runs on another device, the next batch is prepared while
    the caller works on this one."""
    if device == "cpu":
        yield from map(prepare, starts)
        return
    with ThreadPoolExecutor(1) as pool:
        pending = deque([pool.submit(prepare, start) for start in starts[:1]])
        for following in [*starts[1:], None]:
            if following is not None:
                pending.append(pool.submit(prepare, following))
            yield pending.popleft().result()


def check_timestep(backbone: Backbone, timestep: int) -> None:
    timesteps = backbone.schedule.timesteps
    if timestep not in timesteps:
        raise ValueError(
            f"timestep={timestep} is outside this model's schedule; allowed: {timesteps[0]} to {timesteps[-1]}"
        )


def _beyond_half(maps: dict[str, Tensor], timestep: int) -> str:
    beyond = {name: map for name, map in maps.items() if not torch.isfinite(map.half().sum(dtype=torch.float32))}
    largest = {name: map.abs().max().item() for name, map in beyond.items()}
    name = max(largest, key=largest.__getitem__)
    return (
        f"block={name!r} at timestep={timestep} reaches {largest[name]:g}, beyond float16's 65504; "
        "leave the block out with --blocks, and give --precision float32 if it was another"
    )
