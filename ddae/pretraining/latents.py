"""Latents of the training images, encoded once, in one file that a training reads."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddae.backbones.base import Settings
from ddae.backbones.vae import Latents as Encoder
from ddae.backbones.vae import downsampling, load_vae
from ddae.datasets import Images

BATCH = 256


@dataclass(frozen=True)
class Latents:
    """float32 [2 or 1, N, C, S, S] of the training images, as they are and mirrored; read from their file in parts."""

    vae: Path
    """Folder of the autoencoder."""
    file: Path

    def open(self) -> np.ndarray:
        return np.load(self.file, mmap_mode="r")

    def read(self, rows: np.ndarray, mirrored: Tensor | None = None) -> Tensor:
        """[n, C, S, S]; mirrored: 1 for the images that are, [n]."""
        view = np.zeros(len(rows), dtype=int) if mirrored is None else mirrored.long().numpy()
        return torch.from_numpy(self.open()[view, rows])


def open_encoder(vae: Path, image_size: int, device: str) -> Encoder:
    """Raises ValueError for what is no AutoencoderKL, or does not suit the images."""
    if not vae.is_dir():
        raise ValueError(f"latents={str(vae)!r} is no folder; give that of an AutoencoderKL, as --family vae makes it")
    network = load_vae(str(vae), Settings(device=device), ("AutoencoderKL",))
    if network.config.scaling_factor is None:
        raise ValueError(f"the VAE {vae} has scaling_factor null in its config.json; give the one it was trained with")
    if image_size % (multiple := downsampling(network)):
        raise ValueError(f"latents={str(vae)!r} takes images whose side is a multiple of {multiple}, not {image_size}")
    return Encoder(network, image_size)


def latents_key(encoder: Encoder, images: Images, flip: bool) -> str:
    """The hash of all that the latents depend on."""
    decides = encoder.fingerprint, images.fingerprint, images.num_train, flip
    return hashlib.sha256(repr(decides).encode()).hexdigest()[:12]


@torch.inference_mode()
def encode(
    encoder: Encoder, images: Images, flip: bool, file: Path, device: str, track: Callable[[range], Iterable[int]]
) -> None:
    """Write the latents of the training images, and of the mirrored ones if flip, to a .npy file."""
    views = 2 if flip else 1
    kept = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(views, images.num_train, *encoder.shape))
    for start in track(range(0, images.num_train, BATCH)):
        rows = np.arange(start, min(start + BATCH, images.num_train))
        pixels = images.read(rows).to(device)
        for view in range(views):
            kept[view, rows] = encoder(pixels.flip(-1) if view else pixels).cpu().numpy()
    kept.flush()


@torch.inference_mode()
def scale_latents(vae: Any, images: Tensor) -> None:
    """Set a VAE's scaling_factor so that the latents of images [N, 3, H, W] in [-1, 1] have a variance of 1."""
    means = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(BATCH)])
    vae.register_to_config(scaling_factor=1 / float(means.std()))
