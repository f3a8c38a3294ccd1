"""Scores that compare a feature with another of the same images, and need no label: another noise draw, timestep, view
or block. Features are [N, D], as the network gives them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddae.label_free.unlabelled import contrast, on_sphere
from ddae.ridge import leave_one_out, principal_axes
from ddae.scaling import Standardise
from ddae.similarity import cka

RIDGE = 1e-4
"""What LiDAR adds to the variance within an image, as its paper does."""
NUM_NEIGHBOURS = 10


def lidar(first: Tensor, second: Tensor) -> float:
    """Effective rank of the images against the noise: exp of the entropy of the eigenvalues of
    W^-1/2 B W^-1/2, B the covariance of each image's mean over its noise draws, W = the covariance within an image +
    RIDGE (LiDAR, Thilak et al. 2024, arXiv 2312.04000, equations 1 to 4, with 50 draws).

    1 to min(N - 1, D), higher is better. Dimensions are standardised first. Degenerate as t -> 0, where W is RIDGE.
    """
    both = torch.cat([first, second]).double()
    x, y = Standardise(both)(both).split(len(first))
    means, residuals = (x + y) / 2, (x - y) / 2
    means = means - means.mean(0)
    _, axes, variances = principal_axes(residuals, least=1e-12)
    along = means @ axes
    beyond = means - along @ axes.T
    whitened = torch.cat([along / (variances + RIDGE).sqrt(), beyond / RIDGE**0.5], 1)
    values = torch.linalg.svdvals(whitened).square()
    shares = values / values.sum().clamp(min=1e-300) + 1e-7
    return float((-shares * shares.log()).sum().exp())


def both_ways(first: Tensor, noisier: Tensor, cleaner: Tensor) -> float:
    """Mean of the contrast with the other draw at the next noisier and at the next cleaner timestep (InfoNCE, van den
    Oord et al. 2018, equation 4). -log N - 4 to 0 nats, higher is better."""
    return (contrast(first, noisier) + contrast(first, cleaner)) / 2


def neighbours_kept(first: Tensor, noisier: Tensor) -> float:
    """Share of an image's ten nearest neighbours that are the same under the other noise draw at the next noisier
    timestep, on the sphere (mutual k-NN alignment, Huh et al. 2024, arXiv 2405.07987, equation 11, there between two
    networks). 0 to 1, higher is better; chance is 10 / (N - 1)."""
    k = min(NUM_NEIGHBOURS, len(first) - 1)
    graphs = []
    for features in (first, noisier):
        x = on_sphere(features)
        nearest = (x @ x.T).fill_diagonal_(-torch.inf).topk(k).indices
        graphs.append(torch.zeros(len(x), len(x), device=x.device).scatter_(1, nearest, 1))
    return float((graphs[0] * graphs[1]).sum()) / (k * len(first))


def next_blocks(first: Tensor, neighbours: Sequence[Tensor]) -> float:
    """Mean linear CKA with the blocks before and after, of the same noise draw (Kornblith et al. 2019, equation 3,
    debiased). At most 1, higher is more alike; 0 where a feature does not vary."""
    alike = [cka([(Standardise(first)(first), Standardise(other)(other))])[0, 1] for other in neighbours]
    return float(torch.stack(alike).nan_to_num(0).mean()) if alike else 0.0


def turns_known(turned: Tensor, turns: Tensor) -> float:
    """Accuracy of ridge regression, with one image left out at a time, in telling by how many quarter turns each image
    was turned (RotNet, Gidaris et al. 2018, as the score of Reed et al. 2021, 'SelfAugment', section 3). 0 to 1, higher
    is better; chance is 1/4. turns: int64 [N], 0 to 3."""
    return float(leave_one_out(turned, turns, 4).mean())
