"""Stored views: augmentation that is decided once, so that features of it can be kept."""

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
    for image, index in zip(padded, indices, strict=True):
        rng = np.random.Generator(np.random.Philox(key=[seed, STREAM], counter=[0, 0, view, int(index)]))
        top, left = rng.integers(2 * margin + 1, size=2)
        crop = image[:, top : top + height, left : left + width]
        cropped.append(crop.flip(-1) if flip and rng.integers(2) else crop)
    return torch.stack(cropped)
