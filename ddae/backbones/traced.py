"""Gives a network, for any noised images, what its pipeline gave it in a trace."""

import hashlib
import logging
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ddae.backbones.pipelines import BASE, Recording, Tracer, digit, shape_of, striped

logger = logging.getLogger("ddae")

Call = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """What the network is given for each image: a row of a batch, or an item of a list."""

    value: Any
    axis: int | None = None
    """That of the batch; None if the value is an item of a list."""

    def batch(self, num_images: int, device: torch.device) -> Any:
        value = self.value.to(device) if isinstance(self.value, Tensor) else self.value
        if self.axis is None:
            return [value] * num_images
        return torch.stack([value] * num_images, self.axis)


@dataclass(frozen=True)
class Sample:
    """Where the network takes noised images, and in which order."""

    index: Tensor
    """The element of x_t [C, H, W] for each element of the argument, int64; -1 where the pipeline gives `rest`."""
    rest: Tensor
    listed: bool

    def batch(self, x_t: Tensor) -> Any:
        index, rest = self.index.to(x_t.device), self.rest.to(x_t.device)
        num_images = len(x_t)
        if torch.equal(self.index.flatten(), torch.arange(x_t[0].numel())):
            filled = x_t.reshape(num_images, *index.shape)
        else:
            filled = x_t.flatten(1)[:, index.clamp(min=0).flatten()].reshape(num_images, *index.shape)
            filled = torch.where(index < 0, rest.expand_as(filled), filled)
        return list(filled) if self.listed else filled


@dataclass(frozen=True)
class Packing:
    """How latents lie in what the VAE decodes: decoded = shift + scale * latents[index], element by element."""

    index: Tensor
    shift: Tensor
    scale: Tensor


class PipelineInputs:
    """The inputs of a network as its pipeline makes them, traced once for each timestep."""

    def __init__(self, tracer: Tracer, timestep: float):
        """Traces the pipeline at one timestep to learn what does not depend on it.

        Raises ValueError if the pipeline does anything to noised images but arranging them."""
        self.tracer = tracer
        zero, one, *digits = (tracer.run(timestep, f) for f in (torch.zeros_like, torch.ones_like, digit(0), digit(1)))
        other = tracer.run(timestep, other=True)
        twice = tracer.run_twice(timestep)
        self.latents = zero.latents
        self.call, self.row, self.num_rows = null_row(zero, one, other, twice)
        self.twice = twice.calls[self.call] if twice else None
        self.packing = packing(zero, one, digits) if zero.decoded is not None else None
        self.samples: dict[int, Sample] = {}
        self.shows_image = False
        """Whether the network is given the image itself, in three channels behind the noised one."""
        leaves = [self._leaves(recording)[0] for recording in (zero, one, *digits)]
        others = self._leaves(other)[0]
        for i, (off, on, low, high) in enumerate(zip(*leaves, strict=True)):
            if isinstance(off, Row) and isinstance(off.value, Tensor) and not torch.equal(off.value, on.value):
                index = self._order(number(off.value, on.value, low.value, high.value))
                self.samples[i] = self._with_rest(index, off, others[i].value)
        self.traced: dict[int, tuple[list[Any], Any]] = {}

    def _order(self, number: Tensor) -> Tensor:
        """From numbers of the pipeline's latents to those of x_t, which lie as the VAE has them; -1 stays."""
        if self.packing is None:
            return number
        order = torch.empty_like(self.packing.index.flatten())
        order[self.packing.index.flatten()] = torch.arange(len(order))
        return torch.where(number < 0, -1, order[number.clamp(min=0)])

    def _with_rest(self, index: Tensor, off: Row, other: Tensor) -> Sample:
        """Fills what the network is given beside the latents: as the pipeline does if it is the same for all images,
        the image itself if it is that, and zeros if it is anything else, such as a map of depths."""
        rest, beside = off.value, index < 0
        if not beside.any():
            return Sample(index, rest, off.axis is None)
        if index.ndim == 2 and beside.all(1).any():
            raise ValueError("it gives text and image to its network in one sequence")
        given = "what its pipeline gives without a condition"
        num_places = len(index) if index.ndim == 2 else index[0].numel()
        if not torch.equal(rest[beside], other[beside]):
            given_to = self.tracer.arguments
            image: PIL.Image.Image | None = given_to.get("image") or given_to.get("control_image")
            if image is None:
                raise ValueError("what it gives its network beside the noised image depends on the prompt")
            seen = [(rest[beside], image), (other[beside], striped(image.size))]
            self.shows_image = all(is_image(values, pixels) for values, pixels in seen)
            given, rest = ("the image itself" if self.shows_image else "zeros"), torch.zeros_like(rest)
            if not self.shows_image and int(beside.sum()) > num_places:
                raise ValueError("it gives its network an image to follow, and has nothing to give in place of one")
            if self.shows_image:
                index[beside] = index.max() + 1 + torch.arange(int(beside.sum()))
        logger.warning(
            "a %s takes %d channels beside the noised image; they get %s",
            type(self.tracer.network).__name__, int(beside.sum()) // num_places, given,
        )  # fmt: skip
        return Sample(index, rest, off.axis is None)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of x_t."""
        shape = self.latents.shape if self.packing is None else self.packing.index.shape
        side = shape[-1]
        return shape[1:].numel() // (shape[-2] * side), shape[-2], side

    def grid(self, network: Any) -> int:
        """How many patches the side of a map has, for a network whose blocks return tokens."""
        sample = next(iter(self.samples.values())).index
        if sample.ndim == 2:  # patches come in as tokens
            return math.isqrt(len(sample))
        sizes = network.config.get("patch_size") or network.config.get("all_patch_size") or 1
        side = max(one for one, other in pairwise(sample.shape) if one == other)
        return side // (sizes if isinstance(sizes, int) else sizes[-1])

    @property
    def fingerprint(self) -> str:
        """sha256 over the shapes of what the network is given; the values follow from the folder's files."""
        leaves = self._leaves(self.tracer.run(1))[0]
        shapes = [shape_of(leaf.value if isinstance(leaf, Row) else leaf) for leaf in leaves]
        return hashlib.sha256(repr(shapes).encode()).hexdigest()

    def __call__(self, x_t: Tensor, timestep: int) -> dict[str, Any]:
        if timestep not in self.traced:
            self.traced[timestep] = self._leaves(self.tracer.run(timestep))
        leaves, spec = self.traced[timestep]
        if (scale := self.tracer.told(timestep)[1]) != 1:
            x_t = scale * x_t
        given = [
            self.samples[i].batch(x_t)
            if i in self.samples
            else leaf.batch(len(x_t), x_t.device)
            if isinstance(leaf, Row)
            else leaf.to(x_t.device)
            if isinstance(leaf, Tensor)
            else leaf
            for i, leaf in enumerate(leaves)
        ]
        return tree_unflatten(given, spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PipelineInputs":
        """The same: copies of a network are given what the network is given."""
        return self

    def _leaves(self, recording: Recording) -> tuple[list[Any], Any]:
        given = pick(recording.calls[self.call], self.twice, self.row, self.num_rows)
        return tree_flatten(given, is_leaf=lambda leaf: isinstance(leaf, Row))


def is_image(values: Tensor, image: PIL.Image.Image) -> bool:
    """Whether these are the pixels of an image, scaled to [-1, 1], with little noise."""
    pixels = torch.from_numpy(np.asarray(image) / 127.5 - 1).permute(2, 0, 1).flatten()
    return values.numel() == pixels.numel() and torch.allclose(values.double(), pixels, atol=0.1)


def null_row(zero: Recording, one: Recording, other: Recording, twice: Recording | None) -> tuple[int, int, int]:
    """(call, row, rows in this call) that the pipeline runs without a condition: the one that depends neither on the
    prompt nor on an image where there is guidance, and otherwise that of the empty prompt."""
    rows = [
        (call, row, num_rows)
        for call, (off, on) in enumerate(zip(zero.calls, one.calls, strict=True))
        for num_rows in [count_rows(off, on)]
        for row in range(num_rows)
    ]
    if not rows:
        raise ValueError("it does not give noised images to its network")

    def given(run: Recording, place: tuple[int, int, int]) -> Any:
        call, row, num_rows = place
        return pick(run.calls[call], twice.calls[call] if twice else None, row, num_rows)

    for place in rows:
        if same(given(zero, place), given(other, place)):
            return place
    if all(same(given(zero, place), given(zero, rows[0])) for place in rows):
        return rows[0]
    raise ValueError("it guides its samples, and all that it gives to its network depends on the prompt or the image")


def count_rows(off: Call, on: Call) -> int:
    """How many rows of latents a call has, by the argument in which two calls differ; 0 if there is none."""
    for name, value in off.items():
        if isinstance(value, list) and not same(value, on[name]):
            return len(value)
        if isinstance(value, Tensor) and not torch.equal(value, on[name]):
            return len(value)
    return 0


def pick(value: Any, twice: Any, row: int, num_rows: int) -> Any:
    """What belongs to one row of a batch, each such part as a Row; all else as it is. twice: the same argument in a run
    with two images for one, which shows what grows with the batch; without one, all whose first axis has num_rows."""
    if isinstance(value, Tensor):
        axes = [axis for axis, length in enumerate(value.shape) if length == num_rows]
        axes = [axis for axis in axes if (twice.shape[axis] == 2 * num_rows if twice is not None else axis == 0)]
        return Row(value.select(axes[0], row), axes[0]) if axes else value
    if isinstance(value, list) and len(value) == num_rows and (twice is None or len(twice) == 2 * num_rows):
        return Row(value[row])
    if isinstance(value, dict):
        return {name: pick(item, twice and twice[name], row, num_rows) for name, item in value.items()}
    if isinstance(value, list | tuple):
        others = [None] * len(value) if twice is None else twice
        return type(value)(pick(item, other, row, num_rows) for item, other in zip(value, others, strict=True))
    return value


def same(one: Any, other: Any) -> bool:
    """Whether two arguments are equal in structure and in every value."""
    (ours, spec), (theirs, other_spec) = (
        tree_flatten(argument, is_leaf=lambda leaf: isinstance(leaf, Row)) for argument in (one, other)
    )
    if spec != other_spec:
        return False
    pairs = zip(ours, theirs, strict=True)
    return all(equal(*(leaf.value if isinstance(leaf, Row) else leaf for leaf in pair)) for pair in pairs)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.ndim != other.ndim:
            return False
        common = [min(pair) for pair in zip(one.shape, other.shape, strict=True)]  # texts are padded to the longest
        left, right = [slice(0, length) for length in common], [slice(-length, None) for length in common]
        return any(torch.equal(one[tuple(part)], other[tuple(part)]) for part in (left, right))
    return bool(one == other)


def number(off: Tensor, on: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The number of the latent at each place of an argument, from what runs with zeros, with ones and with the digits
    of the numbers gave there; -1 where there is no latent. Raises ValueError if latents were scaled."""
    scale = on - off
    taken = scale.abs() > 1e-6
    if not torch.allclose(scale[taken], torch.ones(())):
        raise ValueError(f"it multiplies noised images by {scale[taken][0]:.4g} beside its scheduler's noise")
    low, high = ((value - off).round().long() for value in (low, high))
    return torch.where(taken, high * BASE + low, -1)


def packing(zero: Recording, one: Recording, digits: list[Recording]) -> Packing:
    """Raises ValueError if the VAE is not given every latent once."""
    off, on, low, high = (recording.decoded for recording in (zero, one, *digits))
    assert off is not None and on is not None and low is not None and high is not None
    scale = on - off
    ones = torch.ones_like(scale)
    index = number(torch.zeros_like(ones), ones, (low - off) / scale, (high - off) / scale)
    if sorted(index.flatten().tolist()) != list(range(zero.latents.numel())):
        raise ValueError("it does not only arrange, scale and shift its latents before it decodes them")
    return Packing(index, off, scale)
