"""Stored views: augmentation that is decided once, so that features of it can be kept. Every function here takes images
[N, 3, H, W], gives as many of the same size, and row i depends on (seed, view, indices[i]) alone."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

STREAM = 2**32
"""The second half of the Philox key, where noise has the timestep."""


def flip_and_crop(images: Tensor, indices: np.ndarray, seed: int, view: int, flip: bool = True) -> Tensor:
    """Pad every image by an eighth of its side with zeros, crop it back at a random place, mirror every second one, as
    He et al. 2016 (section 4.2) train on CIFAR-10. images: [N, 3, H, W]; row i depends on (seed, view, indices[i]).
    flip: whether to mirror; letters and digits should not be."""
    height, width = images.shape[-2:]
    margin = height // 8
    padded = functional.pad(images, (margin,) * 4)
    cropped = []
    for image, rng in zip(padded, generators(indices, seed, view), strict=True):
        top, left = rng.integers(2 * margin + 1, size=2)
        crop = image[:, top : top + height, left : left + width]
        cropped.append(crop.flip(-1) if flip and rng.integers(2) else crop)
    return torch.stack(cropped)


def flipped(images: Tensor, indices: np.ndarray, seed: int, view: int) -> Tensor:
    """Mirror every second image."""
    mirrored = [
        image.flip(-1) if rng.integers(2) else image
        for image, rng in zip(images, generators(indices, seed, view), strict=True)
    ]
    return torch.stack(mirrored)


def cropped_large(images: Tensor, indices: np.ndarray, seed: int, view: int) -> Tensor:
    """Crop a square of 0.8 to 1.0 of the side at a random place, resize it back, mirror every second one, as the
    official code of Mukhopadhyay et al. 2023 trains."""
    height, width = images.shape[-2:]

    def choose(rng: np.random.Generator) -> tuple[int, int]:
        share = rng.uniform(0.8, 1)
        return round(share * height), round(share * width)

    return _resized_crops(images, generators(indices, seed, view), choose)


def resized_crop(images: Tensor, indices: np.ndarray, seed: int, view: int) -> Tensor:
    """Crop 8 to 100 % of the area, at a ratio of 3:4 to 4:3, resize it back, mirror every second one (Szegedy et al.
    2015); after ten tries that do not fit, the whole image."""
    height, width = images.shape[-2:]

    def choose(rng: np.random.Generator) -> tuple[int, int]:
        for _ in range(10):
            area, ratio = height * width * rng.uniform(0.08, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            rows, columns = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
            if 0 < rows <= height and 0 < columns <= width:
                return rows, columns
        return height, width

    return _resized_crops(images, generators(indices, seed, view), choose)


def quarter_turned(images: Tensor, indices: np.ndarray, seed: int, view: int) -> Tensor:
    """Turn every image by 0, 90, 180 or 270 degrees (RotNet, Gidaris et al. 2018, section 2.1). Sides must be equal."""
    turns = quarter_turns(indices, seed, view)
    return torch.stack([image.rot90(int(turn), (-2, -1)) for image, turn in zip(images, turns, strict=True)])


def quarter_turns(indices: np.ndarray, seed: int, view: int) -> np.ndarray:
    """How many quarter turns a view has turned each image by: int64 [N], 0 to 3."""
    return np.array([rng.integers(4) for rng in generators(indices, seed, view)], dtype=np.int64)


Augmentation = Callable[[Tensor, np.ndarray, int, int], Tensor]

AUGMENTATIONS: Mapping[str, Augmentation] = {
    "flip+crop": flip_and_crop,
    "crop": partial(flip_and_crop, flip=False),
    "flip": flipped,
    "large-crop": cropped_large,
    "resized-crop": resized_crop,
    "turn": quarter_turned,
}
"""How a view changes an image: (images, indices, seed, view) -> images."""
USUAL = "flip+crop"


def generators(indices: np.ndarray, seed: int, view: int) -> Iterator[np.random.Generator]:
    """What decides the view of each image."""
    for index in indices:
        yield np.random.Generator(np.random.Philox(key=[seed, STREAM], counter=[0, 0, view, int(index)]))


def _resized_crops(
    images: Tensor, rngs: Iterator[np.random.Generator], choose: Callable[[np.random.Generator], tuple[int, int]]
) -> Tensor:
    """Crop each image at a random place, to what `choose` says (rows, columns), resize it back, and mirror every
    second one."""
    size, crops = images.shape[-2:], []
    for image, rng in zip(images, rngs, strict=True):
        rows, columns = choose(rng)
        top, left = rng.integers(size[0] - rows + 1), rng.integers(size[1] - columns + 1)
        crop = image[None, :, top : top + rows, left : left + columns].float()
        crop = functional.interpolate(crop, tuple(size), mode="bilinear", antialias=True)[0]
        crop = crop if images.is_floating_point() else crop.round().clamp(0, 255)
        crops.append((crop.flip(-1) if rng.integers(2) else crop).to(images.dtype))
    return torch.stack(crops)
