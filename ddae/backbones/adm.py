"""ADM, the UNet of guided diffusion (Dhariwal & Nichol 2021): its checkpoints, and the counting of its blocks."""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ddae.backbones.base import Backbone, Pixels, Place, Settings
from ddae.backbones.checkpoints import read_options
from ddae.backbones.convert import Part, attention, convert, load_state, renamed, unchanged
from ddae.noise import VP

if TYPE_CHECKING:
    from diffusers import UNet2DModel

IMAGE_SIZES: dict[tuple[float, ...], int] = {
    (0.5, 1, 1, 2, 2, 4, 4): 512,
    (1, 1, 2, 2, 4, 4): 256,
    (1, 1, 2, 3, 4): 128,
    (1, 2, 3, 4): 64,
}
"""Channel multipliers -> image size, as the official create_model pairs them."""

OPTIONS: dict[str, Any] = {
    "num_head_channels": 64,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "use_new_attention_order": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "rescale_timesteps": False,
}
"""What no tensor tells, as most published checkpoints have it."""

PUBLISHED: dict[tuple[int, tuple[float, ...]], dict[str, Any]] = {
    (256, (0.5, 1, 1, 2, 2, 4, 4)): {},
    (256, (1, 1, 2, 2, 4, 4)): {},
    (256, (1, 1, 2, 3, 4)): {"num_head_channels": -1},
    (192, (1, 2, 3, 4)): {"use_new_attention_order": True, "noise_schedule": "cosine"},
}
"""num_channels and channel multipliers of the published checkpoints -> where they differ from OPTIONS."""


def openai_places(unet: Any) -> tuple[Place, ...]:
    """Every block of a UNet2DModel or UNet2DConditionModel by the counting of OpenAI's code, b = 1, 2, ...: the first
    convolution, each residual block with the attention behind it, each downsampler, the middle, and on the way up each
    residual block with the attention and the upsampler behind it."""
    return tuple(
        Place(name, b, "mid_block" if name == "mid" else modules[-1], f"b{b}")
        for b, (name, modules) in enumerate(openai_blocks(unet), 1)
    )


def openai_blocks(unet: Any) -> list[tuple[str, list[str]]]:
    """(name, its modules in the order the data meets them) of every block."""
    blocks = [("in", ["conv_in"])]
    for stage in ("down", "mid", "up"):
        if stage == "mid":
            if unet.mid_block is not None:
                blocks.append(("mid", [f"mid_block.{module}" for module in ("resnets.0", "attentions.0", "resnets.1")]))
            continue
        for i, level in enumerate(getattr(unet, f"{stage}_blocks")):
            inside = [[f"resnets.{j}"] for j in range(len(level.resnets))]
            if getattr(level, "attentions", None):
                inside = [[*modules, f"attentions.{j}"] for j, modules in enumerate(inside)]
            if getattr(level, "downsamplers", None):
                inside.append(["downsamplers.0"])
            if getattr(level, "upsamplers", None):
                inside[-1].append("upsamplers.0")
            path = f"{stage}_blocks.{i}"
            blocks += [(f"{stage}.{i}.{j}", [f"{path}.{m}" for m in modules]) for j, modules in enumerate(inside)]
    return blocks


@dataclass(frozen=True)
class Layout:
    """What the tensors of a UNet tell about it."""

    in_channels: int
    out_channels: int
    num_channels: int
    """Of the sinusoidal time embedding; the time embedding has four times as many."""
    stem: int
    """Channels after the first convolution."""
    widths: tuple[int, ...]
    """Channels of each level, from the largest map down."""
    attention: tuple[bool, ...]
    """Whether a level has attention."""
    num_res_blocks: int
    resample: str
    """How maps are halved and doubled: by "resnet" blocks, by a "conv", or, "", by means and nearest neighbours."""
    scale_shift: bool = False
    """Whether the time scales and shifts the norm of a residual block, or is added before it."""


def from_state(state: dict[str, Tensor], path: Path, fingerprint: str, settings: Settings) -> Backbone:
    """An official checkpoint. What its tensors do not tell - image size, heads, noise - comes from the sidecar, by the
    names of the official flags, and is as published where it is silent.

    A class-conditional network has no class that means none. It is run without a class embedding, which is not how it
    was trained; a warning says so.
    """
    layout = read_layout(state, path)
    options = read_flags(layout, path, settings)
    unet = make_unet(
        layout,
        options["image_size"],
        lambda module, channels: num_heads(module, channels, options),
        flip_sin_to_cos=True,
        freq_shift=0,
    )
    weights = {name: tensor for name, tensor in state.items() if name != "label_emb.weight"}
    if len(weights) < len(state):
        logging.getLogger("ddae").warning(
            "%s is class-conditional; its features are taken without a class, as it was never trained", path
        )
    load_state(unet, convert(weights, official_parts(unet, options["use_new_attention_order"])))
    scale = 1000 / options["diffusion_steps"] if options["rescale_timesteps"] else 1
    return Backbone(
        unet,
        openai_places(unet),
        noise_schedule(options["noise_schedule"], options["diffusion_steps"]),
        Pixels(options["image_size"], layout.in_channels),
        lambda x_t, timestep: {"sample": x_t, "timestep": torch.full((len(x_t),), timestep * scale, device=x_t.device)},
        fingerprint,
        settings,
    )


def read_layout(state: dict[str, Tensor], path: Path) -> Layout:
    """An upsampler is the last module of its output block, which ends a level; a residual block that downsamples looks
    like any other."""
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
    """OPTIONS as this checkpoint has them, and image_size."""
    multipliers = tuple(width / layout.num_channels for width in layout.widths)
    published = PUBLISHED.get((layout.num_channels, multipliers))
    told = read_options(path)
    seen = {
        "num_channels": layout.num_channels,
        "num_res_blocks": layout.num_res_blocks,
        "use_scale_shift_norm": layout.scale_shift,
    }
    for name in seen.keys() & told.keys():
        if told[name] != seen[name]:
            raise ValueError(f"beside {path}, {name}={told[name]} is told, but its tensors have {seen[name]}")
    if "num_heads" in told:
        told = {"num_head_channels": -1, **told}
    elif "num_head_channels" not in told and published is None:
        logging.getLogger("ddae").warning(
            "%s does not tell its attention heads; taking %d channels each, as published "
            "(num_heads or num_head_channels in the .json beside it tell otherwise)",
            path,
            OPTIONS["num_head_channels"],
        )
    options = {"image_size": IMAGE_SIZES.get(multipliers), **OPTIONS, **(published or {}), **told}
    options["image_size"] = settings.image_size or options["image_size"]
    if not options["image_size"]:
        raise ValueError(
            f"{path} does not tell its image size, as it has channel multipliers that were never published "
            f"({', '.join(f'{m:g}' for m in multipliers)}); give image_size in the .json beside it, or --image-size"
        )
    return options


def num_heads(module: str, channels: int, options: dict[str, Any]) -> int:
    """Of an attention: as many as num_head_channels makes, or else num_heads, which may differ on the way up."""
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


def make_unet(
    layout: Layout, image_size: int, heads: Callable[[str, int], int], flip_sin_to_cos: bool, freq_shift: int
) -> "UNet2DModel":
    """On the meta device, as it waits for its weights. heads: (module, channels) of an attention -> how many."""
    from diffusers import UNet2DModel
    from diffusers.models.attention_processor import Attention
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D

    multiple = 2 ** (len(layout.widths) - 1)
    if image_size % multiple:
        raise ValueError(f"image_size={image_size} does not suit this network; it takes multiples of {multiple}")
    plain = "Resnet{}sampleBlock2D" if layout.resample == "resnet" else "{}Block2D"
    down, up = (
        [f"Attn{way}Block2D" if has else plain.format(way) for has in layout.attention] for way in ("Down", "Up")
    )
    width, time_channels = layout.widths[0], 4 * layout.num_channels
    time_norm = "scale_shift" if layout.scale_shift else "default"
    resnet = {"out_channels": width, "temb_channels": time_channels, "eps": 1e-5, "time_embedding_norm": time_norm}
    with torch.device("meta"):
        unet = UNet2DModel(
            sample_size=image_size,
            in_channels=layout.in_channels,
            out_channels=layout.out_channels,
            time_embedding_dim=time_channels,
            down_block_types=tuple(down),
            up_block_types=tuple(reversed(up)),
            block_out_channels=layout.widths,
            layers_per_block=layout.num_res_blocks,
            downsample_type=layout.resample or "conv",
            upsample_type=layout.resample or "conv",
            resnet_time_scale_shift=time_norm,
            attention_head_dim=None,
            attn_norm_num_groups=32,
            norm_eps=1e-5,
        )
        unet.time_proj = Timesteps(layout.num_channels, flip_sin_to_cos, freq_shift)
        unet.time_embedding = TimestepEmbedding(layout.num_channels, time_channels)
        if layout.stem != width:
            unet.conv_in = nn.Conv2d(layout.in_channels, layout.stem, 3, padding=1)
            unet.down_blocks[0].resnets[0] = ResnetBlock2D(in_channels=layout.stem, **resnet)
            unet.up_blocks[-1].resnets[-1] = ResnetBlock2D(in_channels=width + layout.stem, **resnet)
    for name, module in list(unet.named_modules()):
        if isinstance(module, Attention):
            module.heads = heads(name, module.query_dim)
        if isinstance(module, (Downsample2D, Upsample2D)) and module.use_conv and not layout.resample:
            unet.set_submodule(name, type(module)(module.channels, use_conv=False))
    return unet


def official_parts(unet: "UNet2DModel", new_order: bool) -> Iterator[tuple[str, str, Part]]:
    """For convert. A network that downsamples by means has blocks without tensors."""
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
"""And of a convolution that resamples, which has the same place."""


def noise_schedule(name: str, num_steps: int) -> VP:
    """Ho et al. 2020's linear betas, scaled to any number of steps, or the cosine of Nichol & Dhariwal 2021."""
    if name == "linear":
        betas = np.linspace(0.0001, 0.02, num_steps) * 1000 / num_steps
    elif name == "cosine":
        signal = np.cos((np.arange(num_steps + 1) / num_steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    else:
        raise ValueError(f"noise_schedule={name!r} is not known; it is 'linear' or 'cosine'")
    return VP(np.cumprod(1 - betas))
