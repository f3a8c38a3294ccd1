"""What DiT and the flows built on it share: the tensors of the official codes, and the diffusers network for them."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ddae.backbones.base import Backbone, BlockSpec, Encoder, Settings, per_image, token_grid
from ddae.backbones.convert import Part, State, attention, convert, load_state, renamed, unchanged
from ddae.backbones.options import checked_options, name_assumed
from ddae.backbones.predictions import Denoised
from ddae.backbones.vae import latents_of, with_vae
from ddae.noise import Schedule

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel

KINDS = ("DiT", "SiT", "REPA")

Told = Callable[[int], tuple[float, float]]
"""The time that a network is told at a timestep, and what its noised images are multiplied by."""

NUM_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Attention heads by hidden size, for S, B, L and XL."""

OPTIONS = {
    "num_heads": int, "class_dropout_prob": float, "path_type": str, "hidden_size": int, "depth": int,
    "patch_size": int, "input_size": int, "in_channels": int, "mlp_ratio": float, "num_classes": int,
    "learn_sigma": bool,
}  # fmt: skip
"""Official options that are read, with their types; those from hidden_size on are checked against the tensors."""

UNUSED = dict.fromkeys(
    (
        "model", "image_size", "resolution", "prediction", "loss_weight", "encoder_depth", "enc_type", "cfg_prob",
        "proj_coeff", "weighting", "qk_norm", "fused_attn", "epochs", "global_batch_size", "global_seed", "train_eps",
        "sample_eps", "results_dir", "data_path", "num_workers", "log_every", "ckpt_every", "ckpt",
    )
)  # fmt: skip
"""Official options that change no activation of a checkpoint that loads."""


def kind_of(state: State, path: Path, said: Mapping[str, Any]) -> str:
    """Which of KINDS a checkpoint is, because the tensors of a DiT and of a SiT have the same names and shapes: by
    `model_type` beside it, REPA's projectors, the arguments of the training script in it, or else by its name.

    Raises ValueError if nothing tells, or if two of these differ.
    """
    beside = checked_options(path, {**OPTIONS, "model_type": KINDS}, UNUSED)
    repa = any(name.startswith(("projectors.", "decoder_blocks.")) for name in state)
    told: dict[str, str] = {}
    if "model_type" in beside:
        told["model_type beside it"] = beside["model_type"]
    if repa:
        told["REPA's projectors in it"] = "REPA"
    elif "path_type" in said:  # REPA's code writes it in small letters
        told["path_type in it"] = "REPA" if "enc_type" in said or str(said["path_type"]).islower() else "SiT"
    elif isinstance(said.get("model"), str):
        told["the arguments in it"] = "SiT" if said["model"].startswith("SiT") else "DiT"
    if not told and (named := names_in(path)):
        told["its name"] = named
    if len(set(told.values())) > 1:
        raise ValueError(
            f"{path} contradicts what is said of it: {', '.join(f'{by} means {kind}' for by, kind in told.items())}; "
            f"mend model_type in {path.with_suffix('.json')}"
        )
    if not told:
        raise ValueError(
            f"{path} is a DiT (noise over 1,000 timesteps) or a SiT (a flow on t in [0, 1]); their tensors are alike, "
            f"and nothing tells which. Give `model_type` (DiT, SiT or REPA) in {path.with_suffix('.json')}"
        )
    return next(iter(told.values()))


def names_in(path: Path) -> str:
    """The kind that the name of the file says, or of the nearest folder whose name says one."""
    for i, part in enumerate(reversed(path.parts)):
        if found := re.search(r"(?<![A-Za-z])(DiT|SiT|REPA)(?![a-z])", part, re.IGNORECASE if i == 0 else 0):
            return {kind.lower(): kind for kind in KINDS}[found[1].lower()]
    return ""


def load_transformer(state: State, path: Path, said: Mapping[str, Any]) -> "DiTTransformer2DModel":
    """Builds the diffusers network for official tensors, of any size. Raises ValueError for what is none."""
    from diffusers import DiTTransformer2DModel

    wanted = ("pos_embed", "y_embedder.embedding_table.weight", "blocks.0.attn.qkv.weight", "final_layer.linear.weight")
    if missing := [name for name in wanted if name not in state]:
        raise ValueError(f"{path} is no DiT: it has x_embedder.proj.weight, but no {missing[0]}")
    if norm := next((name for name in state if re.fullmatch(r"blocks\.\d+\.attn\.q_norm\..*", name)), ""):
        raise ValueError(f"{path} normalises its queries and keys (qk_norm), as {norm} shows, which is not supported")
    options = checked_options(path, {**OPTIONS, "model_type": KINDS}, UNUSED)
    shape = state["x_embedder.proj.weight"].shape
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ValueError(
            f"{path} is no DiT: its x_embedder.proj.weight of shape {list(shape)} takes no square patches of an image, "
            "but tokens, as FiT's does, which is not supported"
        )
    hidden_size, channels, patch_size, _ = shape
    num_heads = heads_of(hidden_size, options, path, said)
    num_labels = len(state["y_embedder.embedding_table.weight"])
    no_null = options.get("class_dropout_prob", said.get("class_dropout_prob")) == 0 or num_labels == said.get(
        "num_classes"
    )
    if no_null and num_labels > 1:
        raise ValueError(f"{path} has no null class to read features with: it was trained with class_dropout_prob=0")
    depth = 1 + max(int(name.split(".")[1]) for name in state if re.match(r"blocks\.\d+\.", name))
    side = math.isqrt(state["pos_embed"].shape[-2])
    if side**2 != state["pos_embed"].shape[-2]:
        raise ValueError(f"{path}: pos_embed of {state['pos_embed'].shape[-2]} tokens is that of no square image")
    inner = len(state["blocks.0.mlp.fc1.bias"]) if "blocks.0.mlp.fc1.bias" in state else 0
    shown = {
        "hidden_size": hidden_size, "depth": depth, "patch_size": patch_size, "input_size": side * patch_size,
        "in_channels": channels, "mlp_ratio": inner / hidden_size, "num_classes": num_labels - 1,
        "learn_sigma": len(state["final_layer.linear.weight"]) == 2 * channels * patch_size**2,
    }  # fmt: skip
    for name in shown.keys() & options.keys():
        if options[name] != shown[name]:
            raise ValueError(f"the file beside {path} says {name}={options[name]}, but its tensors have {shown[name]}")
    with torch.device("meta"):
        network = DiTTransformer2DModel(
            num_attention_heads=num_heads,
            attention_head_dim=hidden_size // num_heads,
            in_channels=channels,
            out_channels=len(state["final_layer.linear.weight"]) // patch_size**2,
            num_layers=depth,
            sample_size=side * patch_size,
            patch_size=patch_size,
            num_embeds_ada_norm=num_labels - 1,
        )
        if inner and inner != 4 * hidden_size:
            for block in network.transformer_blocks:
                block.ff.net[0].proj, block.ff.net[2] = nn.Linear(hidden_size, inner), nn.Linear(inner, hidden_size)
    first, *others = network.transformer_blocks
    for block in others:
        block.norm1.emb = None
    load_state(network, convert({name: state[name] for name in state if name != "pos_embed"}, parts(depth)))
    for block in others:  # modules of their own with the first's parameters
        block.norm1.emb = deepcopy(first.norm1.emb, {id(tensor): tensor for tensor in first.norm1.emb.parameters()})
    network.pos_embed.pos_embed = state["pos_embed"].float().view(1, side**2, hidden_size)
    return network


def heads_of(hidden_size: int, options: Mapping[str, Any], path: Path, said: Mapping[str, Any]) -> int:
    """The attention heads: as the options say, or as every published network of this size has them, which is named
    where nothing calls the network by its size (as in DiT-XL/2)."""
    num_heads = options.get("num_heads", NUM_HEADS.get(hidden_size, 0))
    if num_heads < 1 or hidden_size % num_heads:
        raise ValueError(
            f"{path}: hidden size {hidden_size} with num_heads={num_heads} is not known; "
            f"give the `num_heads` that it was trained with in {path.with_suffix('.json')}"
        )
    size = {384: "S", 768: "B", 1024: "L", 1152: "XL"}.get(hidden_size, "-")
    called = [str(said.get("model", "")), *path.parts]
    if "num_heads" not in options and not any(re.search(rf"iT-{size}(?![A-Za-z])", name) for name in called):
        name_assumed(path, {"num_heads": num_heads})
    return num_heads


def make_backbone(
    network: "DiTTransformer2DModel",
    schedule: Schedule,
    path: Path,
    fingerprint: str,
    settings: Settings,
    told: Told,
    denoised: Denoised | None,
    encoder: Encoder | None = None,
) -> Backbone:
    """Builds the backbone; every image gets the null class, which is the last. told: the time of a timestep, and what
    x_t is multiplied by. encoder: of the images; that of latents if not given."""
    as_official(network)
    # Under autocast, as officially, blocks add to a stream of float32.
    network.pos_embed.register_forward_hook(lambda module, inputs, tokens: tokens.float())
    config = network.config
    encoder = encoder or latents_of(path, config.in_channels, config.sample_size, config.patch_size, settings)
    depth = len(network.transformer_blocks)
    specs = tuple(BlockSpec(f"block.{i}", i, f"transformer_blocks.{i}", f"layer-{i}") for i in range(depth))

    def inputs(x_t: Tensor, timestep: int) -> dict[str, Tensor]:
        null_class = per_image(x_t, config.num_embeds_ada_norm)
        time, scale = told(timestep)
        return {"hidden_states": scale * x_t, "timestep": per_image(x_t, time), "class_labels": null_class}

    fingerprint = with_vae(fingerprint, encoder) if encoder.fingerprint else fingerprint
    return Backbone(network, specs, schedule, encoder, inputs, fingerprint, settings, token_grid, denoised)


def as_official(network: "DiTTransformer2DModel") -> None:
    """Sets what diffusers has otherwise than DiT's code: the frequencies of timesteps, and an epsilon."""
    from diffusers.models.embeddings import Timesteps

    for block in network.transformer_blocks:
        block.norm1.emb.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        block.norm3.eps = 1e-6


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
