"""The contract between networks and the rest of the project: every family builds one `Backbone`."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from ddae.backbones import lean
from ddae.backbones.hooks import hooked, run_on_meta
from ddae.backbones.offload import check_room, offload, onload
from ddae.backbones.predictions import Denoised
from ddae.noise import Schedule

Inputs = Callable[[Tensor, int], dict[str, Any]]
Reduce = Callable[[Tensor], Tensor]
ToMap = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Block:
    """A part of the network whose output can serve as a feature."""

    name: str
    index: int
    """Its number in the paper that probed this family of networks."""
    stage: str
    """down, mid or up in a UNet; block in a transformer."""
    channels: int
    size: int
    """Side of its square map, in pixels or tokens."""
    flops_share: float
    """Share of the floating-point operations of a full forward pass that are done once this block has run."""
    module: str = ""
    """Path of the module in the network."""
    alias: str = ""
    """A second name, if it has one: that of the paper (out_7, b24) or of the library that made the network."""


@dataclass(frozen=True)
class BlockSpec:
    """What is known about a block before the network has run: its names, and the module whose output it is."""

    name: str
    index: int
    module: str
    alias: str = ""

    @property
    def stage(self) -> str:
        return self.name.split(".")[0]


@dataclass(frozen=True)
class Settings:
    """How a network is run. Whatever changes its features beyond rounding is part of the fingerprint."""

    device: str = "cpu"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Used for the operations that autocast considers safe in it; all others are float32, and so are weights, unless
    they are stored in this precision."""
    channels_last: bool = False
    compile: bool = False
    image_size: int = 0
    """Side of the images that enter the network, in pixels; 0 is the model's own."""
    num_steps: int = 18
    """Length of the EDM schedule whose steps are the timesteps: 18 or 50 in the DDAE paper."""
    text_embedding: str = ""
    """File of a learned text embedding for Stable Diffusion; without one the text is empty."""
    weights: str = ""
    """File of tensors that replace the network's own, as fine-tuning leaves them."""
    offload: bool = False
    """Keep the network's weights in CPU memory, and move each layer to the device while it runs."""

    def __post_init__(self) -> None:
        if self.offload and self.compile:
            raise ValueError("compile=True does not go with offload=True; leave one of them out")

    @property
    def stamp(self) -> bytes:
        """The numbers that change features beyond rounding, as bytes to hash; empty at their defaults."""
        numbers = self.precision, self.image_size, self.num_steps
        default = Settings.precision, Settings.image_size, Settings.num_steps
        return repr(numbers).encode() if numbers != default else b""


class Encoder(Protocol):
    """Turns images into what the network denoises: pixels or latents."""

    @property
    def image_size(self) -> int: ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one encoded image."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything its output depends on, if encoding is worth caching; empty for pixels."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """uint8 [N, 3, H, W] -> float32 [N, *shape]."""


@dataclass(frozen=True)
class Pixels:
    """Pixels scaled to [-1, 1]; a one-channel network gets the mean of the three colours."""

    image_size: int
    channels: int = 3
    fingerprint: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.image_size, self.image_size

    def __call__(self, images: Tensor) -> Tensor:
        pixels = images.float()
        if self.channels == 1:
            pixels = pixels.mean(dim=1, keepdim=True)
        return resize(pixels, self.image_size) / 127.5 - 1

    def decode(self, x0: Tensor) -> Tensor:
        """float32 [N, *shape] -> uint8 [N, 3, H, W]; a grey image gets three equal colours."""
        return as_bytes(x0).expand(-1, 3, -1, -1)


def as_bytes(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] as uint8; those beyond are cut off."""
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def pixels_of(image_size: int, channels: int) -> Pixels:
    """Pixels for a network that denoises so many channels. Raises ValueError if these cannot be colours."""
    if channels not in (1, 3):
        raise ValueError(
            f"it denoises {channels} channels, and images have 1 or 3; if these are latents, put the folder of its VAE "
            "beside it as vae/"
        )
    return Pixels(image_size, channels)


def check_finite(network: nn.Module) -> None:
    """Raises ValueError if a weight is NaN or infinite, because every feature behind it would be."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            raise ValueError(
                f"tensor={name!r} of the {type(network).__name__} holds NaN or infinity; its file is damaged or its "
                "training has diverged: give other weights"
            )


def first_map(output: Any) -> Tensor:
    """The output of a block, or the first of several outputs."""
    return output if isinstance(output, Tensor) else output[0]


def per_image(x_t: Tensor, value: float) -> Tensor:
    """[N], the value once for every image of the batch, as networks take their timesteps."""
    return torch.full((len(x_t),), value, device=x_t.device)


def token_grid(output: Any) -> Tensor:
    """Arranges tokens [N, S * S, C], which come row by row, as a map [N, C, S, S]."""
    tokens = first_map(output)
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def resize(pixels: Tensor, size: int) -> Tensor:
    """Resizes [N, C, H, W] to [N, C, size, size], bilinear with antialiasing; returns it unchanged if it fits."""
    if pixels.shape[-2:] == (size, size):
        return pixels
    return functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)


@dataclass
class Backbone:
    """A frozen network that scales and conditions its inputs as it was trained to."""

    network: nn.Module
    specs: tuple[BlockSpec, ...]
    schedule: Schedule
    encoder: Encoder
    inputs: Inputs
    """(x_t, native timestep) -> the keyword arguments of the network's forward pass."""
    fingerprint: str
    """Hash of weights, configuration and settings."""
    settings: Settings = Settings()
    to_map: ToMap = first_map
    """Turns what a block's module returns into a map [N, C, S, S]."""
    denoised: Denoised | None = None
    """Turns what the network returns into x0; None where it is not known what it predicts."""

    def __post_init__(self) -> None:
        """Sets `blocks` (tuple[Block, ...], in the order in which they run) and `flops` (the floating-point operations
        of one full forward pass of one image)."""
        memory_format = torch.channels_last if self.settings.channels_last else torch.preserve_format
        device = "cpu" if self.settings.offload else self.settings.device
        check_room(self.network, device)
        lean.move(self.network, device=device, memory_format=memory_format)
        self.network.eval().requires_grad_(False)
        self.strict = {spec.name for spec in self.specs}  # the family's blocks, without modules that are added
        self._find_blocks()

    def _find_blocks(self) -> None:
        if self.settings.offload:
            onload(self.network)
        self.modules = {spec.name: self.network.get_submodule(spec.module) for spec in self.specs}
        self.blocks, self.flops, called = self._trace()
        self.modules = {block.name: self.modules[block.name] for block in self.blocks}
        if self.settings.offload:
            offload(self.network, self.settings.device, called)

    def add_modules(self, paths: Iterable[str]) -> None:
        """Makes modules blocks under their paths in the network, as far as they return a map of the image, once in a
        pass."""
        known = {spec.name for spec in self.specs}
        there = {path for path, _ in self.network.named_modules() if path}
        new = [path for path in dict.fromkeys(paths) if path in there - known]
        if new:
            self.specs += tuple(BlockSpec(path, 0, path) for path in new)
            self._find_blocks()

    def block(self, name: str) -> Block:
        """A block by its name, or any module by its path. Raises ValueError if there is none, or no map of it."""
        if name not in self.modules:
            self.add_modules([name])
        if name not in self.modules:
            there = any(path == name for path, _ in self.network.named_modules())
            why = "returns no map of the image, or runs more than once" if there else "is not in this backbone"
            raise ValueError(f"block={name!r} {why}; it has: {', '.join(self.modules)}")
        return next(block for block in self.blocks if block.name == name)

    @property
    def image_size(self) -> int:
        return self.encoder.image_size

    def sigma(self, timestep: int) -> float:
        """Noise-to-signal ratio at a native timestep."""
        return self.schedule.sigma(timestep)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Encodes uint8 images [N, 3, H, W] as x0, float32 on the network's device."""
        return self.encoder(images.to(self.settings.device))

    def activations(
        self,
        x0: Tensor,
        noise: Tensor | None,
        timestep: int,
        blocks: Sequence[str],
        reduce: Reduce = lambda map: map,
    ) -> dict[str, Tensor]:
        """Runs one forward pass, which stops after the deepest of the named blocks, and returns reduce(map) for each of
        their maps [N, C, S, S].

        noise: None for images as they are. reduce is applied as soon as a map exists, so that full maps need not be
        held together.
        """
        for name in blocks:
            self.block(name)
        with torch.no_grad() if self.settings.offload else torch.inference_mode():  # where weights cannot move
            x_t = x0 if noise is None else self.noised(x0, noise, timestep)
            return self.capture(x_t, timestep, blocks, reduce)

    def capture(self, x_t: Tensor, timestep: int, blocks: Sequence[str], reduce: Reduce) -> dict[str, Tensor]:
        """Like activations(), for images that are already noised; with gradients where they are enabled."""
        inputs = self.inputs(x_t, timestep)
        wanted = tuple(name for name in self.modules if name in blocks)
        with self._precision(self.settings.device):
            if self.settings.compile:
                return self._compiled(wanted, inputs, reduce)
            return self._until_deepest(wanted, inputs, reduce)

    def denoise(self, x_t: Tensor, timestep: int) -> Tensor:
        """x0 as the network sees it in x_t, float32 [N, *shape]; with gradients where they are enabled.

        Raises ValueError if it is not known what the network predicts."""
        if self.denoised is None:
            raise ValueError(
                f"a {type(self.network).__name__} of this kind cannot be sampled from, because its files do not say "
                "what it predicts, or it is no denoiser; give a diffusion network that predicts noise, v or the image"
            )
        inputs = self.inputs(x_t, timestep)
        with self._precision(self.settings.device):
            output = self.network(**inputs)
        return self.denoised(output, x_t, timestep)

    def _precision(self, device: str) -> torch.autocast:
        dtype = getattr(torch, self.settings.precision)
        return torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32)

    def noised(self, x0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """x_t, on the device and in the memory format of the network."""
        x_t = self.schedule.diffuse(x0, noise.to(x0.device), timestep)
        return x_t.contiguous(memory_format=torch.channels_last) if self.settings.channels_last else x_t

    def _until_deepest(self, wanted: tuple[str, ...], inputs: dict[str, Any], reduce: Reduce) -> dict[str, Tensor]:
        captured: dict[str, Tensor] = {}

        def keep(name: str, output: object) -> None:
            captured[name] = reduce(self.map_of(output))
            if name == wanted[-1]:
                raise _DeepestReached

        with hooked({name: self.modules[name] for name in wanted}, keep), suppress(_DeepestReached):
            self.network(**inputs)
        return captured

    @cached_property
    def _compiled(self) -> Callable[[tuple[str, ...], dict[str, Any], Reduce], dict[str, Tensor]]:
        """Does what _until_deepest does with torch.compile, which drops the operations that no returned map depends on
        and so ends at the deepest block. The hooks only set outputs aside. Names and reduce are arguments because the
        compiled graph depends on them, and arguments guard it."""
        aside: dict[str, Any] = {}

        def run(wanted: tuple[str, ...], inputs: dict[str, Any], reduce: Reduce) -> dict[str, Tensor]:
            self.network(**inputs)
            return {name: reduce(self.map_of(aside[name])) for name in wanted}

        compiled = torch.compile(run)

        def call(wanted: tuple[str, ...], inputs: dict[str, Any], reduce: Reduce) -> dict[str, Tensor]:
            with hooked({name: self.modules[name] for name in wanted}, aside.__setitem__):
                captured = compiled(wanted, inputs, reduce)
            aside.clear()
            return captured

        return call

    def map_of(self, output: Any) -> Tensor:
        """The map [N, C, S, S] in what a module returns. Raises ValueError if there is none."""
        map = self.to_map(output)
        if map.ndim == 3 and math.isqrt(map.shape[1]) ** 2 == map.shape[1]:
            map = token_grid(map)
        if map.ndim != 4 or map.shape[-1] != map.shape[-2]:
            raise ValueError(f"{list(map.shape)} is no map of an image")
        return map

    @torch.no_grad()
    def _trace(self) -> tuple[tuple[Block, ...], int, set[str]]:
        """Finds shapes, floating-point operations, and the modules that run, by a pass of one image: on the meta
        device, without arithmetic, unless the network looks at values."""
        device = "cpu" if self.settings.offload else self.settings.device
        inputs = self.inputs(torch.zeros(1, *self.encoder.shape, device=device), self.schedule.timesteps[0])
        called: set[str] = set()

        def traced(run: Callable[[], object]) -> tuple[dict[str, tuple[Tensor, int]], int]:
            seen: dict[str, tuple[Tensor, int]] = {}
            num_runs = Counter[str]()

            def keep(name: str, output: object) -> None:
                num_runs[name] += 1
                if num_runs[name] > 1 and name not in self.strict:
                    seen.pop(name, None)
                    return
                try:
                    seen.setdefault(name, (self.map_of(output), counter.get_total_flops()))
                except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
                    if name in self.strict:
                        raise

            every = dict(self.network.named_modules())
            with (
                lean.counting() as counter,
                hooked(self.modules, keep),
                hooked(every, lambda name, output: called.add(name)),
            ):
                run()
            return seen, counter.get_total_flops()

        try:
            on_meta = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), inputs)
            seen, total = traced(lambda: run_on_meta(self.network, on_meta))
        except (NotImplementedError, RuntimeError):  # it looks at values
            with self._precision(device):
                seen, total = traced(lambda: self.network(**inputs))
        specs = {spec.name: spec for spec in self.specs}
        blocks = [
            Block(name, spec.index, spec.stage, map.shape[1], map.shape[-1], flops / total, spec.module, spec.alias)
            for name, (map, flops) in seen.items()
            for spec in [specs[name]]
        ]
        return tuple(blocks), total, called


class _DeepestReached(Exception):
    """Ends a forward pass when the deepest block that was asked for has run."""
