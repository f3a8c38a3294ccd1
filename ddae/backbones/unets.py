"""What the families of UNets share: the counting of blocks, the layout, and the network that takes their weights."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ddae.backbones.base import BlockSpec, Inputs, per_image
from ddae.noise import VE

if TYPE_CHECKING:
    from diffusers import UNet2DModel


def ddae_specs(unet: Any) -> tuple[BlockSpec, ...]:
    """Lists every residual block, or the attention behind it if there is one, as the DDAE paper counts them: out_k is
    the k-th block of the up path."""
    specs: list[BlockSpec] = []
    for name, modules in openai_blocks(unet):
        inside = [module for module in modules if "resnets" in module or "attentions" in module]
        if inside:
            stage = name.split(".")[0]
            index = 1 + sum(spec.stage == stage for spec in specs)
            module, alias = ("mid_block" if stage == "mid" else inside[-1]), (f"out_{index}" if stage == "up" else "")
            specs.append(BlockSpec(name, index, module, alias))
    return tuple(specs)


def openai_specs(unet: Any) -> tuple[BlockSpec, ...]:
    """Lists every block of a UNet2DModel or UNet2DConditionModel as OpenAI's code counts them, b = 1, 2, ...: the first
    convolution, each residual block with the attention behind it, each downsampler, the middle, and on the way up each
    residual block with the attention and the upsampler behind it."""
    return tuple(
        BlockSpec(name, b, "mid_block" if name == "mid" else modules[-1], f"b{b}")
        for b, (name, modules) in enumerate(openai_blocks(unet), 1)
    )


def openai_blocks(unet: Any) -> list[tuple[str, list[str]]]:
    """Lists (name, modules in the order in which they run) for every block in OpenAI's counting."""
    inside = [f"mid_block.{module}" for module in ("resnets.0", "attentions.0", "resnets.1")]
    mid = [("mid", inside)] if unet.mid_block is not None else []
    return [("in", ["conv_in"]), *level_blocks(unet, "down"), *mid, *level_blocks(unet, "up")]


def level_blocks(unet: Any, stage: str) -> Iterator[tuple[str, list[str]]]:
    """Yields what openai_blocks lists, for the levels of the down or the up path."""
    for i, level in enumerate(getattr(unet, f"{stage}_blocks")):
        blocks = [[f"resnets.{j}"] for j in range(len(level.resnets))]
        if getattr(level, "attentions", None):
            blocks = [[*modules, f"attentions.{j}"] for j, modules in enumerate(blocks)]
        if getattr(level, "downsamplers", None):
            blocks.append(["downsamplers.0"])
        if getattr(level, "upsamplers", None):
            blocks[-1].append("upsamplers.0")
        for j, modules in enumerate(blocks):
            yield f"{stage}.{i}.{j}", [f"{stage}_blocks.{i}.{module}" for module in modules]


@dataclass(frozen=True)
class Layout:
    """The shape of a UNet, as far as the tensors of its checkpoint show it."""

    in_channels: int
    out_channels: int
    num_channels: int
    """Channels of the sinusoidal time embedding; the learned embedding behind it has four times as many."""
    stem: int
    """Channels after the first convolution."""
    widths: tuple[int, ...]
    """Channels of each level, from the largest map down."""
    attention: tuple[bool, ...]
    """Whether a level has attention."""
    num_res_blocks: int
    resample: str
    """How maps are halved and doubled: "resnet" is by residual blocks, "conv" by convolutions, "" by averaging and by
    nearest neighbours."""
    scale_shift: bool = False
    """Whether the time embedding scales and shifts the norm of a residual block; otherwise it is added before it."""


def make_unet(
    layout: Layout, image_size: int, heads: Callable[[str, int], int], flip_sin_to_cos: bool, freq_shift: int
) -> "UNet2DModel":
    """Builds a network of this layout on the meta device, where it waits for its weights. heads maps the (module path,
    channels) of an attention to its number of heads.

    Raises ValueError for an image size that cannot be halved often enough.
    """
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


def edm_inputs(schedule: VE, sigma_data: float, scale: float = 1) -> Inputs:
    """Scales inputs to variance 1 and gives the network ln(sigma) / 4 as its time (Karras et al. 2022, table 1), times
    `scale` in OpenAI's code."""

    def inputs(x_t: Tensor, timestep: int) -> dict[str, Any]:
        sigma = schedule.sigma(timestep)
        return unet_inputs(1 / math.hypot(sigma, sigma_data) * x_t, math.log(sigma) / 4, scale)

    return inputs


def unet_inputs(x: Tensor, time: float, scale: float = 1) -> dict[str, Any]:
    """The arguments of a UNet2DModel, which gets scale * time as its time."""
    return {"sample": x, "timestep": per_image(x, time * scale)}
