"""How far a ranking depends on the images that it saw."""

from dataclasses import dataclass

import numpy as np

MIDDLE = 0.9
"""Share of the resamples that an interval holds."""


@dataclass(frozen=True)
class Confidence:
    """What a ranking does when its images are resampled; arrays have the shape of the cells."""

    num_resamples: int
    ranks_first: np.ndarray
    """Share of the resamples in which a cell ranks first."""
    best_rank: np.ndarray
    """The rank that a cell has at best in the middle 90 % of the resamples; 1 is first."""
    worst_rank: np.ndarray
    """The rank that it has at worst in these."""


def confidence(rankings: np.ndarray) -> Confidence:
    """Compare rankings of resampled images, higher is better: [resamples, *cells]. Equals keep their order."""
    cells = rankings.reshape(len(rankings), -1)
    ranks = np.argsort(np.argsort(-cells, axis=1, kind="stable"), axis=1) + 1
    tail = (1 - MIDDLE) / 2
    best, worst = (np.quantile(ranks, at, axis=0, method="nearest") for at in (tail, 1 - tail))
    tables = ((ranks == 1).mean(0), best, worst)
    return Confidence(len(rankings), *(table.reshape(rankings.shape[1:]) for table in tables))
