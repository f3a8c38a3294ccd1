"""Linear CKA, which measures how similar two features are."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def cka(batches: Iterable[Sequence[Tensor]]) -> Tensor:
    """Linear CKA between all pairs of M features, from minibatches of the same images (Nguyen, Raghu & Kornblith 2021,
    equation 2): mean HSIC(X, Y) / sqrt(mean HSIC(X, X) mean HSIC(Y, Y)), the means over batches.

    Each batch holds the M features of its images, [n, D] with a D of their own. Returns float64 [M, M] with a diagonal
    of 1. Independent features are near 0, and may be a little below because each HSIC is unbiased; rotation and scale
    change nothing. One batch of all images is the full estimate, to which minibatches converge as there are more of
    them. A feature that is the same for all images gets NaN.
    """
    total = torch.stack([hsic(batch) for batch in batches]).mean(0)
    scale = total.diagonal().sqrt()
    return total / scale / scale[:, None]


def hsic(features: Sequence[Tensor]) -> Tensor:
    """Unbiased HSIC under the linear kernel between all pairs of M features (Song et al. 2012, equation 5; Nguyen,
    Raghu & Kornblith 2021, equation 3).

    features: M tensors [n, D] of the same n images, 4 or more. Returns float64 [M, M] of either sign, 0 in expectation
    for independent features. Raises ValueError for fewer images.
    """
    n = len(features[0])
    if n < 4:
        raise ValueError(f"unbiased HSIC of {n} images is not defined; give 4 or more")
    grams = torch.stack([centred_gram(x).flatten() for x in features])
    return grams @ grams.T / (n * (n - 3))


def centred_gram(x: Tensor) -> Tensor:
    """U-centre X X^T without its diagonal (Székely & Rizzo 2014, equation 2.1): float64 [n, n]. The inner product of
    two of them, divided by n (n - 3), is Song's estimator with its three terms."""
    n = len(x)
    x = x.double()
    x = x - x.mean(0)  # changes nothing but rounding
    gram = (x @ x.T).fill_diagonal_(0)
    means = gram.sum(1) / (n - 2)
    return (gram - means - means[:, None] + means.sum() / (n - 1)).fill_diagonal_(0)
