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
    return float(alignments(first, second, _once(first)))


def uniformity(features: Tensor) -> float:
    """log E exp(-2 ||x_i - x_j||^2) over all pairs i < j of one noise draw, on the sphere (DDAE paper, equation 4; Wang
    & Isola 2020).

    -8 to 0, lower is better. Pure noise is uniform as well. It takes all pairs, since the logarithm of a mean over
    batches is biased by their size; tiles of 256 rows bound the memory.
    """
    return float(uniformities(features, _once(features)))


def contrast(first: Tensor, second: Tensor) -> float:
    """Log-probability of finding an image's other draw among those of all images by a softmax of cosines at temperature
    0.5, averaged over both directions. It is minus the contrastive loss (InfoNCE, van den Oord et al. 2018), which
    splits into alignment and uniformity (Wang & Isola 2020).

    -log N - 4 to 0 nats, higher is better; chance is -log N. Degenerate as t -> 0, unless one draw has more noise.
    """
    return float(contrasts(first, second, _once(first)))


def alignments(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """The alignment under each of several weightings of the images. weights: [B, N], how often an image is counted in
    each. Returns [B]; the features are standardised once, over all images alike."""
    x, y = on_sphere(torch.cat([first, second])).split(len(first))
    squared = (x - y).square().sum(1)
    return weights.to(squared) @ squared / weights.sum(1)


def uniformities(features: Tensor, weights: Tensor) -> Tensor:
    """The uniformity under each of several weightings, as alignments has them; no image is paired with itself, however
    often it is counted."""
    x = on_sphere(features)
    weights, norms = weights.to(x), x.square().sum(1)  # 1, or 0 where nothing varies
    total = torch.zeros(len(weights), dtype=torch.float64, device=x.device)
    for tile in _tiles(x):
        squared = (norms[tile, None] + norms - 2 * x[tile] @ x.T).clamp(min=0)
        alike = _without_itself((-2 * squared).exp(), tile)
        total += (weights[:, tile] * (weights @ alike.T)).sum(1)
    return (total / (weights.sum(1).square() - weights.square().sum(1)).clamp(min=1)).log()


def contrasts(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """The contrast under each of several weightings, as alignments has them; an image stands among the others as often
    as it is counted, but once among its own."""
    x, y = on_sphere(first), on_sphere(second)
    weights, right = weights.to(x), (x * y).sum(1) / 0.5
    found = torch.zeros(len(weights), dtype=x.dtype, device=x.device)
    for tile in _tiles(x):
        for a, b in ((x, y), (y, x)):
            others = _without_itself((a[tile] @ b.T / 0.5).exp(), tile)
            chances = right[tile] - (right[tile].exp() + weights @ others.T).log()
            found += (weights[:, tile] * chances).sum(1)
    return found / weights.sum(1) / 2


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


def matrix_entropy(features: Tensor) -> float:
    """Entropy of the spectrum of the images' Gram matrix, as a share of the most that it can be (dataset entropy, Skean
    et al. 2025, section 3; von Neumann entropy). 0 to 1; features are on the sphere first."""
    most = math.log(min(features.shape))
    return float(spectral_entropy(on_sphere(features).double())) / most if most else 0.0


def spectral_entropy(rows: Tensor) -> Tensor:
    """-sum p log p, p the eigenvalues of the Gram matrix of rows [..., N, D] as shares of their sum: [...], 0 to
    log min(N, D) nats."""
    rows = rows if rows.shape[-2] <= rows.shape[-1] else rows.mT
    values = torch.linalg.eigvalsh(rows @ rows.mT).clamp(min=0)
    shares = values / values.sum(-1, keepdim=True).clamp(min=1e-300)
    return -(shares * shares.clamp(min=1e-300).log()).sum(-1)


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


def _tiles(x: Tensor) -> list[slice]:
    return [slice(start, start + TILE) for start in range(0, len(x), TILE)]


def _without_itself(alike: Tensor, tile: slice) -> Tensor:
    """The similarities of a tile's rows with all, 0 for each row's own."""
    rows = torch.arange(len(alike), device=alike.device)
    alike[rows, tile.start + rows] = 0
    return alike


def _once(features: Tensor) -> Tensor:
    return features.new_ones(1, len(features))
