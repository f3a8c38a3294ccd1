"""Train and score a NoisyHead on features of images at a grid of noise levels, read from the store block by block."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import AdamW

from ddae.heads.kept import Kept
from ddae.noisy_classifier import NoisyHead
from ddae.streaming import Streamed, shuffled, std_mean

VERSION = 1
"""Raise it when the same training would give other numbers."""
BATCH_SIZE, NUM_EPOCHS, MIN_STEPS = 256, 3, 300
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.05
"""The rate is that of a head on 256 numbers; it falls with the root of their count, so that few steps train narrow
heads to convergence and wide ones do not overshoot."""
SLICE_ROWS = 32
"""Rows of one level that stay together where an epoch's rows are laid out."""


@dataclass(frozen=True)
class Columns:
    """Stored features of the same images at each noise level, and of each in several noise draws."""

    parts: Sequence[Sequence[Sequence[np.ndarray]]]
    """[levels][draws][shards], float16 [n, C * S * S] each; the shards of a draw have num_images rows together."""
    channels: int
    pooling: int
    device: str
    memory_bytes: int
    """What reading may take."""

    def streamed(self, parts: Sequence[np.ndarray]) -> Streamed:
        return Streamed(parts, self.channels, self.pooling, self.device, self.memory_bytes)

    def level(self, number: int) -> list[np.ndarray]:
        """All rows of a level, a draw after the other."""
        return [shard for draw in self.parts[number] for shard in draw]

    @property
    def num_rows(self) -> int:
        """Rows of a level, of all draws."""
        return sum(map(len, self.level(0)))


def statistics(columns: Columns) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every feature at each level, [L, d]."""
    found = [std_mean(columns.streamed(columns.level(level)), (0,)) for level in range(len(columns.parts))]
    deviation, mean = (torch.cat(each).flatten(1) for each in zip(*found, strict=True))
    return mean, deviation


def fit(
    columns: Columns,
    labels: Tensor,
    levels: Sequence[float],
    shares: np.ndarray,
    num_classes: int,
    width: int = 2,
    embedding: bool = False,
    standardise: bool = True,
    seed: int = 0,
    kept: Kept | None = None,
) -> NoisyHead:
    """Minimise the cross-entropy over images and noise levels.

    labels: int64 [num_images]. levels: log sigmas, growing. shares: how often each is trained on, 1 in all.
    standardise: by each level's own mean and deviation, or not at all.
    """
    d = columns.channels * columns.pooling**2
    mean, deviation = statistics(columns) if standardise else (torch.zeros(1, d), torch.ones(1, d))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        head = NoisyHead(torch.tensor(levels), mean.cpu(), deviation.cpu(), num_classes, width, embedding)
    head, kept = head.to(columns.device), kept or Kept()
    rate = LEARNING_RATE * (256 / d) ** 0.5
    optimizer = AdamW(head.parameters(), rate, weight_decay=WEIGHT_DECAY, fused=True)
    num_rows = columns.num_rows * len(levels)
    batch_size = min(BATCH_SIZE, num_rows)
    per_epoch, last = num_rows // batch_size, num_steps(num_rows)
    step, labels, log_sigmas = 0, labels.to(columns.device), head.levels
    if found := kept.load():
        head.load_state_dict(found["head"])
        optimizer.load_state_dict(found["optimizer"])
        step = found["step"]
    while step < last:
        epoch, skip = divmod(step, per_epoch)
        rows_of, level_of, image_of = lay_out(columns, shares, len(labels), epoch)
        order = torch.Generator().manual_seed(seed + epoch * 1_000_003)
        for rows, maps in shuffled(columns.streamed(rows_of), batch_size, order, skip):
            scores = head(maps.flatten(1), log_sigmas[level_of[rows].to(columns.device)])
            loss = functional.cross_entropy(scores, labels[image_of[rows].to(columns.device)])
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 + math.cos(math.pi * step / last)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            kept.save(
                lambda: {"head": head.state_dict(), "optimizer": optimizer.state_dict(), "step": step}  # noqa: B023
            )
    kept.done()
    return head.eval().requires_grad_(False)


def num_steps(num_rows: int) -> int:
    """Steps of a training on so many rows, of all levels and draws."""
    per_epoch = num_rows // min(BATCH_SIZE, num_rows)
    return per_epoch * max(NUM_EPOCHS, math.ceil(MIN_STEPS / per_epoch))


def step_seconds(num_features: int, width: int, num_classes: int, num_levels: int) -> float:
    """How long a step takes on the CPU, from some on random features, after one to warm up."""
    levels, mean = torch.arange(float(num_levels)), torch.zeros(num_levels, num_features)
    head = NoisyHead(levels, mean, mean + 1, num_classes, width, embedding=True)
    optimizer, features = AdamW(head.parameters(), LEARNING_RATE, fused=True), torch.randn(BATCH_SIZE, num_features)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        optimizer.zero_grad()
        head(features, levels[torch.arange(BATCH_SIZE) % num_levels]).logsumexp(1).mean().backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    return sum(seconds[1:]) / 3


def lay_out(
    columns: Columns, shares: np.ndarray, num_images: int, epoch: int
) -> tuple[list[np.ndarray], Tensor, Tensor]:
    """The rows of an epoch, as many as all columns have, each level as often as its share says, and spread evenly:
    views of the stored rows, the level of each, and its image, int64 [rows]. From epoch to epoch a level goes on where
    it stopped."""
    num_rows = columns.num_rows
    slices: list[tuple[float, int, int, int]] = []
    for level, count in enumerate(counts_of(shares, num_rows * len(columns.parts))):
        first = epoch * count + level * num_images // len(columns.parts)
        for done in range(0, count, SLICE_ROWS):
            start = (first + done) % num_rows
            stop = min(start + min(SLICE_ROWS, count - done), num_rows)
            slices.append((done / count, level, start, stop))
            if (left := min(SLICE_ROWS, count - done) - (stop - start)) > 0:  # beyond the end it begins again
                slices.append((done / count, level, 0, left))
    parts, levels, images = [], [], []
    for _, level, start, stop in sorted(slices):
        parts += sliced(columns.level(level), start, stop)
        levels.append(np.full(stop - start, level))
        images.append(np.arange(start, stop) % num_images)
    return parts, torch.from_numpy(np.concatenate(levels)), torch.from_numpy(np.concatenate(images))


def counts_of(shares: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in proportion to the shares, total in all."""
    return np.diff(np.round(np.cumsum([0, *shares]) / np.sum(shares) * total).astype(int))


def sliced(shards: Sequence[np.ndarray], start: int, stop: int) -> list[np.ndarray]:
    """Rows [start, stop) of shards that follow each other."""
    found, first = [], 0
    for shard in shards:
        low, high = max(start - first, 0), min(stop - first, len(shard))
        if low < high:
            found.append(shard[low:high])
        first += len(shard)
    return found


@torch.inference_mode()
def score(head: NoisyHead, columns: Columns, labels: Tensor, levels: Sequence[float]) -> np.ndarray:
    """Which images are classified correctly at each level, bool [L, num_images]; of one draw."""
    found = []
    for number, level in enumerate(levels):
        maps = columns.streamed(columns.level(number)).blocks()
        scores = [head(each.flatten(1), each.new_full((len(each),), level)).argmax(1) for each in maps]
        found.append((torch.cat(scores) == labels.to(columns.device)).cpu().numpy())
    return np.stack(found)
