"""How well a ranking agrees with accuracies."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trust:
    """How far a ranking of (block, timestep) cells can be trusted."""

    spearman: float
    """Rank correlation with the accuracy over all cells; 0 if either is constant."""
    spearman_within_timestep: float
    """Rank correlation over the blocks at one timestep, averaged over timesteps."""
    regret: float
    """Points of accuracy that its first choice loses to the best cell."""
    top_k_regret: float
    """Points of accuracy that the best of its first k choices loses to the best cell."""
    top_k_hit: float
    """Share of its first k that are among the k most accurate."""


def trust(ranking: np.ndarray, accuracy: np.ndarray, k: int = 5) -> Trust:
    """Compare a ranking, higher is better, with accuracies in [0, 1]; both [blocks, timesteps]. A cell that is NaN in
    one of them is left out. Raises ValueError if no cell is left."""
    known = np.isfinite(ranking) & np.isfinite(accuracy)
    if not known.any():
        raise ValueError("no cell has both a score and an accuracy; give two tables that share a cell without NaN")
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
    """Rank correlation of two tables of the same shape, without the cells that are NaN in one; 0 if one is constant."""
    from scipy.stats import spearmanr

    known = np.isfinite(a) & np.isfinite(b)
    if np.ptp(a[known]) == 0 or np.ptp(b[known]) == 0:
        return 0.0
    return float(spearmanr(a[known], b[known]).statistic)
