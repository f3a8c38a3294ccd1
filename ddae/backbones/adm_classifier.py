"""The classifiers of guided diffusion (Dhariwal & Nichol 2021, section 4), as official checkpoints: the encoder of
ADM's UNet, trained on noised images and labels. Their blocks are b1 to b19 of ADM's counting, and `scores`, what the
network itself says of the classes; in Mukhopadhyay et al. 2023 they are the "U-Net Encoder" of table 1."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddae.backbones.adm import noise_schedule, num_heads, official_parts, read_flags
from ddae.backbones.base import Backbone, BlockSpec, Settings, pixels_of
from ddae.backbones.convert import convert, load_state
from ddae.backbones.options import NOTHING, read_options
from ddae.backbones.unets import Layout, make_unet, openai_specs, unet_inputs

if TYPE_CHECKING:
    from diffusers import UNet2DModel

POSITIONS = "out.2.positional_embedding"
"""The tensor that the other codes' networks have not."""
HEAD_CHANNELS = 64
NUM_INPUT_BLOCKS = {20: 4}
"""Number of input blocks -> residual blocks a level (--classifier_depth) where these are not 2, as at 64 pixels."""


class EncoderUNet(nn.Module):
    """Half of a UNet2DModel, and the attention that pools its last map to class scores [N, K, 1, 1]."""

    def __init__(self, unet: "UNet2DModel", num_tokens: int, num_classes: int):
        super().__init__()
        self.conv_in, self.time_proj, self.time_embedding = unet.conv_in, unet.time_proj, unet.time_embedding
        self.down_blocks, self.mid_block = unet.down_blocks, unet.mid_block
        channels = unet.config.block_out_channels[-1]
        self.norm = nn.GroupNorm(32, channels, device="meta")
        self.classify = AttentionPool(channels, num_tokens, num_classes)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        time = self.time_embedding(self.time_proj(timestep).to(sample.dtype))
        x = self.conv_in(sample)
        for block in self.down_blocks:
            x, _ = block(hidden_states=x, temb=time)
        x = self.mid_block(x, time)
        return self.classify(functional.silu(self.norm(x)))


class AttentionPool(nn.Module):
    """[N, C, S, S] -> [N, K, 1, 1]: the mean of the tokens, which stands first, attends to itself and to the tokens."""

    def __init__(self, channels: int, num_tokens: int, num_classes: int):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(channels, num_tokens + 1, device="meta"))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1, device="meta")
        self.c_proj = nn.Conv1d(channels, num_classes, 1, device="meta")

    def forward(self, map: Tensor) -> Tensor:
        x = map.flatten(2)
        x = torch.cat([x.mean(-1, keepdim=True), x], -1) + self.positional_embedding
        heads = max(1, x.shape[1] // HEAD_CHANNELS)
        q, k, v = self.qkv_proj(x).unflatten(1, (3, heads, -1)).transpose(-1, -2).unbind(1)
        pooled = functional.scaled_dot_product_attention(q[:, :, :1], k, v)  # [N, heads, 1, C / heads]
        return self.c_proj(pooled.flatten(1)[..., None])[..., None]


def from_state(
    state: dict[str, Tensor], path: Path, fingerprint: str, settings: Settings, said: Mapping[str, Any] = NOTHING
) -> Backbone:
    """Loads a classifier of guided diffusion. What its tensors do not show is read from the sidecar, by the names of
    the official flags of a diffusion network, or is as published and named in a warning."""
    layout = read_layout(state, path)
    options = read_flags(layout, state, path, settings)
    own_size = round((state[POSITIONS].shape[1] - 1) ** 0.5) << (len(layout.widths) - 1)
    if options["image_size"] != own_size:
        raise ValueError(
            f"image_size={options['image_size']} does not suit {path}, whose positions are those of {own_size} pixels"
        )
    unet = make_unet(layout, own_size, partial(num_heads, options=options), flip_sin_to_cos=True, freq_shift=0)
    network = EncoderUNet(unet, state[POSITIONS].shape[1] - 1, state["out.2.c_proj.weight"].shape[0])
    pooling = {name for name in state if name.startswith("out.")}
    encoder = {name: tensor for name, tensor in state.items() if name not in pooling}
    parts = [part for part in official_parts(unet, False) if not part[0].startswith("out")]
    weights = convert(encoder, parts)
    weights |= {f"norm.{name.removeprefix('out.0.')}": state[name] for name in pooling if name.startswith("out.0.")}
    weights |= {f"classify.{name.removeprefix('out.2.')}": state[name] for name in pooling if name.startswith("out.2.")}
    load_state(network, weights)
    specs = [spec for spec in openai_specs(unet) if spec.stage != "up"]
    specs.append(BlockSpec("scores", len(specs) + 1, "classify"))
    schedule = noise_schedule(options["noise_schedule"], options["diffusion_steps"])
    pixels = pixels_of(own_size, layout.in_channels)
    return Backbone(network, tuple(specs), schedule, pixels, unet_inputs, fingerprint, settings)


def read_layout(state: dict[str, Tensor], path: Path) -> Layout:
    """Reads the layout from the tensors, and from the sidecar how many residual blocks a level has."""
    blocks = {name.split(".")[1] for name in state if name.startswith("input_blocks.")}
    said = read_options(path).get("num_res_blocks", NUM_INPUT_BLOCKS.get(len(blocks), 2))
    if type(said) is not int or said < 1 or len(blocks) % (said + 1):
        raise ValueError(
            f"{path} has {len(blocks)} input blocks, and not {said} a level with one that halves; give num_res_blocks "
            "in the .json beside it"
        )
    firsts = [f"input_blocks.{b}" for b in range(1, len(blocks), said + 1)]
    widths = tuple(state[f"{first}.0.out_layers.3.weight"].shape[0] for first in firsts)
    return Layout(
        in_channels=state["input_blocks.0.0.weight"].shape[1],
        out_channels=state["input_blocks.0.0.weight"].shape[1],
        num_channels=state["time_embed.0.weight"].shape[1],
        stem=state["input_blocks.0.0.weight"].shape[0],
        widths=widths,
        attention=tuple(f"{first}.1.qkv.weight" in state for first in firsts),
        num_res_blocks=said,
        resample="conv" if f"input_blocks.{said + 1}.0.op.weight" in state else "resnet",
        scale_shift=state[f"{firsts[0]}.0.emb_layers.1.weight"].shape[0] == 2 * widths[0],
    )
