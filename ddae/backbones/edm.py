"""DDPM++ with EDM's preconditioning (Karras et al. 2022), as an official checkpoint or a diffusers model. Timesteps are
the steps of EDM's sampler, and step 1 is the least noisy."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ddae.backbones.base import Backbone, BlockSpec, Pixels, Settings
from ddae.backbones.checkpoints import read_options
from ddae.backbones.convert import Part, State, attention, convert, load_state, renamed, unchanged
from ddae.backbones.files import load_network, subfolder
from ddae.backbones.options import NOTHING
from ddae.backbones.schedules import edm_schedule, read_scheduler
from ddae.backbones.unets import ddae_specs, edm_inputs

if TYPE_CHECKING:
    from ddae.backbones.song_unet import SongUNet2DModel

OTHERS = re.compile(r"map_noise\.|out_conv\.|aux_(down|up|skip|residual)")
"""Names of tensors that only NCSN++ and ADM have in the same code."""


def load(folder: Path, fingerprint: str, settings: Settings) -> Backbone:
    """Loads a folder that SongUNet2DModel.save_pretrained has written, alone or with an EDM scheduler."""
    from ddae.backbones.song_unet import SongUNet2DModel

    unet = load_network(SongUNet2DModel, subfolder(folder, "unet"))
    return make_backbone(unet, read_scheduler(folder) or {}, fingerprint, settings)


def from_state(
    state: State, path: Path, fingerprint: str, settings: Settings, said: Mapping[str, Any] = NOTHING
) -> Backbone:
    """Loads a SongUNet from an EDMPrecond of the official code; one that takes class labels runs without.

    The tensors show everything but sigma_data, which an official pickle holds; otherwise it is 0.5, or what the sidecar
    says.
    """
    from ddae.backbones.song_unet import SongUNet2DModel

    if (found := said.get("class_name", "EDMPrecond")) != "EDMPrecond":
        raise ValueError(f"{path} holds {found}; of NVlabs' networks only EDMPrecond is supported")
    for name, tensor in state.items():
        if OTHERS.search(name) or (name.endswith(".resample_filter") and tensor.shape[-1] != 2):
            raise ValueError(
                f"{path} is not DDPM++, as {name} shows; of the networks of EDM's code NCSN++ and ADM are not supported"
            )
    converted, config = from_official(state)
    with torch.device("meta"):
        unet = SongUNet2DModel(**config)
    load_state(unet, converted)
    return make_backbone(unet, read_options(path), fingerprint, settings)


def make_backbone(unet: "SongUNet2DModel", options: dict[str, Any], fingerprint: str, settings: Settings) -> Backbone:
    """options may set sigma_min, sigma_max, rho and sigma_data, by these names."""
    schedule = edm_schedule(options, settings.num_steps)
    inputs = edm_inputs(schedule, options.get("sigma_data", unet.config.sigma_data))
    encoder = Pixels(settings.image_size or unet.config.sample_size, unet.config.in_channels)
    return Backbone(unet, block_specs(unet), schedule, encoder, inputs, fingerprint, settings)


def block_specs(unet: "SongUNet2DModel") -> tuple[BlockSpec, ...]:
    """Counts blocks as in a DDPM; where a decoder block lacks the attention that others of its level have, the block is
    the residual block."""
    return tuple(
        replace(spec, module=spec.module.replace("attentions", "resnets"))
        if isinstance(unet.get_submodule(spec.module), nn.Identity)
        else spec
        for spec in ddae_specs(unet)
    )


def from_official(state: State) -> tuple[State, dict[str, Any]]:
    """Returns the tensors of a SongUNet2DModel and its configuration."""
    state = {name: tensor for name, tensor in state.items() if not name.endswith(".resample_filter")}
    state.pop("map_augment.weight", None)  # zero labels, and it has no bias
    sigma_data = float(state.pop("sigma_data", 0.5))
    if state.pop("map_label.weight", None) is not None:
        label = state.pop("map_label.bias").float()
        state["map_layer0.bias"] = state["map_layer0.bias"].float() + state["map_layer0.weight"].float() @ label

    blocks = [found for name in state if (found := re.fullmatch(r"enc\.(\d+)x\1_block(\d+)\.conv0\.weight", name))]
    if not blocks:
        raise ValueError("the checkpoint has no enc.<size>x<size>_block0, which its map_layer0 calls for")
    sizes = sorted({int(found[1]) for found in blocks}, reverse=True)
    num_blocks = 1 + max(int(found[2]) for found in blocks)
    converted = convert(state, parts(sizes, num_blocks))
    stem_channels, in_channels, *_ = converted["conv_in.weight"].shape
    time_embedding_dim, noise_channels = converted["time_embedding.linear_1.weight"].shape
    return converted, {
        "sample_size": sizes[0],
        "in_channels": in_channels,
        "out_channels": len(converted["conv_out.weight"]),
        "stem_channels": stem_channels,
        "block_out_channels": [len(converted[f"down_blocks.{i}.resnets.0.conv1.weight"]) for i in range(len(sizes))],
        "layers_per_block": num_blocks,
        "attention_resolutions": [
            size for i, size in enumerate(sizes) if f"down_blocks.{i}.attentions.0.to_q.weight" in converted
        ],
        "noise_channels": noise_channels,
        "time_embedding_dim": time_embedding_dim,
        "sigma_data": sigma_data,
    }


def parts(sizes: list[int], num_blocks: int) -> Iterator[tuple[str, str, Part]]:
    """Yields the modules of an official network with these resolutions and num_blocks blocks in each, with their
    counterparts, as `convert` takes them."""
    first, last = (f"{size}x{size}" for size in (sizes[0], sizes[-1]))
    yield "map_layer0", "time_embedding.linear_1", unchanged
    yield "map_layer1", "time_embedding.linear_2", unchanged
    yield f"enc.{first}_conv", "conv_in", unchanged
    yield f"dec.{first}_aux_norm", "conv_norm_out", unchanged
    yield f"dec.{first}_aux_conv", "conv_out", unchanged
    yield f"dec.{last}_in0", "mid_block", block(0)
    yield f"dec.{last}_in1", "mid_block", block(1)
    for down, size in enumerate(sizes):
        up = len(sizes) - 1 - down
        if down > 0:
            yield f"enc.{size}x{size}_down", f"down_blocks.{down - 1}.downsamplers.0", resnet
        if up > 0:
            yield f"dec.{size}x{size}_up", f"up_blocks.{up - 1}.upsamplers.0", resnet
        for j in range(num_blocks):
            yield f"enc.{size}x{size}_block{j}", f"down_blocks.{down}", block(j)
        for j in range(num_blocks + 1):
            yield f"dec.{size}x{size}_block{j}", f"up_blocks.{up}", block(j)


resnet = renamed(
    norm0="norm1", conv0="conv1", affine="time_emb_proj", norm1="norm2", conv1="conv2", skip="conv_shortcut"
)


def block(j: int) -> Part:
    """Converts a residual block, and the attention it may hold, to the j-th resnet and attention of its level."""

    def part(inside: State) -> State:
        attended = {name: tensor for name, tensor in inside.items() if name.startswith(("norm2.", "qkv.", "proj."))}
        rest = {name: tensor for name, tensor in inside.items() if name not in attended}
        converted = {f"resnets.{j}.{name}": tensor for name, tensor in resnet(rest).items()}
        if attended:
            by_channel = attention("norm2", "qkv", "proj", heads=len(attended["norm2.weight"]))(attended)
            converted |= {f"attentions.{j}.{name}": tensor for name, tensor in by_channel.items()}
        return converted

    return part
