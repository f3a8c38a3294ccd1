"""DDPMs, the pixel-space UNets of Ho et al. 2020: in diffusers format, or as checkpoints of the DDAE paper's code."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from ddae.backbones.base import Backbone, Encoder, Inputs, Pixels, Settings, per_image, pixels_of
from ddae.backbones.convert import Part, attention, convert, load_state, renamed, unchanged
from ddae.backbones.files import load_network, subfolder
from ddae.backbones.options import NOTHING, check_options, name_assumed, read_options, sidecars
from ddae.backbones.predictions import Denoised, edm_denoised, predicts
from ddae.backbones.schedules import edm_schedule, read_noise
from ddae.backbones.unets import Layout, ddae_specs, edm_inputs, make_unet, openai_blocks, openai_specs, unet_inputs
from ddae.backbones.vae import latents_beside, with_vae
from ddae.noise import VP, Schedule

if TYPE_CHECKING:
    from diffusers import UNet2DModel


logger = logging.getLogger("ddae")


def load(folder: Path, fingerprint: str, settings: Settings) -> Backbone:
    """Loads a diffusers folder: a pipeline with unet/ and scheduler/, or the UNet2DModel alone.

    Timesteps are those of diffusers, 0..T-1: the paper's t = 11 is timestep 10 here. Those of a consistency model and
    of EDM's noise are the steps of EDM's sampler.
    """
    from diffusers import UNet2DModel

    unet_folder = subfolder(folder, "unet")
    unet = load_network(UNet2DModel, unet_folder)
    classes = null_class(unet, folder)
    size = settings.image_size or unet.config.sample_size
    if not isinstance(size, int):
        raise ValueError(f"{unet_folder}/config.json says sample_size={size}; a square size is needed")
    schedule, told, denoised = read_noise(folder, settings.num_steps)

    def inputs(x_t: Tensor, timestep: int) -> dict[str, Any]:
        time, scale = told(timestep)
        labels = {"class_labels": per_image(x_t, classes).long()} if classes is not None else {}
        return unet_inputs(scale * x_t, time) | labels

    encoder = latents_beside(unet, folder, settings)
    if encoder:
        fingerprint = with_vae(fingerprint, encoder)
    return make_backbone(unet, schedule, inputs, fingerprint, settings, encoder, denoised)


def null_class(unet: "UNet2DModel", folder: Path) -> int | None:
    """The label for no class that config.json gives as null_class, or None for a network without classes.

    Raises ValueError for one that has classes and does not say."""
    config = unet.config
    if config.class_embed_type is None and config.num_class_embeds is None:
        return None
    label = config.get("null_class")
    if config.class_embed_type is None and type(label) is int and 0 <= label < config.num_class_embeds:
        return label
    raise ValueError(
        f"backbone={str(folder)!r} wants a class label for every image, and does not say which is for no class; give a "
        "network that was trained without classes, or, if it was trained with some labels left out, that label as "
        "null_class in its config.json"
    )


def from_state(
    state: dict[str, Tensor],
    path: Path,
    fingerprint: str,
    settings: Settings,
    said: Mapping[str, Any] = NOTHING,
) -> Backbone:
    """Loads a checkpoint of the DDAE paper's own code. What its tensors do not show (DDPM or EDM, noise, image size,
    heads) is read from the YAML beside it, and is as published where the YAML does not say.

    Timesteps are the paper's: 1..1000 of DDPM, or the steps of EDM's sampler.
    """
    layout = read_layout(state)
    options = read_yaml(path, layout)
    network = options["network"]
    image_size = settings.image_size or network.get("image_shape", (3, 32, 32))[-1]
    head_channels = network.get("attn_channels_per_head")
    assumed: dict[str, Any] = {} if network else {"attn_channels_per_head": "none (one head)"}
    if not settings.image_size and "image_shape" not in network:
        assumed["image_shape"] = [layout.in_channels, 32, 32]
    name_assumed(path, assumed)

    def heads(module: str, channels: int) -> int:
        return channels // (head_channels or channels)

    unet = make_unet(layout, image_size, heads, flip_sin_to_cos=False, freq_shift=1)
    unet.conv_norm_out = nn.GroupNorm(8, layout.widths[0], device="meta")
    weights = {name: tensor for name, tensor in state.items() if name != "time_emb.aug_emb.weight"}
    load_state(unet, convert(weights, official_parts(unet)))
    schedule, inputs, denoised = read_diffusion(options, path, settings)
    pixels = Pixels(image_size, layout.in_channels)
    specs = ddae_specs(unet)
    return Backbone(unet, specs, schedule, pixels, inputs, fingerprint, settings, denoised=denoised)


def read_yaml(path: Path, layout: Layout) -> dict[str, Any]:
    """The options beside a checkpoint, as the DDAE code has them: `network` and `diffusion` with options of their own.

    Raises ValueError for options of wrong types, and for those that the tensors contradict.
    """
    given = read_options(path)
    where = sidecars(path)[0] if given else path
    options = {**given, "network": given.get("network") or {}, "diffusion": given.get("diffusion") or {}}
    if isinstance(options["network"], str):  # which of the networks in the file it is
        options["network"] = {}
    for name in ("network", "diffusion"):
        if not isinstance(options[name], dict):
            raise ValueError(f"{where} says {name}={options[name]!r}; it must be a mapping of options to values")
    check_options(options["network"], NETWORK, where, UNUSED)
    check_options(options["diffusion"], DIFFUSION, where, UNUSED)
    check_options({n: v for n, v in given.items() if n == "model_type"}, {"model_type": MODEL_TYPES}, where, {})
    widths = [width // layout.stem for width in layout.widths]
    shown = {
        "n_channels": layout.stem, "n_blocks": layout.num_res_blocks, "ch_mults": widths,
        "is_attn": list(layout.attention), "use_res_for_updown": layout.resample == "resnet",
    }  # fmt: skip
    for name in shown.keys() & options["network"].keys():
        said = options["network"][name]
        if (list(said) if isinstance(said, (list, tuple)) else said) != shown[name]:
            raise ValueError(f"{where} says {name}={said}, but the tensors have {shown[name]}")
    shape = options["network"].get("image_shape", [layout.in_channels, 1, 1])
    if len(shape) != 3 or shape[0] != layout.in_channels or not all(type(n) is int and n > 0 for n in shape):
        raise ValueError(f"{where} says image_shape={shape}; it must be [{layout.in_channels}, height, width]")
    return options


NETWORK = {
    "image_shape": list, "attn_channels_per_head": (int, None), "n_channels": int, "n_blocks": int, "ch_mults": list,
    "is_attn": list, "use_res_for_updown": bool,
}  # fmt: skip
DIFFUSION = {
    "n_T": int, "betas": list, "sigma_min": float, "sigma_max": float, "rho": float, "sigma_data": float,
}  # fmt: skip
"""Options of the DDAE code that are read here, with their types."""

UNUSED = dict.fromkeys(
    ("dropout", "augment_dim", "P_mean", "P_std", "p_mean", "p_std", "S_churn",
     "S_min", "S_max", "S_noise", "drop_prob", "device")
)  # fmt: skip
"""Options of the DDAE code that the tensors show, or that change no activation."""

MODEL_TYPES = "DDPM", "EDM"


def read_layout(state: dict[str, Tensor]) -> Layout:
    """Reads the layout from the tensors. The down path is one list; each level has num_res_blocks blocks and then a
    downsampler."""
    modules = sorted({int(name.split(".")[1]) for name in state if name.startswith("down.")})
    samplers = [k for k in modules if f"down.{k}.res.norm1.weight" not in state]
    num_res_blocks = samplers[0] if samplers else len(modules)
    firsts = [f"down.{k}" for k in range(0, len(modules), num_res_blocks + 1)]
    return Layout(
        in_channels=state["image_proj.weight"].shape[1],
        out_channels=state["final.weight"].shape[0],
        num_channels=state["time_emb.lin1.weight"].shape[1],
        stem=state["image_proj.weight"].shape[0],
        widths=tuple(state[f"{first}.res.norm2.weight"].shape[0] for first in firsts),
        attention=tuple(f"{first}.attn.norm.weight" in state for first in firsts),
        num_res_blocks=num_res_blocks,
        resample="resnet" if any(name.startswith(f"down.{num_res_blocks}.op.") for name in state) else "conv",
    )


def official_parts(unet: "UNet2DModel") -> Iterator[tuple[str, str, Part]]:
    """Yields the modules of the official network with their counterparts, as `convert` takes them."""
    yield "image_proj", "conv_in", unchanged
    yield "time_emb.lin1", "time_embedding.linear_1", unchanged
    yield "time_emb.lin2", "time_embedding.linear_2", unchanged
    yield "middle.res1", "mid_block.resnets.0", RESIDUAL_BLOCK
    yield "middle.attn", "mid_block.attentions.0", attention(*ATTENTION, unet.mid_block.attentions[0].heads)
    yield "middle.res2", "mid_block.resnets.1", RESIDUAL_BLOCK
    for stage in ("down", "up"):
        k = -1
        for module in (m for name, modules in openai_blocks(unet) if name.startswith(stage) for m in modules):
            inside = unet.get_submodule(module)
            if "attentions" in module:
                yield f"{stage}.{k}.attn", module, attention(*ATTENTION, inside.heads)
                continue
            k += 1
            if "resnets" in module:
                yield f"{stage}.{k}.res", module, RESIDUAL_BLOCK
            elif hasattr(inside, "norm1"):
                yield f"{stage}.{k}.op", module, RESIDUAL_BLOCK
            else:
                yield f"{stage}.{k}", module, unchanged
    yield "norm", "conv_norm_out", unchanged
    yield "final", "conv_out", unchanged


RESIDUAL_BLOCK = renamed(
    norm1="norm1", conv1="conv1", norm2="norm2", conv2__1="conv2", shortcut="conv_shortcut", time_emb__1="time_emb_proj"
)

ATTENTION = "norm", "projection", "output"


def read_diffusion(options: dict[str, Any], path: Path, settings: Settings) -> tuple[Schedule, Inputs, Denoised | None]:
    """The schedule, the inputs and the prediction of a DDPM, whose time is t / T, or of EDM."""
    model_type = options.get("model_type")
    if model_type is None:
        model_type = "EDM" if "EDM" in str(path) else "DDPM"
        logger.warning("%s does not say how it was diffused; taking %s (model_type in its .yaml)", path, model_type)
    diffusion = options.get("diffusion", {})
    if model_type == "DDPM":
        num_steps, betas = diffusion.get("n_T", 1000), diffusion.get("betas", [1e-4, 0.02])
        if num_steps < 1 or len(betas) != 2 or not all(isinstance(b, float) and 0 < b < 1 for b in betas):
            raise ValueError(f"the diffusion beside {path} has n_T={num_steps}, betas={betas}; give as [1.0e-4, 0.02]")
        name_assumed(path, {name: value for name, value in (("n_T", 1000), ("betas", betas)) if name not in diffusion})
        first, last = betas
        betas = np.linspace(first, last, num_steps)
        linear = VP(np.cumprod(1 - betas), first=1)
        inputs: Inputs = lambda x_t, timestep: unet_inputs(x_t, timestep / num_steps)  # noqa: E731
        return linear, inputs, predicts("epsilon", linear)
    if model_type == "EDM":
        noise = {"sigma_min": 0.002, "sigma_max": 80, "rho": 7, "sigma_data": 0.5}
        name_assumed(path, {name: value for name, value in noise.items() if name not in diffusion})
        schedule = edm_schedule(diffusion, settings.num_steps)
        sigma_data = diffusion.get("sigma_data", 0.5)
        return schedule, edm_inputs(schedule, sigma_data), edm_denoised(schedule, sigma_data)
    raise ValueError(f"model_type={model_type!r} beside {path} is not known; it is 'DDPM' or 'EDM'")


def make_backbone(
    unet: "UNet2DModel",
    schedule: Schedule,
    inputs: Inputs,
    fingerprint: str,
    settings: Settings,
    encoder: Encoder | None = None,
    denoised: Denoised | None = None,
) -> Backbone:
    """Counts blocks as the DDAE paper does, or as OpenAI's code does if the network is built like ADM."""
    config = unet.config
    like_adm = config.resnet_time_scale_shift == "scale_shift" and config.downsample_type == "resnet"
    specs = openai_specs(unet) if like_adm else ddae_specs(unet)
    encoder = encoder or pixels_of(settings.image_size or config.sample_size, config.in_channels)
    return Backbone(unet, specs, schedule, encoder, inputs, fingerprint, settings, denoised=denoised)
