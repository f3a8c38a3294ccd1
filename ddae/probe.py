"""Fit a head on a frozen feature and score it on val; say which probes are statistically tied with the best."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddae.heads import Kept, Recipe, StackedHead, find_head, fit_by
from ddae.heads.linear import SCORES_AT_ONCE
from ddae.streaming import Features, as_tensor, blocks

CLEARLY = 2.0
"""A probe is clearly worse than another where the paired difference is so many of its standard errors."""


@dataclass(frozen=True)
class Fitted:
    """A head in all its settings, and the setting that is best on val."""

    head: StackedHead
    number: int
    """Which of the head's settings."""
    correct: np.ndarray
    """bool [num_val]: which val images it gets right."""
    predicted: np.ndarray
    """int [num_val]: their classes as it has them."""

    @property
    def setting(self) -> str:
        """Learning rate or penalty."""
        return self.head.settings[self.number]


def fit_probe(
    name: str,
    train: tuple[Features, Tensor],
    val: tuple[Features, Tensor],
    num_classes: int,
    seed: int,
    weights: np.ndarray | None = None,
    kept: Kept | None = None,
    channels: Sequence[int] = (),
    recipe: Recipe | None = None,
) -> Fitted:
    """Fit every setting of a head on train and choose the one that is best on val.

    name, channels: as find_head takes them. train, val: (features float32 [N, C, g, g], labels int64 [N]), on one
    device. weights: [num_val], how much each val image counts; all alike if None. kept: where a fit that takes long
    keeps its state. recipe: by which the head is trained instead of its own.
    """
    if recipe:
        head = fit_by(recipe, name, *train, num_classes, seed, kept)
    else:
        family, sizes = find_head(name, channels)
        head = family.fit(*train, num_classes, seed, *sizes, kept=kept)
    predicted = classify(head, val[0], num_classes)
    correct = (predicted == val[1]).cpu().numpy()
    best = int((correct if weights is None else correct * weights).mean(1).argmax())
    return Fitted(head, best, correct[best], predicted[best].cpu().numpy())


@torch.inference_mode()
def classify(head: StackedHead, features: Features, num_classes: int) -> Tensor:
    """The classes that every setting of a head chooses, int64 [S, N]; of so many rows at a time that their scores stay
    small."""
    rows_at_once = max(1, SCORES_AT_ONCE // (len(head.settings) * num_classes))
    return torch.cat([head(maps).argmax(-1) for _, maps in blocks(features, rows_at_once)], 1)


def standard_error(accuracy: float, num_images: int) -> float:
    """Binomial standard error of an accuracy."""
    return (accuracy * (1 - accuracy) / num_images) ** 0.5


def class_weights(labels: np.ndarray) -> np.ndarray:
    """float [N]: what makes the mean over images the mean over classes, so that accuracy is balanced accuracy."""
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return len(labels) / len(counts) / counts[index]


def balanced_accuracy(correct: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The mean of the accuracies of the classes, and its standard error. correct: bool [N]."""
    accuracies = [correct[labels == label] for label in np.unique(labels)]
    errors = [standard_error(float(each.mean()), len(each)) for each in accuracies]
    return float(np.mean([each.mean() for each in accuracies])), float(np.linalg.norm(errors) / len(errors))


def measured(correct: np.ndarray, labels: np.ndarray, measure: str) -> tuple[float, float]:
    """(accuracy or balanced accuracy, as `measure` says; its standard error). correct: bool [N]."""
    if measure == "balanced accuracy":
        return balanced_accuracy(correct, labels)
    accuracy = float(correct.mean())
    return accuracy, standard_error(accuracy, len(correct))


def paired_loss(correct: np.ndarray, best: np.ndarray) -> tuple[float, float]:
    """(points of accuracy lost, their standard error) by one probe against another on the same images. [N] each."""
    deficit = best.astype(float) - correct.astype(float)
    return float(100 * deficit.mean()), float(100 * deficit.std() / len(deficit) ** 0.5)


def clearly_worse(correct: np.ndarray, best: np.ndarray) -> bool:
    lost, stderr = paired_loss(correct, best)
    return lost > CLEARLY * stderr


def tied_with_best(
    correct: np.ndarray,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Which of M probes are statistically tied with the best of them on the same val images: bool [M].

    correct: bool [M, N]. weights: [N], how much each image counts; all alike if None. Paired bootstrap over the images
    (Efron & Tibshirani 1993, chapter 8): a probe is tied where the `level` quantile interval of (best - probe) reaches
    down to 0.
    """
    counted = correct if weights is None else correct * weights
    best = counted[counted.mean(1).argmax()]
    deficit = best.astype(np.float32) - counted.astype(np.float32)
    num_images = correct.shape[1]
    rng, equal = np.random.default_rng(seed), np.full(num_images, 1 / num_images)
    at_once = max(1, 2**23 // num_images)
    sums = [
        rng.multinomial(num_images, equal, min(at_once, num_resamples - start)).astype(np.float32) @ deficit.T
        for start in range(0, num_resamples, at_once)
    ]
    return np.quantile(np.concatenate(sums), (1 - level) / 2, axis=0) <= 0


def to_maps(views: list[np.ndarray], channels: int, device: str | torch.device = "cpu") -> Tensor:
    """Copy float16 [n, C * g * g] views of the store's shards into one float32 [N, C, g, g], once."""
    width = views[0].shape[1]
    grid = round((width / channels) ** 0.5)
    maps = torch.empty(sum(map(len, views)), channels, grid, grid, device=device)
    start = 0
    for view in views:
        maps[start : start + len(view)].view(len(view), width).copy_(as_tensor(view))
        start += len(view)
    return maps
