"""Scores that judge a feature with no labels, or a few, and the ranking they give.

A score is a pure function and a line in SCORES or LABELLED. Features are [N, D], as the network gives them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddae.label_free.agreement import Trust, spearman, trust
from ddae.label_free.labelled import h_score, logme, ridge
from ddae.label_free.unlabelled import alignment, alpha_req, cluster_learnability, contrast, icr, rankme, uniformity

__all__ = ["CONSENSUS", "LABELLED", "SCORES", "VERSION", "Score", "Trust", "measure", "rank", "spearman", "trust"]

VERSION = 1
"""Raise it when a score gives another value for the same features: stored scores carry it in their key."""
MIN_IMAGES = 4
"""Fewer images have neither two clusters nor a spectrum."""


@dataclass(frozen=True)
class Score:
    """A score, what it is computed from, and which values are good."""

    of: Callable[..., float]
    best: float
    """inf if higher is better, -inf if lower is, else the value it should be near."""
    num_draws: int = 1
    """Noise draws of the same images that `of` takes; in LABELLED one, then the labels and the number of classes."""
    noisier: bool = False
    """Whether the second draw is taken at the next noisier timestep."""

    def __call__(self, features: Tensor, *more: Tensor | int) -> float:
        if len(features) < MIN_IMAGES:
            raise ValueError(f"{len(features)} images are too few for a score; give {MIN_IMAGES} or more")
        return self.of(features, *more)

    def merit(self, values: np.ndarray) -> np.ndarray:
        """Turn values of this score into numbers of which the higher is better."""
        return math.copysign(1, self.best) * values if math.isinf(self.best) else -abs(values - self.best)


SCORES: dict[str, Score] = {
    "alignment": Score(alignment, best=-math.inf, num_draws=2),
    "uniformity": Score(uniformity, best=-math.inf),
    "contrast": Score(contrast, best=math.inf, num_draws=2, noisier=True),
    "icr": Score(icr, best=-math.inf, num_draws=2),
    "cluster_learnability": Score(cluster_learnability, best=math.inf),
    "rankme": Score(rankme, best=math.inf),
    "alpha_req": Score(alpha_req, best=1.0),
}
LABELLED: dict[str, Score] = {
    "logme": Score(logme, best=math.inf),
    "h_score": Score(h_score, best=math.inf),
    "ridge": Score(ridge, best=math.inf),
}
CONSENSUS = ("alignment", "uniformity", "contrast", "ridge")
"""The scores that the ranking sums; those of LABELLED only count if labels were given."""


def measure(
    first: Tensor, second: Tensor, noisier: Tensor, labels: Tensor | None = None, num_classes: int = 0
) -> dict[str, float]:
    """Compute every score of SCORES from two noise draws of the same images, and given labels those of LABELLED too. A
    score that takes one draw is averaged over both.

    noisier: the second draw at the next noisier timestep, or at this one if it is the last.
    labels: int64, for the first len(labels) images.
    """
    scores = {
        name: score(first, noisier if score.noisier else second)
        if score.num_draws == 2
        else (score(first) + score(second)) / 2
        for name, score in SCORES.items()
    }
    if labels is not None:
        few = first[: len(labels)], second[: len(labels)]
        for name, score in LABELLED.items():
            scores[name] = sum(score(features, labels, num_classes) for features in few) / 2
    return scores


def rank(scores: Sequence[Mapping[str, float]], members: Sequence[str] = CONSENSUS) -> Tensor:
    """Give every cell one number, float64 [cells], higher is better: the sum of the members' merits, each standardised
    over the cells so that none decides alone. Members that were not measured are left out. The paper finds the best
    layers where alignment and uniformity are both low."""
    measured = [name for name in members if name in scores[0]]
    every = {**SCORES, **LABELLED}
    merits = np.array([every[name].merit(np.array([cell[name] for cell in scores])) for name in measured])
    deviation = merits.std(1, keepdims=True)
    return torch.from_numpy(((merits - merits.mean(1, keepdims=True)) / deviation.clip(1e-12)).sum(0))
