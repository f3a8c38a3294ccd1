"""Fit a head on a frozen feature and score it on val; which cells can be told from the best."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddae.heads import StackedHead, find_head


@dataclass(frozen=True, order=True)
class Candidate:
    """One cell of the search."""

    block: str
    timestep: int
    pooling: int
    head: str

    @property
    def name(self) -> str:
        return f"{self.block}/{self.timestep}/{self.pooling}/{self.head}"


@dataclass(frozen=True)
class ProbeResult:
    """A candidate fitted on num_images training images."""

    candidate: Candidate
    num_images: int
    val_accuracy: float
    stderr: float
    """Binomial standard error of val_accuracy."""
    setting: str
    """The head's setting (learning rate or penalty) that was best on val."""
    correct: np.ndarray
    """bool [num_val]: which val images it gets right, for paired comparisons."""
    fit_seconds: float
    ended_seconds: float
    """Since the epoch."""


def fit_probe(
    candidate: Candidate, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], num_classes: int, seed: int
) -> tuple[StackedHead, ProbeResult]:
    """Fit every setting of the candidate's head on train and keep the one best on val.

    train, val: (features float32 [N, C, g, g], labels int64 [N]).
    """
    started = time.perf_counter()
    family, sizes = find_head(candidate.head)
    head = family.fit(*train, num_classes, seed, *sizes)
    correct = (head(val[0]).argmax(-1) == val[1]).cpu().numpy()
    accuracies = correct.mean(1)
    best = int(accuracies.argmax())
    accuracy = float(accuracies[best])
    result = ProbeResult(
        candidate,
        len(train[1]),
        accuracy,
        standard_error(accuracy, correct.shape[1]),
        head.settings[best],
        correct[best],
        time.perf_counter() - started,
        time.time(),
    )
    return head, result


def standard_error(accuracy: float, num_images: int) -> float:
    """Binomial standard error of an accuracy."""
    return (accuracy * (1 - accuracy) / num_images) ** 0.5


def tied_with_best(correct: np.ndarray, level: float = 0.95, num_resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """Which of M probes cannot be told from the best of them on the same val images: bool [M].

    correct: bool [M, N]. Paired bootstrap over the images (Efron & Tibshirani 1993, chapter 8): a probe is tied
    where the `level` quantile interval of (best - probe) reaches down to 0.
    """
    best = correct[correct.mean(1).argmax()]
    deficit = best.astype(np.float32) - correct.astype(np.float32)
    num_images = correct.shape[1]
    rng, equal = np.random.default_rng(seed), np.full(num_images, 1 / num_images)
    at_once = max(1, 2**23 // num_images)
    sums = [
        rng.multinomial(num_images, equal, min(at_once, num_resamples - start)).astype(np.float32) @ deficit.T
        for start in range(0, num_resamples, at_once)
    ]
    return np.quantile(np.concatenate(sums), (1 - level) / 2, axis=0) <= 0


def to_maps(views: list[np.ndarray], channels: int, device: str | torch.device = "cpu") -> Tensor:
    """Float16 [n, C * g * g] views of the store's shards -> float32 [N, C, g, g], in one copy."""
    width = views[0].shape[1]
    grid = round((width / channels) ** 0.5)
    maps = torch.empty(sum(map(len, views)), channels, grid, grid, device=device)
    start = 0
    for view in views:
        maps[start : start + len(view)].view(len(view), width).copy_(_as_tensor(view))
        start += len(view)
    return maps


def _as_tensor(view: np.ndarray) -> Tensor:
    """Shares memory with a read-only array; nothing here writes to it."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(view)
