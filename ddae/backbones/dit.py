"""DiT, the diffusion transformers on latents of Peebles & Xie 2023: official checkpoints, or converted to diffusers.
Blocks are counted from 0, as in the DDAE paper and its code, which calls them layer-0, layer-1, ..."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddae.backbones.base import Backbone, Settings
from ddae.backbones.dit_layout import load_transformer, make_backbone
from ddae.backbones.files import load_network, subfolder
from ddae.backbones.options import NOTHING
from ddae.backbones.predictions import of_scheduler, predicts
from ddae.backbones.schedules import make_scheduler, noise_of
from ddae.noise import VP


def load(folder: Path, fingerprint: str, settings: Settings) -> Backbone:
    """Loads a diffusers folder: a DiTPipeline, or the DiTTransformer2DModel alone.

    Those on the hub were converted from official checkpoints. diffusers runs them with other timestep frequencies and
    another epsilon than they were trained with; here they run as they were trained.
    """
    from diffusers import DiTTransformer2DModel

    network = load_network(DiTTransformer2DModel, subfolder(folder, "transformer"))
    scheduler = make_scheduler(folder)
    schedule = noise_of(scheduler, folder)
    return make_backbone(network, schedule, folder, fingerprint, settings, float, of_scheduler(scheduler, schedule))


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
    return make_backbone(network, schedule, path, fingerprint, settings, float, predicts("epsilon", schedule))
