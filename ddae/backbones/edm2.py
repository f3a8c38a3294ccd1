"""EDM2 (Karras et al. 2024), on pixels or latents, as official checkpoints. Timesteps are the steps of EDM's sampler,
and step 1 is the least noisy."""

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddae.backbones.base import Backbone, BlockSpec, Encoder, Pixels, Settings, as_bytes, per_image
from ddae.backbones.convert import State, load_state
from ddae.backbones.edm2_unet import EDM2UNet, Layout
from ddae.backbones.options import NOTHING, checked_options, name_assumed
from ddae.backbones.predictions import edm_denoised
from ddae.backbones.schedules import edm_schedule
from ddae.backbones.vae import Latents, latents_of, with_vae

logger = logging.getLogger("ddae")

BALANCES = {field.name: field.default for field in fields(Layout) if isinstance(field.default, (int, float))}
"""What no tensor shows of the network, with the official values."""

KINDS = {
    **dict.fromkeys((*BALANCES, "sigma_min", "sigma_max", "rho", "sigma_data"), float),
    "channels_per_head": int,
    "model_type": ("EDM2",),
}


class StabilityLatents(Latents):
    """Latents as EDM2's StabilityVAEEncoder makes them: of pixels in [0, 1], not [-1, 1], each channel scaled to
    standard deviation 0.5."""

    numbers = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)
    """Mean and standard deviation of each channel."""

    def pixels(self, images: Tensor) -> Tensor:
        return (super().pixels(images) + 1) / 2

    def scaled(self, latents: Tensor) -> Tensor:
        mean, std = (latents.new_tensor(each)[:, None, None] for each in self.numbers)
        return (latents - mean) * (0.5 / std)

    def unscaled(self, x0: Tensor) -> Tensor:
        mean, std = (x0.new_tensor(each)[:, None, None] for each in self.numbers)
        return x0 * (std / 0.5) + mean

    def decode(self, x0: Tensor) -> Tensor:
        return as_bytes(2 * self.decoded(x0) - 1)


def from_state(
    state: State, path: Path, fingerprint: str, settings: Settings, said: Mapping[str, Any] = NOTHING
) -> Backbone:
    """Loads a network of any size. An official pickle tells everything; of a state dict, the balances and sigma_data
    are the official ones, which is named, or what the sidecar says. One that takes class labels runs without."""
    sigma_data = state.get("sigma_data")
    state = {name: each for name, each in state.items() if name != "sigma_data"}
    options = checked_options(path, KINDS)
    told = numbers_told(said, path) | ({} if sigma_data is None else {"sigma_data": float(sigma_data)})
    for name in told.keys() & options.keys():
        if not math.isclose(told[name], options[name]):
            raise ValueError(f"the file beside {path} says {name}={options[name]}, but the checkpoint {told[name]}")
    defaults = {**BALANCES, "sigma_data": 0.5}
    name_assumed(path, {name: each for name, each in defaults.items() if name not in told and name not in options})
    numbers = {**defaults, **told, **options}
    layout = read_layout(state, path, {name: numbers[name] for name in BALANCES})
    if layout.num_labels:
        logger.warning("%s is class-conditional; its features are taken without a class", path)
    with torch.device("meta"):
        network = EDM2UNet(layout)
    load_state(network, state)
    schedule = edm_schedule(numbers, settings.num_steps)

    def inputs(x_t: Tensor, timestep: int) -> dict[str, Any]:
        sigma = schedule.sigma(timestep)
        return {"x": x_t / math.hypot(sigma, numbers["sigma_data"]), "noise": per_image(x_t, math.log(sigma) / 4)}

    encoder: Encoder = Pixels(settings.image_size or layout.size, layout.in_channels)
    if layout.in_channels not in (1, 3):
        found = latents_of(path, layout.in_channels, layout.size, 1, settings)
        encoder = StabilityLatents(found.vae, found.image_size)
        fingerprint = with_vae(fingerprint, encoder)
    specs, denoised = block_specs(network), edm_denoised(schedule, numbers["sigma_data"])
    return Backbone(network, specs, schedule, encoder, inputs, fingerprint, settings, denoised=denoised)


def numbers_told(said: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What a pickle says of its network. Raises ValueError if its blocks differ, or resample by another filter."""
    told: dict[str, Any] = {}
    for name, value in said.items():
        last = name.rpartition(".")[2]
        if last == "resample_filter" and value != [1, 1]:
            raise ValueError(f"{path} resamples with the filter {value}; only [1, 1] is supported")
        if last in BALANCES and told.setdefault(last, value) != value:
            raise ValueError(f"{path} has {last}={told[last]} and {value} in different blocks, which is not supported")
    if "class_name" in said:
        told["channels_per_head"] = 64  # kept in no block; its heads are checked
        heads = {name: value for name, value in said.items() if name.endswith(".num_heads") and value}
        for name, value in heads.items():
            channels = said.get(f"{name.rpartition('.')[0]}.out_channels", 64 * value)
            told["channels_per_head"] = channels // value
    return told


def read_layout(state: State, path: Path, balances: Mapping[str, Any]) -> Layout:
    """Reads the layout from the tensors."""
    blocks = [found for name in state if (found := re.fullmatch(r"enc\.(\d+)x\1_block(\d+)\.conv_res0\.weight", name))]
    if not blocks:
        raise ValueError(f"{path} has emb_fourier.freqs as an EDM2, but no enc.<size>x<size>_block0")
    sizes = sorted({int(found[1]) for found in blocks}, reverse=True)
    attended = [size for size in sizes if f"enc.{size}x{size}_block0.attn_qkv.weight" in state]
    return Layout(
        size=sizes[0],
        in_channels=state[f"enc.{sizes[0]}x{sizes[0]}_conv.weight"].shape[1] - 1,
        widths=tuple(len(state[f"enc.{size}x{size}_block0.conv_res1.weight"]) for size in sizes),
        noise_channels=len(state["emb_fourier.freqs"]),
        embedding_channels=len(state["emb_noise.weight"]),
        num_labels=state["emb_label.weight"].shape[1] if "emb_label.weight" in state else 0,
        num_blocks=1 + max(int(found[2]) for found in blocks),
        attention=tuple(attended),
        **balances,
    )


def block_specs(network: EDM2UNet) -> tuple[BlockSpec, ...]:
    """Counts blocks as in DDPM++: out_k is the k-th block of the up path."""
    specs = []
    for stage, modules in (("down", network.enc), ("mid", network.dec), ("up", network.dec)):
        wanted = "_in1" if stage == "mid" else "_block"
        names = [name for name in modules if wanted in name]
        sizes = list(dict.fromkeys(name.split("_")[0] for name in names))
        for k, name in enumerate(names, 1):
            size, _, j = name.partition("_block")
            short = stage if stage == "mid" else f"{stage}.{sizes.index(size)}.{j}"
            path = f"{'enc' if stage == 'down' else 'dec'}.{name}"
            specs.append(BlockSpec(short, k, path, f"out_{k}" if stage == "up" else ""))
    return tuple(specs)
