"""Scores that need no label. Features are [N, D], as the network gives them."""

import math
import warnings

import torch
from torch import Tensor

from ddae.ridge import principal_axes
from ddae.scaling import Standardise, unit_rows

TILE = 256
NUM_CLUSTERINGS = 10
FIRST_RANK, LAST_RANK = 5, 100
"""Which eigenvalues alpha-ReQ fits its line through: those before stand above it, those after are noise."""


def alignment(first: Tensor, second: Tensor) -> float:
    """E ||x - y||^2 over two noise draws of the same images, on the sphere (DDAE paper, equation 3; Wang & Isola 2020).

    0 to 4, lower is better. Degenerate as t -> 0, where the two draws become equal.
    """
    x, y = on_sphere(torch.cat([first, second])).split(len(first))
    return float((x - y).square().sum(1).mean())


def uniformity(features: Tensor) -> float:
    """log E exp(-2 ||x_i - x_j||^2) over all pairs i < j of one noise draw, on the sphere (DDAE paper, equation 4; Wang
    & Isola 2020).

    -8 to 0, lower is better. Pure noise is uniform as well. It takes all pairs, since the logarithm of a mean over
    batches is biased by their size; tiles of 256 rows bound the memory.
    """
    x, total = on_sphere(features), 0.0
    norms = x.square().sum(1)  # 1, or 0 where nothing varies
    for start in range(0, len(x), TILE):
        tile = slice(start, start + TILE)
        squared = (norms[tile, None] + norms[start:] - 2 * x[tile] @ x[start:].T).clamp(min=0)
        total += float((-2 * squared).exp().double().triu(diagonal=1).sum())
    return math.log(total / (len(x) * (len(x) - 1) / 2))


def contrast(first: Tensor, second: Tensor) -> float:
    """Log-probability of finding an image's other draw among those of all images by a softmax of cosines at temperature
    0.5, averaged over both directions. It is minus the contrastive loss (InfoNCE, van den Oord et al. 2018), which
    splits into alignment and uniformity (Wang & Isola 2020).

    -log N - 4 to 0 nats, higher is better; chance is -log N. Degenerate as t -> 0, unless one draw has more noise.
    """
    logits = on_sphere(first) @ on_sphere(second).T / 0.5
    return float((logits.log_softmax(0).diag() + logits.log_softmax(1).diag()).mean() / 2)


def icr(first: Tensor, second: Tensor) -> float:
    """Invariant contamination ratio, 1 / (1 + mean lambda), where S v = lambda R v, S is the covariance of each image's
    mean over noise draws and R that of the residuals (Li et al. 2026, arXiv 2606.09718).

    0 to 1, lower is better; pure noise has 2/3 with two draws, because their mean keeps half of R. R is shrunk
    (Ledoit & Wolf 2004), and dimensions are standardised first. Degenerate as t -> 0, where R vanishes.
    """
    both = torch.cat([first, second]).double()
    x, y = Standardise(both)(both).split(len(first))
    means = (x + y) / 2
    means, residuals = means - means.mean(0), (x - y) / 2**0.5
    _, axes, variances = principal_axes(residuals - residuals.mean(0), least=1e-12)
    shrinkage = ledoit_wolf(residuals)
    ground = shrinkage * variances.sum() / x.shape[1] + 1e-9
    along = (means @ axes).square().mean(0)
    beyond = (means.square().sum() / len(means) - along.sum()).clamp(min=0)
    ratios = (along / ((1 - shrinkage) * variances + ground)).sum() + beyond / ground
    return float(1 / (1 + ratios / x.shape[1]))


def cluster_learnability(features: Tensor) -> float:
    """How well an image's nearest neighbour predicts its cluster: k-means into sqrt(N) clusters, then 1-NN on their
    numbers, on the sphere (Lu et al. 2023, 'Using representation expressiveness and learnability ...').

    0 to 1, higher is better. Each image is predicted from all others, and ten clusterings are averaged, where the paper
    takes one and splits the images in halves; both make it steadier on few images.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    x = on_sphere(features)
    nearest = torch.cat([_nearest_others(x, start) for start in range(0, len(x), TILE)]).cpu().numpy()
    points, right = x.cpu().numpy(), 0.0
    # One thread finds the same clusters on any machine; duplicate rows need no warning.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(NUM_CLUSTERINGS):
            clusters = KMeans(round(len(x) ** 0.5), n_init=1, random_state=seed).fit_predict(points)
            right += float((clusters[nearest] == clusters).mean())
    return right / NUM_CLUSTERINGS


def rankme(features: Tensor) -> float:
    """Effective rank: exp of the entropy of the singular values, as shares of their sum (Garrido et al. 2023).

    1 to min(N, D), higher is better. Noise in the features raises it.
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp(min=1e-300) + 1e-7
    return float((-shares * shares.log()).sum().exp())


def alpha_req(features: Tensor) -> float:
    """Decay of the covariance's spectrum: alpha, if the i-th eigenvalue falls as i^-alpha (Agrawal et al. 2022).

    0 (white noise) and more, best near 1. A least-squares line in the logarithms, from the 5th eigenvalue to the
    100th or to half of them, whichever comes first; through all of them if that leaves fewer than five.
    """
    features = features.double()
    variances = torch.linalg.svdvals(features - features.mean(0)).square()[: len(features) - 1]
    last = min(LAST_RANK, len(variances) // 2)
    window = slice(FIRST_RANK - 1, last) if last - FIRST_RANK >= 4 else slice(None)
    floor = variances.max() * 1e-12 + 1e-300
    x = torch.arange(1, len(variances) + 1, dtype=torch.float64, device=variances.device).log()[window]
    y = variances.clamp(min=floor).log()[window]
    x = x - x.mean()
    return float(-(x @ y) / x.square().sum().clamp(min=1e-12))


def on_sphere(features: Tensor) -> Tensor:
    """Standardise the dimensions, then L2-normalise each row. Without the first step a few dimensions of large variance
    decide every distance."""
    return unit_rows(Standardise(features)(features))


def ledoit_wolf(features: Tensor) -> float:
    """Share of the identity by which the sample covariance is best shrunk, 0 to 1 (Ledoit & Wolf 2004)."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    return float(ledoit_wolf_shrinkage(features.cpu().numpy()))


def _nearest_others(x: Tensor, start: int) -> Tensor:
    """Find the most similar other row for each row of a tile: int64 [tile]."""
    similar = x[start : start + TILE] @ x.T
    rows = torch.arange(len(similar), device=x.device)
    similar[rows, start + rows] = -torch.inf
    return similar.argmax(1)
