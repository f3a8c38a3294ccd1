"""ADM, the UNet of guided diffusion (Dhariwal & Nichol 2021), of improved diffusion (Nichol & Dhariwal 2021) and of
consistency models (Song et al. 2023), as official checkpoints."""

import logging
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ddae.backbones.base import Backbone, Pixels, Settings
from ddae.backbones.convert import Part, attention, convert, load_state, renamed, unchanged
from ddae.backbones.options import NOTHING, checked_options, name_assumed, read_options
from ddae.backbones.predictions import Denoised, predicts
from ddae.backbones.schedules import edm_schedule
from ddae.backbones.unets import Layout, edm_inputs, make_unet, openai_blocks, openai_specs, unet_inputs
from ddae.noise import VP, Schedule

if TYPE_CHECKING:
    from diffusers import UNet2DModel

IMAGE_SIZES: dict[tuple[float, ...], int] = {
    (0.5, 1, 1, 2, 2, 4, 4): 512,
    (1, 1, 2, 2, 4, 4): 256,
    (1, 1, 2, 3, 4): 128,
    (1, 2, 3, 4): 64,
    (1, 2, 2, 2): 32,
}
"""The image size for the channel multipliers of each level, as the official create_model pairs them."""

KINDS: dict[str, Any] = {
    "model_type": ("ADM", "consistency"),
    "image_size": int,
    "num_head_channels": int,
    "num_heads": int,
    "num_heads_upsample": int,
    "use_new_attention_order": bool,
    "diffusion_steps": int,
    "noise_schedule": ("linear", "cosine"),
    "rescale_timesteps": bool,
    "sigma_min": float,
    "sigma_max": float,
    "num_channels": int,
    "num_res_blocks": int,
    "use_scale_shift_norm": bool,
    "learn_sigma": bool,
    "class_cond": bool,
    "resblock_updown": bool,
    "attention_resolutions": (str, list),
    "channel_mult": (str, list),
}
"""Official flags that are read, with their types; those from num_channels on are checked against the tensors."""

UNUSED = dict.fromkeys(
    (
        "dropout", "use_checkpoint", "use_fp16", "sigma_small", "timestep_respacing", "use_kl", "predict_xstart",
        "rescale_learned_sigmas", "ema_rate", "lr", "batch_size", "microbatch", "weight_decay", "lr_anneal_steps",
        "schedule_sampler", "log_interval", "save_interval", "resume_checkpoint", "fp16_scale_growth", "data_dir",
        "weight_schedule", "training_mode", "model_path", "s_churn", "steps", "sampler", "num_samples",
    )
)  # fmt: skip
"""Official flags that change no activation."""

OLD_HEADS = {"num_head_channels": -1, "num_heads": 4, "num_heads_upsample": -1}
OLD_ORDER = {"use_new_attention_order": False}
LINEAR = {"diffusion_steps": 1000, "noise_schedule": "linear", "rescale_timesteps": False}
COSINE = {"diffusion_steps": 4000, "noise_schedule": "cosine", "rescale_timesteps": True}
IMPROVED = {**OLD_HEADS, **OLD_ORDER, **COSINE}

DEFAULTS: dict[str, dict[str, Any]] = {
    "resnet": {**OLD_HEADS, "num_head_channels": 64, **OLD_ORDER, **LINEAR},
    "conv": {**OLD_HEADS, **OLD_ORDER, **LINEAR},
    "": {**OLD_HEADS, **OLD_ORDER, **LINEAR},
}
"""Options that no tensor shows, as the codes have them, by how the network resamples."""

PUBLISHED: dict[tuple[int, tuple[float, ...], str], dict[str, Any]] = {
    (256, (1, 1, 2, 3, 4), "resnet"): {"num_head_channels": -1},
    (192, (1, 2, 3, 4), "resnet"): {"use_new_attention_order": True, "noise_schedule": "cosine"},
    (128, (1, 2, 2, 2), "conv"): IMPROVED,
    (128, (1, 2, 3, 4), "conv"): IMPROVED,
    (192, (1, 2, 3, 4), "conv"): {**IMPROVED, "rescale_timesteps": False},
    (128, (1, 1, 2, 2, 4, 4), "conv"): {"num_heads": 1},
}
"""Where published checkpoints of guided and of improved diffusion differ from DEFAULTS, by num_channels, channel
multipliers and resampling."""


def from_state(
    state: dict[str, Tensor], path: Path, fingerprint: str, settings: Settings, said: Mapping[str, Any] = NOTHING
) -> Backbone:
    """Loads an official checkpoint of guided diffusion, improved diffusion or consistency models, whose networks have
    one layout. What its tensors do not show (image size, heads, noise) is read from the sidecar, by the names of the
    official flags; it is as published, and named in a warning, where the sidecar does not say.

    A class-conditional network has no class for "no class". It runs without a class embedding, which is not how it was
    trained; a warning says so.
    """
    layout = read_layout(state, path)
    options = read_flags(layout, state, path, settings)
    heads = partial(num_heads, options=options)
    unet = make_unet(layout, options["image_size"], heads, flip_sin_to_cos=True, freq_shift=0)
    weights = {name: tensor for name, tensor in state.items() if name != "label_emb.weight"}
    if len(weights) < len(state):
        logging.getLogger("ddae").warning(
            "%s is class-conditional; its features are taken without a class, as it was never trained", path
        )
    load_state(unet, convert(weights, official_parts(unet, options["use_new_attention_order"])))
    pixels = Pixels(options["image_size"], layout.in_channels)
    schedule: Schedule
    denoised: Denoised | None = None
    if is_consistency(state):
        schedule = edm_schedule(options, settings.num_steps)
        inputs = edm_inputs(schedule, sigma_data=0.5, scale=1000)
    else:
        schedule = noise_schedule(options["noise_schedule"], options["diffusion_steps"])
        scale = 1000 / options["diffusion_steps"] if options["rescale_timesteps"] else 1
        inputs = partial(unet_inputs, scale=scale)
        denoised = predicts("sample" if read_options(path).get("predict_xstart") else "epsilon", schedule)
    return Backbone(unet, openai_specs(unet), schedule, pixels, inputs, fingerprint, settings, denoised=denoised)


def is_consistency(state: dict[str, Tensor]) -> bool:
    """Whether the code is that of consistency models and their EDM teachers, which alone makes the query, key and value
    by convolutions over two dimensions."""
    return state["middle_block.1.qkv.weight"].ndim == 4 if "middle_block.1.qkv.weight" in state else False


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


def read_flags(layout: Layout, state: dict[str, Tensor], path: Path, settings: Settings) -> dict[str, Any]:
    """The options that no tensor of this checkpoint shows, and its image_size; what nothing says is named in a warning.

    Raises ValueError if the sidecar contradicts the tensors, or if nothing says the image size.
    """
    multipliers = tuple(width / layout.num_channels for width in layout.widths)
    given = checked_options(path, KINDS, UNUSED)
    for name in ("diffusion_steps", "num_head_channels", "num_heads", "num_heads_upsample"):
        if given.get(name, 1) < 1 and (given[name] != -1 or name == "diffusion_steps"):
            raise ValueError(f"the file beside {path} says {name}={given[name]}; give 1 or more")
    defaults = DEFAULTS[layout.resample] | PUBLISHED.get((layout.num_channels, multipliers, layout.resample), {})
    if is_consistency(state):
        noise = {"sigma_min": 0.002, "sigma_max": 80.0}
        defaults = {**OLD_HEADS, "num_head_channels": 64, "use_new_attention_order": True, **noise}
    if "num_heads" in given:
        given = {"num_head_channels": -1, **given}
    elif given.get("num_head_channels", -1) != -1:
        given = {"num_heads": -1, **given}
    options = {"image_size": IMAGE_SIZES.get(multipliers), **defaults, **given}
    options["image_size"] = settings.image_size or options["image_size"]
    if not options["image_size"]:
        raise ValueError(
            f"{path} does not say its image size, and its channel multipliers are not those of a published checkpoint "
            f"({', '.join(f'{m:g}' for m in multipliers)}); give image_size in the .json beside it, or --image-size"
        )
    own_size = given.get("image_size") or IMAGE_SIZES.get(multipliers) or settings.image_size
    check_flags(given, layout, state, own_size, path)
    assumed = {name: value for name, value in defaults.items() if name not in given and value != -1}
    if "image_size" not in given and not settings.image_size:
        assumed = {"image_size": options["image_size"], **assumed}
    if options["num_head_channels"] != -1:
        assumed.pop("num_heads", None)
    if options.get("diffusion_steps") == 1000:
        assumed.pop("rescale_timesteps", None)  # it does nothing
    name_assumed(path, assumed)
    return options


def check_flags(given: Mapping[str, Any], layout: Layout, state: dict[str, Tensor], size: int, path: Path) -> None:
    """Raises ValueError for a flag in the sidecar that the tensors contradict."""
    sizes = [size >> level for level in range(len(layout.widths))]
    shown: dict[str, Any] = {
        "model_type": "consistency" if is_consistency(state) else "ADM",
        "num_channels": layout.num_channels,
        "num_res_blocks": layout.num_res_blocks,
        "use_scale_shift_norm": layout.scale_shift,
        "learn_sigma": layout.out_channels == 2 * layout.in_channels,
        "class_cond": "label_emb.weight" in state,
        "resblock_updown": layout.resample == "resnet",
        "attention_resolutions": {n for n, here in zip(sizes, layout.attention, strict=True) if here},
        "channel_mult": [width / layout.num_channels for width in layout.widths],
    }
    said = dict(given)
    if "attention_resolutions" in said:
        said["attention_resolutions"] = {*numbers(said["attention_resolutions"])} & {*sizes}
    if "channel_mult" in said:  # empty means the one for the image size
        said["channel_mult"] = numbers(said["channel_mult"]) or shown["channel_mult"]
    if len(sizes) == 1:
        said.pop("resblock_updown", None)  # nothing is resampled
    for name in shown.keys() & said.keys():
        if said[name] != shown[name]:
            raise ValueError(f"the file beside {path} says {name}={given[name]}, but its tensors have {shown[name]}")


def numbers(said: str | list) -> list[float]:
    """The numbers of an official flag, as in "32,16,8"."""
    return [float(n) for n in (said.split(",") if isinstance(said, str) else said) if str(n).strip()]


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
