"""The networks that can be trained, each a model of diffusers, and how each is called."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel, UNet2DModel

    from ddae.backbones.song_unet import SongUNet2DModel
    from ddae.pretraining.autoencoder import AutoencoderKL


@dataclass(frozen=True)
class Shape:
    """The size of a network, and what it takes."""

    image_size: int = 32
    """Side of what is denoised: pixels, or elements of latents."""
    in_channels: int = 1
    channels: tuple[int, ...] = (16, 32, 64, 128)
    layers_per_block: int = 1
    attention: tuple[int, ...] = ()
    """Sides of the maps that have attention; the third resolution if not given."""
    stem_channels: int = 0
    """Width behind the first convolution of DDPM++; 0 is that of the highest resolution."""
    hidden_size: int = 192
    depth: int = 6
    patch_size: int = 2
    latent_channels: int = 4
    dropout: float = 0.0
    num_classes: int = 0
    """0 for a network without classes; otherwise the label after the last, num_classes, is the null class."""
    augment_dim: int = 0
    """How many parameters of augmentation the network is told."""
    norm_groups: int = 8
    """The most groups of a UNet's normalisation."""

    @property
    def attended(self) -> tuple[bool, ...]:
        """Which resolutions of a UNet have attention."""
        sides = [self.image_size >> level for level in range(len(self.channels))]
        if missing := sorted(set(self.attention) - set(sides)):
            raise ValueError(f"attention={missing[0]} is no side of a map; those are {', '.join(map(str, sides))}")
        return tuple(side in self.attention if self.attention else n == 2 for n, side in enumerate(sides))

    def check_channels(self) -> None:
        for width in self.channels:
            if width < 1 or width % self.norm_groups:
                raise ValueError(
                    f"channels={width} must be a multiple of {self.norm_groups}, the groups of the normalisation"
                )
        if self.image_size % (multiple := 2 ** (len(self.channels) - 1)):
            raise ValueError(
                f"image_size={self.image_size} cannot be halved {len(self.channels) - 1} times, as "
                f"{len(self.channels)} channels ask; give fewer channels, or a multiple of {multiple}"
            )


@dataclass(frozen=True)
class Network:
    """A kind of network."""

    name: str
    make: Callable[[Shape], Any]
    predict: Callable[[nn.Module, Tensor | None, Tensor | None, Tensor, Tensor], Tensor]
    """(network, labels [N], augmentation [N, A], x [N, C, H, W], time [N]) -> output [N, C, H, W]; labels and
    augmentation are None for a network without."""
    flags: frozenset[str]
    """Those of the command that it reads, and not every network does."""


def make_unet(shape: Shape) -> "UNet2DModel":
    from diffusers import UNet2DModel

    shape.check_channels()
    down = ["AttnDownBlock2D" if here else "DownBlock2D" for here in shape.attended]
    up = ["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(shape.attended)]
    unet = UNet2DModel(
        sample_size=shape.image_size,
        in_channels=shape.in_channels,
        out_channels=shape.in_channels,
        block_out_channels=shape.channels,
        layers_per_block=shape.layers_per_block,
        norm_num_groups=shape.norm_groups,
        attention_head_dim=min(32, *shape.channels[2:], shape.channels[-1]),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        dropout=shape.dropout,
        num_class_embeds=shape.num_classes + 1 if shape.num_classes else None,
    )
    if shape.num_classes:
        unet.register_to_config(null_class=shape.num_classes)
    return unet


def make_song_unet(shape: Shape) -> "SongUNet2DModel":
    """DDPM++ (Song et al. 2021), its noise embedding as wide as its stem, as UNet2DModel makes them."""
    from ddae.backbones.song_unet import SongUNet2DModel

    shape.check_channels()
    stem = shape.stem_channels or shape.channels[0]
    sides = tuple(shape.image_size >> level for level, here in enumerate(shape.attended) if here)
    unet = SongUNet2DModel(
        sample_size=shape.image_size,
        in_channels=shape.in_channels,
        out_channels=shape.in_channels,
        stem_channels=stem,
        block_out_channels=shape.channels,
        layers_per_block=shape.layers_per_block,
        attention_resolutions=sides or (shape.image_size >> 2,),
        noise_channels=stem,
        time_embedding_dim=4 * stem,
        dropout=shape.dropout,
        num_classes=shape.num_classes,
        augment_dim=shape.augment_dim,
    )
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm) and module.num_channels % module.num_groups:
            raise ValueError(
                f"channels={list(shape.channels)} make ddpm++ normalise {module.num_channels} channels in "
                f"{module.num_groups} groups; give multiples of 16, each twice the one before or as large"
            )
    return unet


def make_vae(shape: Shape) -> "AutoencoderKL":
    from ddae.pretraining.autoencoder import AutoencoderKL

    shape.check_channels()
    levels = len(shape.channels)
    return AutoencoderKL(
        in_channels=shape.in_channels,
        out_channels=shape.in_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=shape.channels,
        layers_per_block=shape.layers_per_block,
        latent_channels=shape.latent_channels,
        norm_num_groups=shape.norm_groups,
        sample_size=shape.image_size,
    )


HEAD_WIDTH = 64
"""Channels of one attention head of a DiT (Peebles & Xie 2023)."""


def make_dit(shape: Shape) -> "DiTTransformer2DModel":
    """DiT, initialised as officially: every block begins as the identity, and the output at zero."""
    from diffusers import DiTTransformer2DModel

    from ddae.backbones.dit_layout import as_official

    if shape.hidden_size < 1 or shape.hidden_size % HEAD_WIDTH:
        raise ValueError(f"hidden_size={shape.hidden_size} must be a multiple of {HEAD_WIDTH}, the width of a head")
    if shape.image_size % shape.patch_size:
        raise ValueError(f"patch_size={shape.patch_size} does not divide the side of {shape.image_size}")
    network = DiTTransformer2DModel(
        num_attention_heads=shape.hidden_size // HEAD_WIDTH,
        attention_head_dim=HEAD_WIDTH,
        in_channels=shape.in_channels,
        num_layers=shape.depth,
        sample_size=shape.image_size,
        patch_size=shape.patch_size,
        dropout=shape.dropout,
        num_embeds_ada_norm=shape.num_classes,
    )
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for block in network.transformer_blocks:
        embedding = block.norm1.emb
        for weight in (embedding.timestep_embedder.linear_1.weight, embedding.timestep_embedder.linear_2.weight):
            nn.init.normal_(weight, std=0.02)
        nn.init.normal_(embedding.class_embedder.embedding_table.weight, std=0.02)
        embedding.class_embedder.dropout_prob = 0.0  # each block would drop other labels than the rest
        nn.init.zeros_(block.norm1.linear.weight)
    for last in (network.proj_out_1, network.proj_out_2):
        nn.init.zeros_(last.weight)
    as_official(network)
    return network


def call_unet(network: nn.Module, labels: Tensor | None, augment: Tensor | None, x: Tensor, time: Tensor) -> Tensor:
    given = {"class_labels": labels, "augment_labels": augment}
    return network(x, time, **{name: each for name, each in given.items() if each is not None}).sample


def call_dit(network: nn.Module, labels: Tensor | None, augment: Tensor | None, x: Tensor, time: Tensor) -> Tensor:
    if labels is None:
        labels = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return network(x, time, labels).sample


def call_vae(network: nn.Module, labels: Tensor | None, augment: Tensor | None, x: Tensor, noise: Tensor) -> Any:
    """As an autoencoder's loss wants it."""
    return network(x, noise)


OF_ALL = frozenset({"dropout", "class_conditional", "latents", "flip"})
OF_UNETS = OF_ALL | {"channels", "layers_per_block", "attention"}
OF_DIT = OF_ALL | {"hidden_size", "depth", "patch_size"}
OF_VAE = frozenset({"channels", "layers_per_block", "latent_channels", "flip"})

NETWORKS = {
    "unet": Network("UNet", make_unet, call_unet, OF_UNETS),
    "ddpm++": Network("DDPM++", make_song_unet, call_unet, OF_UNETS | {"augment", "stem_channels"}),
    "dit": Network("DiT", make_dit, call_dit, OF_DIT),
    "vae": Network("AutoencoderKL", make_vae, call_vae, OF_VAE),
}
