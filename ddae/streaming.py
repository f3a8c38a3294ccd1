"""Features that are larger than the memory a fit may have: they stay where they are, and are read block by block."""

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ddae.pooling import pool

BLOCK_BYTES = 2**26
"""What a block takes as float32 maps, where the memory is not less than BLOCKS_IN_MEMORY of them."""
BLOCKS_IN_MEMORY = 16
"""A block is at most such a part of the memory: besides it there are its float16 rows, those that are read ahead, the
standardised ones and the class scores."""
HELD_BLOCK_BYTES = 2**24
"""What a block takes, at most, of features that are only copied as they are read."""
NUM_RUNS = 16
"""How many runs of rows, from all over the features, are shuffled together in one block."""

T = TypeVar("T")
U = TypeVar("U")


class Streamed:
    """Maps [N, C, g, g] that are read from float16 rows as a fit asks for them, as float32.

    parts: float16 [n, C * S * S] each, views of memory-mapped shards, or tensors on the device. pooling: g.
    memory_bytes: what the fit may have.
    """

    def __init__(
        self,
        parts: Sequence[np.ndarray | Tensor],
        channels: int,
        pooling: int,
        device: str | torch.device = "cpu",
        memory_bytes: int = BLOCK_BYTES * BLOCKS_IN_MEMORY,
    ):
        self.parts, self.device, self.dtype = list(parts), torch.device(device), torch.float32
        self.width = self.parts[0].shape[1]
        self.side = round((self.width / channels) ** 0.5)
        self.stops = np.cumsum([len(part) for part in self.parts])
        self.shape = torch.Size((int(self.stops[-1]), channels, pooling, pooling))
        self.rows_at_once = max(1, block_bytes(memory_bytes) // (4 * self.width))

    def __len__(self) -> int:
        return self.shape[0]

    def between(self, start: int, stop: int) -> "Streamed":
        """The rows [start, stop) alone, as many at once as of all."""
        ends = zip(self.parts, self.stops, strict=True)
        parts = [part[max(0, start - end + len(part)) : max(0, stop - end + len(part))] for part, end in ends]
        one = copy.copy(self)
        one.parts = [part for part in parts if len(part)]
        one.stops = np.cumsum([len(part) for part in one.parts])
        one.shape = torch.Size((int(one.stops[-1]), *self.shape[1:]))
        return one

    def blocks(self) -> Iterator[Tensor]:
        """All maps in order, [n, C, g, g] each."""
        spans = [(start, min(start + self.rows_at_once, len(self))) for start in range(0, len(self), self.rows_at_once)]
        for rows in read_ahead(lambda span: self._rows([span]), spans):
            yield self._maps(rows)

    def shuffled(self, batch_size: int, rng: torch.Generator, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
        """What shuffled() gives. Runs of rows are shuffled, and the rows of NUM_RUNS of them among each other."""
        length = max(1, self.rows_at_once // NUM_RUNS)
        order = torch.randperm(-(-len(self) // length), generator=rng) * length
        blocks, place, first = [], 0, skip * batch_size
        for starts in order.split(min(NUM_RUNS, self.rows_at_once)):
            spans = [(int(start), min(int(start) + length, len(self))) for start in starts]
            numbers = torch.cat([torch.arange(*span) for span in spans])
            mixed = torch.randperm(len(numbers), generator=rng)[max(0, first - place) :]
            place += len(numbers)
            if len(mixed):
                blocks.append((spans, numbers, mixed))
        left: tuple[Tensor, Tensor] | None = None
        for (_, numbers, mixed), rows in zip(blocks, read_ahead(lambda each: self._rows(each[0]), blocks), strict=True):
            numbers, maps = numbers[mixed], self._maps(rows)[mixed.to(self.device)]
            if left is not None:
                numbers, maps = torch.cat([left[0], numbers]), torch.cat([left[1], maps])
            whole = len(numbers) // batch_size * batch_size
            for start in range(0, whole, batch_size):
                yield numbers[start : start + batch_size], maps[start : start + batch_size]
            left = numbers[whole:], maps[whole:]

    def _rows(self, spans: Sequence[tuple[int, int]]) -> Tensor:
        """A copy of these rows, [start, stop) each, one after the other."""
        found = []
        for start, stop in spans:
            number = int(np.searchsorted(self.stops, start, "right"))
            while start < stop:
                part, end = self.parts[number], int(self.stops[number])
                found.append(as_tensor(part[start - end + len(part) : stop - end + len(part)]))
                start, number = end, number + 1
        return torch.cat(found)

    def _maps(self, rows: Tensor) -> Tensor:
        maps = rows.to(self.device).to(self.dtype).view(len(rows), self.shape[1], self.side, self.side)
        return pool(maps, self.shape[-1])


Features = Tensor | Streamed
"""Maps [N, C, g, g]: held, or streamed."""


def between(features: Features, start: int, stop: int) -> Features:
    """The rows [start, stop) alone; all of them are the features themselves."""
    if (start, stop) == (0, len(features)):
        return features
    return features[start:stop] if isinstance(features, Tensor) else features.between(start, stop)


def blocks(features: Features, rows_at_once: int | None = None) -> Iterator[tuple[slice, Tensor]]:
    """(which rows, their maps [n, C, g, g]) of all features in order; held ones are one block. rows_at_once: n at
    most."""
    start = 0
    for block in [features] if isinstance(features, Tensor) else features.blocks():
        for maps in block.split(rows_at_once or len(block)):
            yield slice(start, start + len(maps)), maps
            start += len(maps)


def shuffled(
    features: Features, batch_size: int, rng: torch.Generator, skip: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """(numbers of rows [batch_size], their maps) in the order of one epoch, which rng decides, without a last, smaller
    batch. skip: how many batches are left out at its beginning."""
    if not isinstance(features, Tensor):
        yield from features.shuffled(batch_size, rng, skip)
        return
    order = torch.randperm(len(features), generator=rng)
    for start in range(skip * batch_size, len(features) - batch_size + 1, batch_size):
        rows = order[start : start + batch_size]
        yield rows, features[rows.to(features.device)]


def std_mean(features: Features, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Standard deviation (of the whole, not the sample) and mean over the dims, the first of them included, which are
    kept with length 1. Blocks are merged in double precision (Chan et al. 1979)."""
    if isinstance(features, Tensor):
        return torch.std_mean(features, dim=dims, correction=0, keepdim=True)
    mean = squares = torch.zeros((), dtype=torch.float64, device=features.device)
    for rows, maps in blocks(features):
        variance, block_mean = torch.var_mean(maps, dim=dims, correction=0, keepdim=True)
        apart, share = block_mean.double() - mean, len(maps) / rows.stop
        squares = squares + len(maps) * variance.double() + apart**2 * rows.start * share
        mean = mean + apart * share
    return (squares / len(features)).sqrt().to(features.dtype), mean.to(features.dtype)


def block_bytes(memory_bytes: int) -> int:
    """What a block takes of the memory that a fit may have, as float32."""
    return min(BLOCK_BYTES, memory_bytes // BLOCKS_IN_MEMORY)


def stream_bytes(memory_bytes: int) -> int:
    """What the blocks of a streamed fit take together: as they are read, standardised, and read ahead."""
    return BLOCKS_IN_MEMORY // 2 * block_bytes(memory_bytes)


def hold(
    parts: Sequence[np.ndarray | Tensor],
    channels: int,
    device: str | torch.device,
    into: Mapping[int, Tensor],
    memory_bytes: int,
) -> None:
    """Copy float16 rows [n, C * S * S] into maps [N, C, p, p] at each pooling p, from one read.

    memory_bytes: what the fit may have, of which reading takes hold_bytes(memory_bytes).
    """
    side = round((parts[0].shape[1] / channels) ** 0.5)
    limit = min(memory_bytes, BLOCKS_IN_MEMORY * HELD_BLOCK_BYTES)
    for rows, maps in blocks(Streamed(parts, channels, side, device, limit)):
        for pooling, held in into.items():
            held[rows] = pool(maps, pooling)


def hold_bytes(memory_bytes: int) -> int:
    """What blocks of features take together while they are copied: as they are read, pooled, and read ahead."""
    return 4 * min(HELD_BLOCK_BYTES, block_bytes(memory_bytes))


def on_device(
    parts: Sequence[np.ndarray | Tensor], device: str | torch.device, most_bytes: int
) -> Sequence[np.ndarray | Tensor]:
    """The rows on a GPU, once for all poolings, if they take no more there; else where they are."""
    if device == "cpu" or sum(part.nbytes for part in parts) > most_bytes:
        return parts
    return [torch.cat([as_tensor(part).to(device) for part in parts])]


def num_features(features: Features) -> int:
    """Numbers an image."""
    return math.prod(features.shape[1:])


def as_tensor(view: np.ndarray | Tensor) -> Tensor:
    """A tensor that shares memory with a read-only array; nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.as_tensor(view)


def read_ahead(read: Callable[[T], U], places: Iterable[T]) -> Iterator[U]:
    """What read() gives for each place, the next one being read while the caller works on this one."""
    with ThreadPoolExecutor(1) as thread:
        coming = None
        for place in places:
            due, coming = coming, thread.submit(read, place)
            if due is not None:
                yield due.result()
        if coming is not None:
            yield coming.result()
