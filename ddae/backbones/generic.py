"""Any other network of diffusers: blocks are found in its module tree, inputs by the signature of its forward pass."""

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from ddae.backbones.base import Backbone, BlockSpec, Encoder, Inputs, Pixels, Settings, first_map, per_image, token_grid
from ddae.backbones.files import first_line, load_network, model_class, subfolder
from ddae.backbones.schedules import read_noise
from ddae.backbones.unets import openai_specs
from ddae.backbones.vae import latents_of, with_vae

NETWORK_FOLDERS = "transformer", "unet"

TIMESTEP_SCALE = {
    "AuraFlowTransformer2DModel": 1e-3,
    "ChromaTransformer2DModel": 1e-3,
    "FluxTransformer2DModel": 1e-3,
    "SanaTransformer2DModel": 1,
    "SD3Transformer2DModel": 1,
}
"""Networks that are rectified flows, with the factor by which their pipelines scale timesteps unless the configuration
has a timestep_scale. Other networks get timesteps as they are."""

TEXT_WIDTHS = ("caption_channels", "joint_attention_dim", "encoder_hid_dim", "text_embed_dim", "cross_attention_dim")
"""Options that give the width of text tokens; the first that is set counts."""


def network_class(folder: Path) -> str:
    """The class of the network in a diffusers folder: a pipeline with transformer/ or unet/, or the network alone.

    Raises ValueError if diffusers has no such network, or if it works on latents of an unknown kind.
    """
    import diffusers

    path = subfolder(folder, *NETWORK_FOLDERS)
    name = model_class(path)
    kind = getattr(diffusers, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, diffusers.ModelMixin)):
        raise ValueError(f"{path} is a {name}, which is no network of diffusers {diffusers.__version__}")
    if other := next((part for part in ("vqvae", "movq") if (folder / part).is_dir()), ""):
        raise ValueError(f"{folder} encodes images with its {other}; the only supported VAE is AutoencoderKL")
    return name


def load(folder: Path, fingerprint: str, settings: Settings) -> Backbone:
    """Loads a diffusers folder of any class. Networks that take text get a single token of zeros for it, which they did
    not see in training."""
    import diffusers

    path, name = subfolder(folder, *NETWORK_FOLDERS), network_class(folder)
    try:
        network = load_network(getattr(diffusers, name), path)
        return make_backbone(network, folder, fingerprint, settings)
    except (ValueError, OSError):
        raise
    except Exception as error:  # of any class: the network was never seen here
        raise ValueError(
            f"{path} is a {name}, which does not run on the inputs that are known: {first_line(error)}"
        ) from error


def make_backbone(network: Any, folder: Path, fingerprint: str, settings: Settings) -> Backbone:
    config, name = network.config, type(network).__name__
    packed = "img_ids" in inspect.signature(network.forward).parameters  # as Flux: 2x2 patches come in as tokens
    size = config.get("sample_size") or (128 if packed else None)
    if not isinstance(size, int):
        raise ValueError(f"{folder} is a {name} whose configuration says sample_size={size}; a square size is needed")
    channels = config.in_channels // 4 if packed else config.in_channels
    patch_size = 2 if packed else config.get("patch_size") or 1
    encoder: Encoder = Pixels(settings.image_size or size, channels)
    if channels not in (1, 3) or (folder / "vae").is_dir():
        encoder = latents_of(folder, channels, size, patch_size, settings)
        fingerprint = with_vae(fingerprint, encoder)
    is_unet = hasattr(network, "up_blocks")
    specs = openai_specs(network) if is_unet else transformer_specs(network)
    to_map = first_map if is_unet else image_tokens(encoder.shape[-1] // patch_size)
    inputs = inputs_of(network, packed, encoder.image_size)
    schedule = read_noise(folder, name, is_flow=name in TIMESTEP_SCALE)
    return Backbone(network, specs, schedule, encoder, inputs, fingerprint, settings, to_map)


def transformer_specs(network: nn.Module) -> tuple[BlockSpec, ...]:
    """Counts block.0, block.1, ... through all lists of blocks, in the order in which the network has them."""
    lists = [
        (name, child)
        for name, child in network.named_children()
        if isinstance(child, nn.ModuleList) and (name.endswith("blocks") or name == "layers")
    ]
    modules = [f"{name}.{i}" for name, blocks in lists for i in range(len(blocks))]
    if not modules:
        raise ValueError(f"a {type(network).__name__} has no list of blocks to read features from")
    return tuple(BlockSpec(f"block.{i}", i, module) for i, module in enumerate(modules))


def image_tokens(side: int) -> Callable[[Any], Tensor]:
    """Makes a function that arranges what a block returns as a map [N, C, side, side]. Of several tensors it takes the
    one with a token for each patch; if text and image are one sequence, the image stands last."""

    def to_map(output: Any) -> Tensor:
        tokens = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.ndim == 3]
        images = [leaf for leaf in tokens if leaf.shape[1] >= side**2]
        if not images:
            raise TypeError(f"a block returns no tokens of {side} x {side} patches")
        return token_grid(min(images, key=lambda leaf: leaf.shape[1])[:, -(side**2) :])

    return to_map


def inputs_of(network: Any, packed: bool, image_size: int) -> Inputs:
    """Gives the forward pass every argument that is known here: zeros for text, the null class (or the last class if
    there is no null class), the image's own size and no crop."""
    config, name = network.config, type(network).__name__
    scale = config.get("timestep_scale") or TIMESTEP_SCALE.get(name, 1)
    width = next((config.get(key) for key in TEXT_WIDTHS if config.get(key)), None)
    pooled = config.get("pooled_projection_dim")
    null_class = config.get("num_embeds_ada_norm") or (config.get("num_class_embeds") or 0) - 1
    parameters = inspect.signature(network.forward).parameters

    def known(x_t: Tensor, timestep: int) -> dict[str, Any]:
        n, side = len(x_t), x_t.shape[-1] // 2
        size = x_t.new_full((n, 2), image_size)
        added = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]}
        if config.get("addition_embed_type") == "text_time":
            added_width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            added = {"text_embeds": x_t.new_zeros(n, added_width), "time_ids": torch.cat([size, 0 * size, size], 1)}
        return {
            "sample": x_t,
            "hidden_states": functional.pixel_unshuffle(x_t, 2).flatten(2).transpose(1, 2) if packed else x_t,
            "timestep": per_image(x_t, timestep * scale),
            "encoder_hidden_states": x_t.new_zeros(n, 1, width) if width else None,
            "pooled_projections": x_t.new_zeros(n, pooled) if pooled else None,
            "class_labels": per_image(x_t, null_class) if null_class >= 0 else None,
            "added_cond_kwargs": added,
            "guidance": x_t.new_ones(n) if config.get("guidance_embeds") else None,
            "img_ids": functional.pad(torch.cartesian_prod(*[torch.arange(side)] * 2), (1, 0)).to(x_t),
            "txt_ids": x_t.new_zeros(1, 3),
            "original_size": size,
            "target_size": size,
            "crop_coords": 0 * size,
        }

    def inputs(x_t: Tensor, timestep: int) -> dict[str, Any]:
        return {key: value for key, value in known(x_t, timestep).items() if key in parameters and value is not None}

    given = inputs(torch.zeros(1, config.in_channels, 2, 2), 1)
    wanted = [key for key, parameter in parameters.items() if parameter.default is parameter.empty and key not in given]
    if wanted:
        raise ValueError(f"a {name} needs {wanted[0]}, and it is not known what to give for it")
    if "encoder_hidden_states" in given:
        logging.getLogger("ddae").warning("%s takes text; it gets zeros, which it was not trained with", name)
    return inputs
