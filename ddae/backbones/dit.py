"""DiT, the diffusion transformers on latents of Peebles & Xie 2023: official checkpoints, or converted to diffusers.
Blocks are counted from 0, as in the DDAE paper and its code, which calls them layer-0, layer-1, ..."""

import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddae.backbones.base import Backbone, BlockSpec, Settings, per_image, token_grid
from ddae.backbones.checkpoints import read_options
from ddae.backbones.convert import Part, attention, convert, load_state, renamed, unchanged
from ddae.backbones.files import load_network, subfolder
from ddae.backbones.schedules import read_schedule
from ddae.backbones.vae import latents_of, with_vae
from ddae.noise import VP, Schedule

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel

NUM_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Attention heads by hidden size, for DiT-S, B, L and XL."""


def load(folder: Path, fingerprint: str, settings: Settings) -> Backbone:
    """Loads a diffusers folder: a DiTPipeline, or the DiTTransformer2DModel alone.

    Those on the hub were converted from official checkpoints. diffusers runs them with other timestep frequencies and
    another epsilon than they were trained with; here they run as they were trained.
    """
    from diffusers import DiTTransformer2DModel

    network = load_network(DiTTransformer2DModel, subfolder(folder, "transformer"))
    return make_backbone(network, read_schedule(folder), folder, fingerprint, settings)


def from_state(state: dict[str, Tensor], path: Path, fingerprint: str, settings: Settings) -> Backbone:
    """Loads a checkpoint of the official code or its training script: S, B, L, XL or another, any patch and image size.

    The tensors show everything but the number of heads, which is in NUM_HEADS, or `num_heads` in the sidecar.
    """
    from diffusers import DiTTransformer2DModel

    wanted = ("pos_embed", "y_embedder.embedding_table.weight", "blocks.0.attn.qkv.weight", "final_layer.linear.weight")
    if missing := [name for name in wanted if name not in state]:
        raise ValueError(f"{path} is no DiT: it has x_embedder.proj.weight, but no {missing[0]}")
    options = read_options(path)
    hidden_size, channels, patch_size, _ = state["x_embedder.proj.weight"].shape
    num_heads = int(options.get("num_heads", NUM_HEADS.get(hidden_size, 0)))
    if not num_heads or hidden_size % num_heads:
        raise ValueError(
            f"{path}: hidden size {hidden_size} with num_heads={num_heads} is not known; "
            f"give the `num_heads` that it was trained with in {path.with_suffix('.json')}"
        )
    num_labels = len(state["y_embedder.embedding_table.weight"])
    if options.get("class_dropout_prob") == 0 and num_labels > 1:
        raise ValueError(f"{path} has no null class to read features with: it was trained with class_dropout_prob=0")
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    with torch.device("meta"):
        network = DiTTransformer2DModel(
            num_attention_heads=num_heads,
            attention_head_dim=hidden_size // num_heads,
            in_channels=channels,
            out_channels=len(state["final_layer.linear.weight"]) // patch_size**2,
            num_layers=depth,
            sample_size=math.isqrt(state["pos_embed"].shape[1]) * patch_size,
            patch_size=patch_size,
            num_embeds_ada_norm=num_labels - 1,
        )
    first, *others = network.transformer_blocks
    for block in others:
        block.norm1.emb = None
    load_state(network, convert({name: state[name] for name in state if name != "pos_embed"}, parts(depth)))
    for block in others:  # modules of their own with the first's parameters
        block.norm1.emb = deepcopy(first.norm1.emb, {id(tensor): tensor for tensor in first.norm1.emb.parameters()})
    network.pos_embed.pos_embed = state["pos_embed"].float()
    linear = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return make_backbone(network, VP((1 - linear).cumprod(0)), path, fingerprint, settings)


def make_backbone(
    network: "DiTTransformer2DModel", schedule: Schedule, path: Path, fingerprint: str, settings: Settings
) -> Backbone:
    """Builds the backbone; every image gets the null class, which is the last."""
    from diffusers.models.embeddings import Timesteps

    for block in network.transformer_blocks:
        block.norm1.emb.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        block.norm3.eps = 1e-6
    # Under autocast, as officially, blocks add to a stream of float32.
    network.pos_embed.register_forward_hook(lambda module, inputs, tokens: tokens.float())
    config = network.config
    encoder = latents_of(path, config.in_channels, config.sample_size, config.patch_size, settings)
    depth = len(network.transformer_blocks)
    specs = tuple(BlockSpec(f"block.{i}", i, f"transformer_blocks.{i}", f"layer-{i}") for i in range(depth))

    def inputs(x_t: Tensor, timestep: int) -> dict[str, Tensor]:
        null_class = per_image(x_t, config.num_embeds_ada_norm)
        return {"hidden_states": x_t, "timestep": per_image(x_t, timestep), "class_labels": null_class}

    fingerprint = with_vae(fingerprint, encoder)
    return Backbone(network, specs, schedule, encoder, inputs, fingerprint, settings, token_grid)


def parts(depth: int) -> Iterator[tuple[str, str, Part]]:
    """Yields the modules of the official network with their counterparts, as `convert` takes them. The official network
    has one timestep and class embedding; diffusers gives every block its own."""
    yield "x_embedder", "pos_embed", unchanged
    embeddings = "transformer_blocks.0.norm1.emb"
    yield "t_embedder.mlp", f"{embeddings}.timestep_embedder", renamed(**{"0": "linear_1", "2": "linear_2"})
    yield "y_embedder", f"{embeddings}.class_embedder", unchanged
    for i in range(depth):
        yield f"blocks.{i}.adaLN_modulation", f"transformer_blocks.{i}.norm1", renamed(**{"1": "linear"})
        yield f"blocks.{i}.attn", f"transformer_blocks.{i}.attn1", attention("norm", "qkv", "proj", heads=1)
        yield f"blocks.{i}.mlp", f"transformer_blocks.{i}.ff.net", renamed(fc1="0.proj", fc2="2")
    yield "final_layer.adaLN_modulation.1", "proj_out_1", unchanged
    yield "final_layer.linear", "proj_out_2", unchanged
