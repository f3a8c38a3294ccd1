"""ADM, the UNet of guided diffusion (Dhariwal & Nichol 2021), as official checkpoints."""

import logging
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ddae.backbones.base import Backbone, Pixels, Settings
from ddae.backbones.checkpoints import read_options
from ddae.backbones.convert import Part, attention, convert, load_state, renamed, unchanged
from ddae.backbones.options import NOTHING
from ddae.backbones.unets import Layout, make_unet, openai_blocks, openai_specs, unet_inputs
from ddae.noise import VP

if TYPE_CHECKING:
    from diffusers import UNet2DModel

IMAGE_SIZES: dict[tuple[float, ...], int] = {
    (0.5, 1, 1, 2, 2, 4, 4): 512,
    (1, 1, 2, 2, 4, 4): 256,
    (1, 1, 2, 3, 4): 128,
    (1, 2, 3, 4): 64,
}
"""The image size for the channel multipliers of each level, as the official create_model pairs them."""

OPTIONS: dict[str, Any] = {
    "num_head_channels": 64,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "use_new_attention_order": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "rescale_timesteps": False,
}
"""Options that no tensor shows, with the values of most published checkpoints."""

PUBLISHED: dict[tuple[int, tuple[float, ...]], dict[str, Any]] = {
    (256, (0.5, 1, 1, 2, 2, 4, 4)): {},
    (256, (1, 1, 2, 2, 4, 4)): {},
    (256, (1, 1, 2, 3, 4)): {"num_head_channels": -1},
    (192, (1, 2, 3, 4)): {"use_new_attention_order": True, "noise_schedule": "cosine"},
}
"""Where published checkpoints differ from OPTIONS, by num_channels and channel multipliers."""


def from_state(
    state: dict[str, Tensor],
    path: Path,
    fingerprint: str,
    settings: Settings,
    said: Mapping[str, Any] = NOTHING,
) -> Backbone:
    """Loads an official checkpoint. What its tensors do not show (image size, heads, noise) is read from the sidecar,
    by the names of the official flags, and is as published where the sidecar does not say.

    A class-conditional network has no class for "no class". It runs without a class embedding, which is not how it was
    trained; a warning says so.
    """
    layout = read_layout(state, path)
    options = read_flags(layout, path, settings)
    heads = partial(num_heads, options=options)
    unet = make_unet(layout, options["image_size"], heads, flip_sin_to_cos=True, freq_shift=0)
    weights = {name: tensor for name, tensor in state.items() if name != "label_emb.weight"}
    if len(weights) < len(state):
        logging.getLogger("ddae").warning(
            "%s is class-conditional; its features are taken without a class, as it was never trained", path
        )
    load_state(unet, convert(weights, official_parts(unet, options["use_new_attention_order"])))
    scale = 1000 / options["diffusion_steps"] if options["rescale_timesteps"] else 1
    schedule = noise_schedule(options["noise_schedule"], options["diffusion_steps"])
    pixels, inputs = Pixels(options["image_size"], layout.in_channels), partial(unet_inputs, scale=scale)
    return Backbone(unet, openai_specs(unet), schedule, pixels, inputs, fingerprint, settings)


def read_layout(state: dict[str, Tensor], path: Path) -> Layout:
    """Reads the layout from the tensors.

    Upsamplers show where levels end, because each is the last module of a level's last output block; a residual block
    that downsamples looks like any other. Raises ValueError for classifiers and upsampling networks.
    """
    if "output_blocks.0.0.in_layers.0.weight" not in state:
        raise ValueError(f"{path} has no output_blocks, as guided diffusion's classifiers; give a diffusion checkpoint")
    in_channels = state["input_blocks.0.0.weight"].shape[1]
    if in_channels not in (1, 3):
        raise ValueError(
            f"{path} takes {in_channels} channels, as upsamplers do; give a network that takes an image alone"
        )
    present = {tuple(name.split(".")[:2]) for name in state}
    num_blocks = sum(stage == "output_blocks" for stage, *_ in present)
    upsamplers = {
        int(match[1]): "resnet" if match[2] == "in_layers.0" else "conv"
        for name in state
        if (match := re.fullmatch(r"output_blocks\.(\d+)\.[12]\.(in_layers\.0|conv)\.weight", name))
    }
    bare = [b for b in range(num_blocks) if ("input_blocks", str(b)) not in present]
    per_level = min(upsamplers) + 1 if upsamplers else bare[0] if bare else num_blocks
    firsts = [f"input_blocks.{b}" for b in range(1, num_blocks, per_level)]
    widths = tuple(state[f"{first}.0.out_layers.3.weight"].shape[0] for first in firsts)
    return Layout(
        in_channels,
        out_channels=state["out.2.weight"].shape[0],
        num_channels=state["time_embed.0.weight"].shape[1],
        stem=state["input_blocks.0.0.weight"].shape[0],
        widths=widths,
        attention=tuple(f"{first}.1.qkv.weight" in state for first in firsts),
        num_res_blocks=per_level - 1,
        resample=next(iter(upsamplers.values()), ""),
        scale_shift=state[f"{firsts[0]}.0.emb_layers.1.weight"].shape[0] == 2 * widths[0],
    )


def read_flags(layout: Layout, path: Path, settings: Settings) -> dict[str, Any]:
    """The OPTIONS of this checkpoint, and its image_size.

    Raises ValueError if the sidecar contradicts the tensors, or if nothing says the image size.
    """
    multipliers = tuple(width / layout.num_channels for width in layout.widths)
    published = PUBLISHED.get((layout.num_channels, multipliers))
    given = read_options(path)
    seen = {
        "num_channels": layout.num_channels,
        "num_res_blocks": layout.num_res_blocks,
        "use_scale_shift_norm": layout.scale_shift,
    }
    for name in seen.keys() & given.keys():
        if given[name] != seen[name]:
            raise ValueError(f"the file beside {path} says {name}={given[name]}, but its tensors have {seen[name]}")
    if "num_heads" in given:
        given = {"num_head_channels": -1, **given}
    elif "num_head_channels" not in given and published is None:
        logging.getLogger("ddae").warning(
            "%s does not say how many attention heads it has; taking %d channels each, as published "
            "(num_heads or num_head_channels in the .json beside it say otherwise)",
            path,
            OPTIONS["num_head_channels"],
        )
    options = {"image_size": IMAGE_SIZES.get(multipliers), **OPTIONS, **(published or {}), **given}
    options["image_size"] = settings.image_size or options["image_size"]
    if not options["image_size"]:
        raise ValueError(
            f"{path} does not say its image size, and its channel multipliers are not those of a published checkpoint "
            f"({', '.join(f'{m:g}' for m in multipliers)}); give image_size in the .json beside it, or --image-size"
        )
    return options


def num_heads(module: str, channels: int, options: dict[str, Any]) -> int:
    """The heads of an attention: channels / num_head_channels, or num_heads, which may differ on the way up."""
    if options["num_head_channels"] != -1:
        heads, rest = divmod(channels, options["num_head_channels"])
    else:
        heads = options["num_heads"]
        if module.startswith("up_blocks") and options["num_heads_upsample"] != -1:
            heads = options["num_heads_upsample"]
        rest = channels % heads
    if rest:
        raise ValueError(
            f"an attention of {channels} channels cannot have num_head_channels={options['num_head_channels']}, "
            f"num_heads={options['num_heads']}; give the right ones in the .json beside the checkpoint"
        )
    return heads


def official_parts(unet: "UNet2DModel", new_order: bool) -> Iterator[tuple[str, str, Part]]:
    """Yields the modules of the official network with their counterparts, as `convert` takes them. A network that
    downsamples by averaging has blocks without tensors, which are left out."""
    yield "time_embed.0", "time_embedding.linear_1", unchanged
    yield "time_embed.2", "time_embedding.linear_2", unchanged
    blocks = openai_blocks(unet)
    half = range(len(blocks) // 2)
    names = [*(f"input_blocks.{b}" for b in half), "middle_block", *(f"output_blocks.{b}" for b in half)]
    for name, (_, modules) in zip(names, blocks, strict=True):
        for i, module in enumerate(modules):
            inside = unet.get_submodule(module)
            if module == "conv_in":
                yield f"{name}.{i}", module, unchanged
            elif "attentions" in module:
                yield f"{name}.{i}", module, attention("norm", "qkv", "proj_out", 1 if new_order else inside.heads)
            elif list(inside.parameters()):
                yield f"{name}.{i}", module, RESIDUAL_BLOCK
    yield "out.0", "conv_norm_out", unchanged
    yield "out.2", "conv_out", unchanged


RESIDUAL_BLOCK = renamed(
    in_layers__0="norm1",
    in_layers__2="conv1",
    emb_layers__1="time_emb_proj",
    out_layers__0="norm2",
    out_layers__3="conv2",
    skip_connection="conv_shortcut",
    op="conv",
    conv="conv",
)
"""Also names the convolution that resamples, which stands where a residual block may."""


def noise_schedule(name: str, num_steps: int) -> VP:
    """The linear betas of Ho et al. 2020, scaled to any number of steps, or the cosine schedule of Nichol & Dhariwal
    2021 (equation 17)."""
    if name == "linear":
        betas = np.linspace(0.0001, 0.02, num_steps) * 1000 / num_steps
    elif name == "cosine":
        signal = np.cos((np.arange(num_steps + 1) / num_steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    else:
        raise ValueError(f"noise_schedule={name!r} is not known; it is 'linear' or 'cosine'")
    return VP(np.cumprod(1 - betas))
