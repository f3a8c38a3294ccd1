"""What a ranking is worth, measured against accuracies."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trust:
    """How far a ranking of (block, timestep) cells can be trusted."""

    spearman: float
    """Rank correlation with the accuracy over all cells; 0 where either table is constant."""
    spearman_within_timestep: float
    """Over the blocks at one timestep, the mean over timesteps."""
    regret: float
    """Points of accuracy lost by its first choice against the best cell."""
    top_k_regret: float
    """The same by the best of its first k."""
    top_k_hit: float
    """Share of its first k that are among the k most accurate."""


def trust(ranking: np.ndarray, accuracy: np.ndarray, k: int = 5) -> Trust:
    """Of a score, higher is better, against accuracies in [0, 1]; both [blocks, timesteps]. A cell that is NaN in one
    of them is left out. Raises ValueError where no cell is left."""
    known = np.isfinite(ranking) & np.isfinite(accuracy)
    if not known.any():
        raise ValueError("no cell has both a score and an accuracy")
    columns = [spearman(ranking[at, t], accuracy[at, t]) for t, at in enumerate(known.T) if at.sum() > 1]
    scores, right = ranking[known], accuracy[known]
    first, best = (np.argsort(-values, kind="stable")[:k] for values in (scores, right))
    lost = 100 * (right.max() - right[first])
    return Trust(
        spearman(scores, right),
        float(np.mean(columns)) if columns else 0.0,
        regret=float(lost[0]),
        top_k_regret=float(lost.min()),
        top_k_hit=len(set(first) & set(best)) / len(first),
    )


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two tables of the same shape; 0 where one is constant."""
    from scipy.stats import spearmanr

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a.ravel(), b.ravel()).statistic)
