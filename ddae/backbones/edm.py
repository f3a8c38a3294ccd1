"""The networks of NVlabs' EDM code (Karras et al. 2022) as official checkpoints, DDPM++ also as a diffusers model.
Timesteps are the steps of EDM's sampler, and step 1 is the least noisy.

Networks: DDPM++ and NCSN++ (SongUNet), and ADM (DhariwalUNet). Preconditionings: EDM's, and those of the baselines, VP,
VE and iDDPM.
"""

import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ddae.backbones.base import Backbone, BlockSpec, Encoder, Inputs, Pixels, Settings
from ddae.backbones.convert import Part, State, attention, convert, load_state, renamed, unchanged
from ddae.backbones.files import load_network, subfolder
from ddae.backbones.options import NOTHING, checked_options, name_assumed
from ddae.backbones.predictions import Denoised, edm_denoised, preconditioned
from ddae.backbones.schedules import edm_schedule, read_noise, read_scheduler
from ddae.backbones.unets import Layout, ddae_specs, edm_inputs, make_unet, unet_inputs
from ddae.backbones.vae import latents_beside, with_vae
from ddae.noise import VE, Schedule

if TYPE_CHECKING:
    from diffusers import UNet2DModel

    from ddae.backbones.song_unet import SongUNet2DModel

logger = logging.getLogger("ddae")

OTHERS = re.compile(r"aux_(down|up|skip)")
"""Names of tensors of encoders and decoders that no published network has."""

PRECONDITIONINGS = ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond")

NUMBERS: dict[str, dict[str, float]] = {
    "EDMPrecond": {"sigma_data": 0.5},
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100.0},
    "iDDPMPrecond": {"C_1": 0.001, "C_2": 0.008, "M": 1000},
}
"""What a preconditioning depends on, with the values of the official code."""

KINDS: dict[str, Any] = {
    "model_type": PRECONDITIONINGS,
    "sigma_min": float, "sigma_max": float, "rho": float, "sigma_data": float,
    "beta_d": float, "beta_min": float, "M": int, "epsilon_t": float, "C_1": float, "C_2": float,
}  # fmt: skip


@dataclass(frozen=True)
class Rounded(VE):
    """Steps of a sampler at the nearest noise levels that a network was trained at."""

    levels: tuple[float, ...] = ()

    def sigma(self, timestep: int) -> float:
        wanted = super().sigma(timestep)
        return min(self.levels, key=lambda level: abs(level - wanted))


def load(folder: Path, fingerprint: str, settings: Settings) -> Backbone:
    """Loads a folder that SongUNet2DModel.save_pretrained has written. Its noise is that of the scheduler beside it, or
    EDM's; one that takes classes or augmentation runs without."""
    from ddae.backbones.song_unet import SongUNet2DModel

    unet = load_network(SongUNet2DModel, subfolder(folder, "unet"))
    encoder = latents_beside(unet, folder, settings)
    fingerprint = with_vae(fingerprint, encoder) if encoder else fingerprint
    options = read_scheduler(folder) or {}
    if options and "sigma_data" not in options:
        schedule, told, predicted = read_noise(folder, settings.num_steps)

        def inputs(x_t: Tensor, timestep: int) -> dict[str, Any]:
            return unet_inputs(x_t, told(timestep)[0])

        return wrapped(unet, schedule, inputs, predicted, fingerprint, settings, encoder)
    options = {name: options[name] for name in ("sigma_min", "sigma_max", "rho", "sigma_data") if name in options}
    numbers = {"sigma_data": unet.config.sigma_data, **options}
    return make_backbone(unet, "EDMPrecond", numbers, fingerprint, settings, encoder)


def from_state(
    state: State, path: Path, fingerprint: str, settings: Settings, said: Mapping[str, Any] = NOTHING
) -> Backbone:
    """Loads a network of the official code in its preconditioning; one that takes class labels runs without.

    The tensors show the network. The preconditioning is in an official pickle; otherwise the sidecar says it
    (`model_type`, and its numbers by the official names), or it is EDM's, which is named.
    """
    for name in state:
        if OTHERS.search(name):
            raise ValueError(f"{path} is not DDPM++ or NCSN++, as {name} shows; of EDM's networks ADM is known besides")
    state = dict(state)
    sigma_data = state.pop("sigma_data", None)
    options = checked_options(path, KINDS)
    unet = adm_network(state, path, said) if "out_conv.weight" in state else song_network(state, path)
    if "map_label.weight" in state:
        logger.warning("%s is class-conditional; its features are taken without a class", path)
    learns_variance = unet.config.out_channels == 2 * unet.config.in_channels
    kind = precondition_of(options, said, learns_variance, path)
    told = {name: said[name] for name in NUMBERS[kind] if name in said}
    if sigma_data is not None and kind == "EDMPrecond":
        told["sigma_data"] = float(sigma_data)
    for name in told.keys() & options.keys():
        if options[name] != told[name]:
            raise ValueError(f"the file beside {path} says {name}={options[name]}, but the checkpoint {told[name]}")
    given = {**told, **options}
    unsaid: dict[str, Any] = {name: value for name, value in NUMBERS[kind].items() if name not in given}
    if "model_type" not in options and "class_name" not in said and not learns_variance:
        unsaid = {"model_type": kind, **unsaid}
    name_assumed(path, unsaid)
    return make_backbone(unet, kind, {**NUMBERS[kind], **given}, fingerprint, settings)


def precondition_of(options: Mapping[str, Any], said: Mapping[str, Any], learns_variance: bool, path: Path) -> str:
    """Which of PRECONDITIONINGS a network is in. Raises ValueError for another, and for two that differ."""
    found = said.get("class_name") or ("iDDPMPrecond" if learns_variance else "")
    kind = options.get("model_type") or found or "EDMPrecond"
    if found and found != kind:
        raise ValueError(f"the file beside {path} says model_type={kind}, but it is {found}")
    if kind not in PRECONDITIONINGS:
        raise ValueError(f"{path} holds {kind}; of NVlabs' networks {', '.join(PRECONDITIONINGS)} are supported")
    return kind


def make_backbone(
    unet: "UNet2DModel",
    kind: str,
    options: Mapping[str, Any],
    fingerprint: str,
    settings: Settings,
    encoder: Encoder | None = None,
) -> Backbone:
    """options: sigma_min, sigma_max and rho of the sampler, and the numbers of the preconditioning. encoder: of the
    images; pixels if not given."""
    schedule, inputs = PRECONDITION[kind](dict(options), settings.num_steps)
    sign = -1 if kind in ("VPPrecond", "iDDPMPrecond") else 1  # these predict noise, VE its negative
    if kind == "EDMPrecond":
        denoised = edm_denoised(schedule, options["sigma_data"])
    else:
        denoised = preconditioned(schedule, lambda sigma: 1.0, lambda sigma: sign * sigma)
    return wrapped(unet, schedule, inputs, denoised, fingerprint, settings, encoder)


def wrapped(
    unet: "UNet2DModel",
    schedule: Schedule,
    inputs: Inputs,
    denoised: Denoised | None,
    fingerprint: str,
    settings: Settings,
    encoder: Encoder | None = None,
) -> Backbone:
    encoder = encoder or Pixels(settings.image_size or unet.config.sample_size, unet.config.in_channels)
    specs = block_specs(unet)
    return Backbone(unet, specs, schedule, encoder, inputs, fingerprint, settings, denoised=denoised)


def edm(options: dict[str, Any], num_steps: int) -> tuple[VE, Inputs]:
    schedule = edm_schedule(options, num_steps)
    return schedule, edm_inputs(schedule, options["sigma_data"])


def vp(options: dict[str, Any], num_steps: int) -> tuple[VE, Inputs]:
    """Song et al. 2021's VP: x scaled to variance 1, and the time at which its noise is sigma, 0 to M - 1."""
    slope, start = options["beta_d"], options["beta_min"]

    def sigma_at(t: float) -> float:
        return math.sqrt(math.expm1(0.5 * slope * t**2 + start * t))

    schedule = within(options, num_steps, sigma_at(options["epsilon_t"]), sigma_at(1))

    def inputs(x_t: Tensor, timestep: int) -> dict[str, Any]:
        sigma = schedule.sigma(timestep)
        time = (math.sqrt(start**2 + 2 * slope * math.log1p(sigma**2)) - start) / slope
        return unet_inputs(x_t / math.hypot(sigma, 1), (options["M"] - 1) * time)

    return schedule, inputs


def ve(options: dict[str, Any], num_steps: int) -> tuple[VE, Inputs]:
    """Song et al. 2021's VE: x as it is, and ln(sigma / 2)."""
    schedule = within(options, num_steps, options["sigma_min"], options["sigma_max"])

    def inputs(x_t: Tensor, timestep: int) -> dict[str, Any]:
        return unet_inputs(x_t, math.log(0.5 * schedule.sigma(timestep)))

    return schedule, inputs


def iddpm(options: dict[str, Any], num_steps: int) -> tuple[VE, Inputs]:
    """Improved diffusion's cosine schedule of M noise levels: x scaled to variance 1, and the index of its level."""
    levels = iddpm_levels(options["C_1"], options["C_2"], options["M"])
    bounds = within(options, num_steps, levels[-2], levels[0])
    schedule = Rounded(num_steps, bounds.sigma_min, bounds.sigma_max, bounds.rho, tuple(levels[:-1]))

    def inputs(x_t: Tensor, timestep: int) -> dict[str, Any]:
        sigma = schedule.sigma(timestep)
        return unet_inputs(x_t / math.hypot(sigma, 1), options["M"] - 1 - levels.index(sigma))

    return schedule, inputs


def iddpm_levels(c_1: float, c_2: float, m: int) -> list[float]:
    """The M + 1 noise levels, the largest first, and 0 (Karras et al. 2022, table 1), in float32 as officially."""
    share = (0.5 * math.pi * torch.arange(m + 1) / m / (c_2 + 1)).sin() ** 2
    ratio = (share[:-1] / share[1:]).clip(min=c_1)
    levels = torch.zeros(m + 1)
    for j in range(m, 0, -1):
        levels[j - 1] = ((levels[j] ** 2 + 1) / ratio[j - 1] - 1).sqrt()
    return [float(level) for level in levels]


def within(options: Mapping[str, Any], num_steps: int, lowest: float, highest: float) -> VE:
    """The steps of EDM's sampler on a network that was trained at noise levels from lowest to highest."""
    return VE(num_steps, max(0.002, lowest), min(80.0, highest), options.get("rho", 7.0))


PRECONDITION: dict[str, Callable[[dict[str, Any], int], tuple[VE, Inputs]]] = {
    "EDMPrecond": edm,
    "VPPrecond": vp,
    "VEPrecond": ve,
    "iDDPMPrecond": iddpm,
}


def block_specs(unet: "UNet2DModel") -> tuple[BlockSpec, ...]:
    """Counts blocks as in a DDPM; where a decoder block lacks the attention that others of its level have, the block is
    the residual block."""
    return tuple(
        replace(spec, module=spec.module.replace("attentions", "resnets"))
        if isinstance(unet.get_submodule(spec.module), nn.Identity)
        else spec
        for spec in ddae_specs(unet)
    )


def song_network(state: State, path: Path) -> "SongUNet2DModel":
    from ddae.backbones.song_unet import SongUNet2DModel

    converted, config = from_official(state, path)
    with torch.device("meta"):
        unet = SongUNet2DModel(**config)
    load_state(unet, converted)
    return unet


def adm_network(state: State, path: Path, said: Mapping[str, Any]) -> "UNet2DModel":
    """ADM as the EDM code has it. Its heads have 64 channels each, or what a pickle says."""
    state = {name: each for name, each in state.items() if not name.startswith(("map_augment.", "map_label."))}
    check_filters(state, path)
    state = {name: each for name, each in state.items() if not name.endswith(".resample_filter")}
    sizes, num_blocks = sizes_of(state)
    firsts = [f"enc.{size}x{size}_block0" for size in sizes]
    layout = Layout(
        in_channels=state[f"enc.{sizes[0]}x{sizes[0]}_conv.weight"].shape[1],
        out_channels=len(state["out_conv.weight"]),
        num_channels=state["map_layer0.weight"].shape[1],
        stem=len(state[f"enc.{sizes[0]}x{sizes[0]}_conv.weight"]),
        widths=tuple(len(state[f"{first}.conv1.weight"]) for first in firsts),
        attention=tuple(f"{first}.qkv.weight" in state for first in firsts),
        num_res_blocks=num_blocks,
        resample="resnet",
        scale_shift=True,
    )
    said_heads = {value for name, value in said.items() if name.endswith(".num_heads") and value}
    said_widths = {len(each) for name, each in state.items() if name.endswith(".norm2.weight")}
    if said_heads and said_heads != {width // 64 for width in said_widths}:
        raise ValueError(f"{path} has {sorted(said_heads)} heads of other than 64 channels, which is not supported")
    if not said_heads:
        name_assumed(path, {"channels_per_head": 64})
    unet = make_unet(layout, sizes[0], lambda module, channels: max(1, channels // 64), True, 0)
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = min(32, module.num_channels // 4)
    load_state(unet, convert(state, parts(sizes, num_blocks, "out_norm", "out_conv")))
    return unet


def check_filters(state: State, path: Path, lengths: tuple[int, ...] = (2,)) -> None:
    """Raises ValueError for filters of resampling that no published network has: averaging, and [1, 3, 3, 1]."""
    for name, each in state.items():
        if name.endswith(".resample_filter"):
            taps = each.new_tensor([1, 3, 3, 1]) / 8
            if each.shape[-1] not in lengths or (
                each.shape[-1] == 4 and not each.is_meta and not torch.allclose(each[0, 0], taps.outer(taps))
            ):
                raise ValueError(f"{path} is not DDPM++, as {name} shows, nor another network of EDM's that is known")


def sizes_of(state: State) -> tuple[list[int], int]:
    """(the sides of the maps of each level, the largest first; residual blocks in each)."""
    blocks = [found for name in state if (found := re.fullmatch(r"enc\.(\d+)x\1_block(\d+)\.conv0\.weight", name))]
    if not blocks:
        raise ValueError("the checkpoint has no enc.<size>x<size>_block0, which its map_layer0 calls for")
    return sorted({int(found[1]) for found in blocks}, reverse=True), 1 + max(int(found[2]) for found in blocks)


def from_official(state: State, path: Path) -> tuple[State, dict[str, Any]]:
    """Returns the tensors of a SongUNet2DModel and its configuration."""
    smooth = any(name.endswith(".resample_filter") and each.shape[-1] == 4 for name, each in state.items())
    check_filters(state, path, (4,) if smooth else (2,))
    state = {name: tensor for name, tensor in state.items() if not name.endswith(".resample_filter")}
    state.pop("map_augment.weight", None)  # zero labels, and it has no bias
    if state.pop("map_label.weight", None) is not None:
        label = state.pop("map_label.bias").float()
        state["map_layer0.bias"] = state["map_layer0.bias"].float() + state["map_layer0.weight"].float() @ label

    sizes, num_blocks = sizes_of(state)
    top = f"dec.{sizes[0]}x{sizes[0]}_aux"
    fourier = "map_noise.freqs" in state
    residual = any("_aux_residual." in name for name in state)
    extra = parts_of_ncsn(sizes, fourier, residual)
    converted = convert(state, [*extra, *parts(sizes, num_blocks, f"{top}_norm", f"{top}_conv")])
    stem_channels, in_channels, *_ = converted["conv_in.weight"].shape
    time_embedding_dim, noise_channels = converted["time_embedding.linear_1.weight"].shape
    return converted, {
        "sample_size": sizes[0],
        "in_channels": in_channels,
        "out_channels": len(converted["conv_out.weight"]),
        "stem_channels": stem_channels,
        "block_out_channels": [len(converted[f"down_blocks.{i}.resnets.0.conv1.weight"]) for i in range(len(sizes))],
        "layers_per_block": num_blocks,
        "attention_resolutions": [
            size for i, size in enumerate(sizes) if f"down_blocks.{i}.attentions.0.to_q.weight" in converted
        ],
        "noise_channels": noise_channels,
        "time_embedding_dim": time_embedding_dim,
        "fourier": fourier,
        "smooth": smooth,
        "residual": residual,
    }


def parts_of_ncsn(sizes: list[int], fourier: bool, residual: bool) -> Iterator[tuple[str, str, Part]]:
    """Yields what NCSN++ has beside DDPM++."""
    if fourier:
        yield "map_noise", "time_proj", unchanged
    for i, size in enumerate(sizes[1:] if residual else ()):
        yield f"enc.{size}x{size}_aux_residual", f"image_convs.{i}", unchanged


def parts(sizes: list[int], num_blocks: int, norm: str, conv: str) -> Iterator[tuple[str, str, Part]]:
    """Yields the modules of an official network with these resolutions, num_blocks blocks in each, and a last
    norm and convolution of these names, with their counterparts, as `convert` takes them."""
    first, last = (f"{size}x{size}" for size in (sizes[0], sizes[-1]))
    yield "map_layer0", "time_embedding.linear_1", unchanged
    yield "map_layer1", "time_embedding.linear_2", unchanged
    yield f"enc.{first}_conv", "conv_in", unchanged
    yield norm, "conv_norm_out", unchanged
    yield conv, "conv_out", unchanged
    yield f"dec.{last}_in0", "mid_block", block(0)
    yield f"dec.{last}_in1", "mid_block", block(1)
    for down, size in enumerate(sizes):
        up = len(sizes) - 1 - down
        if down > 0:
            yield f"enc.{size}x{size}_down", f"down_blocks.{down - 1}.downsamplers.0", resnet
        if up > 0:
            yield f"dec.{size}x{size}_up", f"up_blocks.{up - 1}.upsamplers.0", resnet
        for j in range(num_blocks):
            yield f"enc.{size}x{size}_block{j}", f"down_blocks.{down}", block(j)
        for j in range(num_blocks + 1):
            yield f"dec.{size}x{size}_block{j}", f"up_blocks.{up}", block(j)


resnet = renamed(
    norm0="norm1", conv0="conv1", affine="time_emb_proj", norm1="norm2", conv1="conv2", skip="conv_shortcut"
)


def block(j: int) -> Part:
    """Converts a residual block, and the attention it may hold, to the j-th resnet and attention of its level."""

    def part(inside: State) -> State:
        attended = {name: tensor for name, tensor in inside.items() if name.startswith(("norm2.", "qkv.", "proj."))}
        rest = {name: tensor for name, tensor in inside.items() if name not in attended}
        converted = {f"resnets.{j}.{name}": tensor for name, tensor in resnet(rest).items()}
        if attended:
            by_channel = attention("norm2", "qkv", "proj", heads=len(attended["norm2.weight"]))(attended)
            converted |= {f"attentions.{j}.{name}": tensor for name, tensor in by_channel.items()}
        return converted

    return part
