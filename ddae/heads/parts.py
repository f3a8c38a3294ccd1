"""Features of several blocks, or timesteps, side by side."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ddae.scaling import Standardise
from ddae.streaming import Features, Streamed


class Joined(Streamed):
    """Streamed maps [N, C_i, g, g] of the same images, read together as one [N, sum of C_i, g, g]."""

    def __init__(self, streams: Sequence[Streamed]):
        self.streams = list(streams)
        first = self.streams[0]
        self.device, self.dtype = first.device, first.dtype
        self.rows_at_once = max(1, min(each.rows_at_once for each in self.streams) // len(self.streams))
        for each in self.streams:  # whose order of rows depends on it
            each.rows_at_once = self.rows_at_once
        self.shape = torch.Size((len(first), sum(each.shape[1] for each in self.streams), *first.shape[2:]))

    def __len__(self) -> int:
        return self.shape[0]

    def between(self, start: int, stop: int) -> "Joined":
        return Joined([each.between(start, stop) for each in self.streams])

    def blocks(self) -> Iterator[Tensor]:
        for maps in zip(*(each.blocks() for each in self.streams), strict=True):
            yield torch.cat(maps, 1)

    def shuffled(self, batch_size: int, rng: torch.Generator, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All streams in the order that rng decides for one."""
        alike = [rng.clone_state() for _ in self.streams]
        each = zip(
            *(stream.shuffled(batch_size, own, skip) for stream, own in zip(self.streams, alike, strict=True)),
            strict=True,
        )
        for batch in each:
            rng.set_state(alike[0].get_state())
            yield batch[0][0], torch.cat([maps for _, maps in batch], 1)


def joined(parts: Sequence[Features]) -> Features:
    """Maps [N, C_i, g, g], all held or all streamed, side by side."""
    if len(parts) == 1:
        return parts[0]
    held = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(held, 1) if held else Joined([part for part in parts if isinstance(part, Streamed)])


def split(features: Features, channels: Sequence[int]) -> list[Features]:
    """The maps [N, C_i, g, g] of each block in [N, sum of C_i, g, g]. channels: C_i."""
    if isinstance(features, Tensor):
        return list(features.split(list(channels), 1))
    return list(features.streams) if isinstance(features, Joined) else [features]


class Balanced(Standardise):
    """Standardises every number, and divides it by the root of how many its block has, so that a wide block counts no
    more than a narrow one; on average as Standardise alone."""

    def __init__(self, features: Features, channels: Sequence[int]):
        super().__init__(features)
        widths = torch.tensor(channels, dtype=self.scale.dtype, device=self.scale.device)
        weights = (widths.mean() / widths).sqrt()
        repeats = torch.tensor(channels, device=widths.device)
        self.scale = self.scale * weights.repeat_interleave(repeats)[:, None, None]
