"""DiT, the diffusion transformers on latents of Peebles & Xie 2023: official checkpoints, or converted to diffusers.
Blocks are counted from 0, as in the DDAE paper and its code, which calls them layer-0, layer-1, ..."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddae.backbones.base import Backbone, Pixels, Settings
from ddae.backbones.dit_layout import load_transformer, make_backbone
from ddae.backbones.files import load_network, subfolder
from ddae.backbones.options import NOTHING
from ddae.backbones.predictions import predicts
from ddae.backbones.schedules import read_noise
from ddae.noise import VP


def load(folder: Path, fingerprint: str, settings: Settings) -> Backbone:
    """Loads a diffusers folder: a DiTPipeline, or the DiTTransformer2DModel alone. One of 1 or 3 channels that has no
    VAE beside it denoises pixels.

    Those on the hub were converted from official checkpoints. diffusers runs them with other timestep frequencies and
    another epsilon than they were trained with; here they run as they were trained.
    """
    from diffusers import DiTTransformer2DModel

    network = load_network(DiTTransformer2DModel, subfolder(folder, "transformer"))
    schedule, told, denoised = read_noise(folder, settings.num_steps)
    encoder = None
    if network.config.in_channels in (1, 3) and not any((each / "vae").is_dir() for each in (folder, folder.parent)):
        encoder = Pixels(settings.image_size or network.config.sample_size, network.config.in_channels)
    return make_backbone(network, schedule, folder, fingerprint, settings, told, denoised, encoder)


def from_state(
    state: dict[str, Tensor],
    path: Path,
    fingerprint: str,
    settings: Settings,
    said: Mapping[str, Any] = NOTHING,
) -> Backbone:
    """Loads a checkpoint of the official code or its training script: S, B, L, XL or another, any patch and image size.

    The tensors show everything but the number of heads, which is in NUM_HEADS, or `num_heads` in the sidecar.
    """
    linear = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    schedule = VP((1 - linear).cumprod(0))
    network = load_transformer(state, path, said)
    told, denoised = (lambda timestep: (timestep, 1.0)), predicts("epsilon", schedule)
    return make_backbone(network, schedule, path, fingerprint, settings, told, denoised)
