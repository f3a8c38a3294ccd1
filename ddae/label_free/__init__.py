"""Scores that judge a feature with no labels, or a few, and the ranking they give.

A score is a pure function and a line in SCORES or LABELLED. Features are [N, D], as the network gives them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from ddae.label_free.agreement import Trust, spearman, trust
from ddae.label_free.confidence import Confidence, confidence
from ddae.label_free.labelled import h_score, logme, ridge, ridges
from ddae.label_free.maps import curvature, high_frequencies, prompt_entropy
from ddae.label_free.pairs import both_ways, lidar, neighbours_kept, next_blocks, turns_known
from ddae.label_free.unlabelled import (
    alignment,
    alignments,
    alpha_req,
    cluster_learnability,
    contrast,
    contrasts,
    icr,
    matrix_entropy,
    rankme,
    uniformities,
    uniformity,
)

__all__ = [
    "CONSENSUS",
    "LABELLED",
    "SCORES",
    "VERSION",
    "Confidence",
    "Features",
    "Score",
    "Trust",
    "confidence",
    "draw_images",
    "measure",
    "rank",
    "resample",
    "spearman",
    "standardised_sum",
    "trust",
]

VERSION = 1
"""Raise it when a score gives another value for the same features: stored scores carry it in their key."""
MIN_IMAGES = 4
"""Fewer images have neither two clusters nor a spectrum."""


@dataclass(frozen=True)
class Features:
    """What is known of one site, all of the same images: [N, D] where nothing else is said, each map's mean a channel.
    What no score reads that is asked for may be left out."""

    first: Tensor
    second: Tensor
    """Another noise draw."""
    noisier: Tensor | None = None
    """The second draw at the next noisier timestep, or at this one if it is the last."""
    cleaner: Tensor | None = None
    """The second draw at the next cleaner timestep, or `noisier` if this is the first."""
    maps: Tensor | None = None
    """The first draw's maps as they are stored, [N, C, g, g]."""
    neighbours: Sequence[Tensor] = ()
    """The first draw of the blocks before and after, each with a D of its own."""
    turned: Tensor | None = None
    """The first draw of the images turned by quarter turns."""
    turns: Tensor | None = None
    """By how many, int64 [N]."""

    def of_images(self, rows: Tensor | np.ndarray) -> "Features":
        """The same of these images alone."""
        known = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "neighbours"}
        few = {name: each[rows] for name, each in known.items() if each is not None}
        return replace(self, **few, neighbours=tuple(each[rows] for each in self.neighbours))

    def read(self, names: tuple[str, ...]) -> list[tuple[Tensor, ...]]:
        """What a score that reads these is computed of, once for each draw where it reads `each`."""
        if names == EACH:
            return [(self.first,), (self.second,)]
        return [tuple(getattr(self, name) for name in names)]


EACH = ("each",)
"""What a score reads that judges one draw; the mean of both is its value."""


@dataclass(frozen=True)
class Score:
    """A score, what it is computed from, and which values are good."""

    of: Callable[..., float]
    best: float
    """inf if higher is better, -inf if lower is, else the value it should be near."""
    reads: tuple[str, ...] = EACH
    """Fields of Features, in the order that `of` takes them; then, in LABELLED, labels and the number of classes."""
    resampled: Callable[..., Tensor] | None = None
    """The same under several weightings of the images, [B, N], its last argument: [B]."""

    def __call__(self, features: Tensor, *more: Tensor | int) -> float:
        if len(features) < MIN_IMAGES:
            raise ValueError(f"{len(features)} images are too few for a score; give {MIN_IMAGES} or more")
        return self.of(features, *more)

    def merit(self, values: np.ndarray) -> np.ndarray:
        """Turn values of this score into numbers of which the higher is better."""
        return math.copysign(1, self.best) * values if math.isinf(self.best) else -abs(values - self.best)


SCORES: dict[str, Score] = {
    "alignment": Score(alignment, best=-math.inf, reads=("first", "second"), resampled=alignments),
    "uniformity": Score(uniformity, best=-math.inf, resampled=uniformities),
    "contrast": Score(contrast, best=math.inf, reads=("first", "noisier"), resampled=contrasts),
    "icr": Score(icr, best=-math.inf, reads=("first", "second")),
    "cluster_learnability": Score(cluster_learnability, best=math.inf),
    "rankme": Score(rankme, best=math.inf),
    "alpha_req": Score(alpha_req, best=1.0),
    "lidar": Score(lidar, best=math.inf, reads=("first", "second")),
    "both_ways": Score(both_ways, best=math.inf, reads=("first", "noisier", "cleaner")),
    "neighbours_kept": Score(neighbours_kept, best=math.inf, reads=("first", "noisier")),
    "next_blocks": Score(next_blocks, best=math.inf, reads=("first", "neighbours")),
    "turns_known": Score(turns_known, best=math.inf, reads=("turned", "turns")),
    "high_frequencies": Score(high_frequencies, best=math.inf, reads=("maps",)),
    "curvature": Score(curvature, best=-math.inf, reads=("maps",)),
    "prompt_entropy": Score(prompt_entropy, best=math.inf, reads=("maps",)),
    "matrix_entropy": Score(matrix_entropy, best=math.inf),
}
LABELLED: dict[str, Score] = {
    "logme": Score(logme, best=math.inf),
    "h_score": Score(h_score, best=math.inf),
    "ridge": Score(ridge, best=math.inf, resampled=ridges),
}
CONSENSUS = ("alignment", "uniformity", "contrast", "ridge")
"""The scores that the ranking sums; those of LABELLED only count if labels were given."""


def measure(
    features: Features,
    names: Iterable[str] = CONSENSUS,
    labels: Tensor | None = None,
    num_classes: int = 0,
) -> dict[str, float]:
    """Compute the scores of these names; those of LABELLED only if labels are given.

    labels: int64, for the first len(labels) images.
    """
    scores = {}
    for name in names:
        score, read, more = inputs(features, name, labels, num_classes)
        if read:
            scores[name] = sum(score(*given, *more) for given in read) / len(read)
    return scores


def resample(
    features: Features,
    weights: Tensor,
    names: Iterable[str] = CONSENSUS,
    labels: Tensor | None = None,
    num_classes: int = 0,
) -> dict[str, np.ndarray]:
    """What measure() computes, under several weightings of the images, float64 [B] a score; those of the names alone
    that know how. weights: [B, N], how often each image is counted."""
    scores = {}
    for name in names:
        score, read, more = inputs(features, name, labels, num_classes)
        if read and score.resampled:
            counted = weights[:, : len(read[0][0])]
            found = [score.resampled(*given, *more, counted) for given in read]
            scores[name] = torch.stack(found).double().mean(0).cpu().numpy()
    return scores


def inputs(
    features: Features, name: str, labels: Tensor | None, num_classes: int
) -> tuple[Score, list[tuple[Tensor, ...]], tuple]:
    """(score, what it is computed of, once for each draw that it judges, what it takes beside that)."""
    if name in SCORES:
        return SCORES[name], features.read(SCORES[name].reads), ()
    few: list[tuple[Tensor, ...]] = []
    if labels is not None:
        few = [(draw[: len(labels)],) for draw in (features.first, features.second)]
    return LABELLED[name], few, (labels, num_classes)


def draw_images(num_images: int, num_resamples: int, seed: int = 0) -> Tensor:
    """How often each image is drawn in each of several resamples with replacement (bootstrap, Efron 1979): float32
    [1 + num_resamples, N]. The first counts each once."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=num_resamples)
    return torch.cat([torch.ones(1, num_images), torch.from_numpy(counts).float()])


def rank(scores: Sequence[Mapping[str, float]], members: Sequence[str] = CONSENSUS) -> Tensor:
    """Give every cell one number, float64 [cells], higher is better: standardised_sum of the members' scores."""
    return torch.from_numpy(
        standardised_sum({name: np.array([cell[name] for cell in scores]) for name in scores[0]}, members)
    )


def standardised_sum(scores: Mapping[str, np.ndarray], members: Sequence[str] = CONSENSUS) -> np.ndarray:
    """The sum of the members' merits, each standardised over the cells, the last dimension of scores [..., cells], so
    that none decides alone. Members that were not measured are left out. The paper finds the best layers where
    alignment and uniformity are both low."""
    every = {**SCORES, **LABELLED}
    merits = np.array([every[name].merit(scores[name]) for name in members if name in scores])
    deviation = merits.std(-1, keepdims=True)
    return ((merits - merits.mean(-1, keepdims=True)) / deviation.clip(1e-12)).sum(0)
