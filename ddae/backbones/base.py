"""What every network looks like to the rest of the project: one class, which the families fill in."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from ddae.noise import Schedule

Reduce = Callable[[Tensor], Tensor]
ToMap = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Block:
    """One place in the network where a feature can be read."""

    name: str
    index: int
    """In the counting of the paper that read this family."""
    stage: str
    """down, mid or up of a UNet; block of a transformer."""
    channels: int
    size: int
    """Side of its square map."""
    flops_share: float
    """Share of a full forward pass's floating-point operations spent up to and with this block."""
    module: str = ""
    """Where it is in the network."""
    alias: str = ""
    """Its name in the paper, where it has one: out_7, b24."""


@dataclass(frozen=True)
class Place:
    """A block before the network has run: its name, and the module whose output it is."""

    name: str
    index: int
    module: str
    alias: str = ""

    @property
    def stage(self) -> str:
        return self.name.split(".")[0]


@dataclass(frozen=True)
class Settings:
    """How a network is run. What changes its features beyond rounding is part of the fingerprint."""

    device: str = "cpu"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the operations that autocast trusts with it; weights and what it does not trust stay float32."""
    channels_last: bool = False
    compile: bool = False
    image_size: int = 0
    """Side of the images that are encoded; 0 is the model's own."""
    num_steps: int = 18
    """Of the EDM schedule that timesteps count: 18 or 50 in the DDAE paper."""
    text_embedding: str = ""
    """File of a learned text embedding for Stable Diffusion; the null text without."""

    @property
    def stamp(self) -> bytes:
        """Of the numbers in it that change features beyond rounding; empty at their defaults."""
        numbers = self.precision, self.image_size, self.num_steps
        default = Settings.precision, Settings.image_size, Settings.num_steps
        return repr(numbers).encode() if numbers != default else b""


class Encoder(Protocol):
    """Images -> what the network denoises."""

    @property
    def image_size(self) -> int: ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one encoded image."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides what it makes, where that costs enough to be kept; empty for pixels."""
        ...

    def __call__(self, images: Tensor, /) -> Tensor:
        """uint8 [N, 3, H, W] -> float32 [N, *shape]."""
        ...


@dataclass(frozen=True)
class Pixels:
    """[-1, 1]; a one-channel network gets the mean of the three colours."""

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


def check_finite(network: nn.Module) -> None:
    """Raises ValueError for NaN and infinity among the weights, which would spread to every feature behind them."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            raise ValueError(
                f"tensor={name!r} of the {type(network).__name__} holds NaN or infinity; its file is damaged or its "
                "training has diverged: give other weights"
            )


def first_map(output: Any) -> Tensor:
    """The map of a block that returns it, or it before others."""
    return output if isinstance(output, Tensor) else output[0]


def token_grid(output: Any) -> Tensor:
    """Tokens [N, S * S, C], row by row -> [N, C, S, S]."""
    tokens = first_map(output)
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def resize(pixels: Tensor, size: int) -> Tensor:
    """[N, C, H, W] -> [N, C, size, size], bilinear with antialiasing; as it is where it has that size."""
    if pixels.shape[-2:] == (size, size):
        return pixels
    return functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)


@dataclass
class Backbone:
    """A frozen denoiser that applies its own preconditioning."""

    network: nn.Module
    places: tuple[Place, ...]
    schedule: Schedule
    encoder: Encoder
    inputs: Callable[[Tensor, int], dict[str, Any]]
    """(x_t, native timestep) -> the keyword arguments of the network, scaled and conditioned as it was trained."""
    fingerprint: str
    """Hash of weights, configuration and settings."""
    settings: Settings = Settings()
    to_map: ToMap = first_map
    """What a block's module returns -> [N, C, S, S]."""

    def __post_init__(self) -> None:
        """Finds blocks (tuple[Block, ...], in the order the data meets them) and flops (of one full forward pass of one
        image)."""
        memory_format = torch.channels_last if self.settings.channels_last else torch.preserve_format
        self.network.to(device=self.settings.device, memory_format=memory_format)  # type: ignore[call-overload]
        self.network.eval().requires_grad_(False)
        self.modules = {place.name: self.network.get_submodule(place.module) for place in self.places}
        self.blocks, self.flops = self._trace()
        self.modules = {block.name: self.modules[block.name] for block in self.blocks}

    @property
    def image_size(self) -> int:
        return self.encoder.image_size

    def sigma(self, timestep: int) -> float:
        """Noise-to-signal ratio at a native timestep."""
        return self.schedule.sigma(timestep)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> x0, float32 on the network's device."""
        return self.encoder(images.to(self.settings.device))

    @torch.inference_mode()
    def activations(
        self,
        x0: Tensor,
        noise: Tensor,
        timestep: int,
        blocks: Sequence[str],
        reduce: Reduce = lambda map: map,
    ) -> dict[str, Tensor]:
        """reduce([N, C, S, S]) of every named block, in one forward pass that stops after the deepest of them.

        reduce is applied as each map appears, so that full maps need not be held together.
        """
        missing = [name for name in blocks if name not in self.modules]
        if missing:
            raise ValueError(f"block={missing[0]!r} is not in this backbone; it has: {', '.join(self.modules)}")
        return self.capture(self.noised(x0, noise, timestep), timestep, blocks, reduce)

    def capture(self, x_t: Tensor, timestep: int, blocks: Sequence[str], reduce: Reduce) -> dict[str, Tensor]:
        """activations() of images that are noised already; with gradients, where they are enabled."""
        inputs = self.inputs(x_t, timestep)
        wanted = tuple(name for name in self.modules if name in blocks)
        device, dtype = x_t.device.type, getattr(torch, self.settings.precision)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            if self.settings.compile:
                return self._compiled(wanted, inputs, reduce)
            return self._until_deepest(wanted, inputs, reduce)

    def noised(self, x0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        x_t = self.schedule.diffuse(x0, noise.to(x0.device), timestep)
        return x_t.contiguous(memory_format=torch.channels_last) if self.settings.channels_last else x_t

    def _until_deepest(self, wanted: tuple[str, ...], inputs: dict[str, Any], reduce: Reduce) -> dict[str, Tensor]:
        captured: dict[str, Tensor] = {}

        def keep(name: str, output: object) -> None:
            captured[name] = reduce(self.to_map(output))
            if name == wanted[-1]:
                raise _DeepestReached

        with self._hooked(wanted, keep), suppress(_DeepestReached):
            self.network(**inputs)
        return captured

    @cached_property
    def _compiled(self) -> Callable[[tuple[str, ...], dict[str, Any], Reduce], dict[str, Tensor]]:
        """The same with torch.compile, which drops what no returned map depends on, and so ends at the deepest block.
        The hooks only set outputs aside; names and reduce, on which a compiled graph depends, are arguments that guard
        it."""
        aside: dict[str, Any] = {}

        def run(wanted: tuple[str, ...], inputs: dict[str, Any], reduce: Reduce) -> dict[str, Tensor]:
            self.network(**inputs)
            return {name: reduce(self.to_map(aside[name])) for name in wanted}

        compiled = torch.compile(run)

        def call(wanted: tuple[str, ...], inputs: dict[str, Any], reduce: Reduce) -> dict[str, Tensor]:
            with self._hooked(wanted, aside.__setitem__):
                captured = compiled(wanted, inputs, reduce)
            aside.clear()
            return captured

        return call

    @contextmanager
    def _hooked(self, names: Iterable[str], keep: Callable[[str, Any], None]) -> Iterator[None]:
        """keep(name, output) of every named block that runs."""

        def hook_of(name: str) -> Callable:
            def hook(module: nn.Module, inputs: tuple, output: object) -> None:
                keep(name, output)

            return hook

        hooks = [self.modules[name].register_forward_hook(hook_of(name)) for name in names]
        try:
            yield
        finally:
            for handle in hooks:
                handle.remove()

    @torch.no_grad()
    def _trace(self) -> tuple[tuple[Block, ...], int]:
        """Shapes and floating-point operations, from a pass of one image on the meta device: no arithmetic is done."""
        seen: dict[str, tuple[Tensor, int]] = {}
        timestep = self.schedule.timesteps[0]
        x = torch.zeros(1, *self.encoder.shape, device=self.settings.device)
        inputs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), self.inputs(x, timestep))
        state = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        state = {name: tensor.to("meta") for name, tensor in state.items()}

        def keep(name: str, output: object) -> None:
            seen.setdefault(name, (self.to_map(output), counter.get_total_flops()))

        with FlopCounterMode(display=False) as counter, self._hooked(self.modules, keep):
            functional_call(self.network, state, (), inputs)
        total = counter.get_total_flops()
        places = {place.name: place for place in self.places}
        blocks = [
            Block(name, place.index, place.stage, map.shape[1], map.shape[-1], flops / total, place.module, place.alias)
            for name, (map, flops) in seen.items()
            for place in [places[name]]
        ]
        return tuple(blocks), total


class _DeepestReached(Exception):
    """Ends a forward pass whose remaining blocks nobody asked for."""
