"""How alike two features are: linear CKA."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def cka(batches: Iterable[Sequence[Tensor]]) -> Tensor:
    """Linear CKA of every two of M features, from minibatches of the same images (Nguyen, Raghu & Kornblith 2021,
    equation 2): mean HSIC(X, Y) / sqrt(mean HSIC(X, X) mean HSIC(Y, Y)), the means over batches.

    batches: of each the M features, [n, D] with D of their own. Returns float64 [M, M] with a diagonal of 1. Near 0 for
    independent features, also a little below, because each HSIC is unbiased; rotations and a factor change nothing. One
    batch of all images is the full estimate, and the more batches there are the closer they come to it. A feature that
    is the same for all images gets NaN.
    """
    total = torch.stack([hsic(batch) for batch in batches]).mean(0)
    scale = total.diagonal().sqrt()
    return total / scale / scale[:, None]


def hsic(features: Sequence[Tensor]) -> Tensor:
    """Unbiased HSIC under the linear kernel, of every two of M features (Song et al. 2012, equation 5; equation 3 of
    Nguyen, Raghu & Kornblith 2021).

    features: M of [n, D], of the same n images, four or more. Returns float64 [M, M]; of any sign, 0 in expectation for
    independent features.
    """
    n = len(features[0])
    if n < 4:
        raise ValueError(f"unbiased HSIC of {n} images is not defined; give 4 or more")
    grams = torch.stack([centred_gram(x).flatten() for x in features])
    return grams @ grams.T / (n * (n - 3))


def centred_gram(x: Tensor) -> Tensor:
    """X X^T without its diagonal, U-centred (Székely & Rizzo 2014, equation 2.1), float64 [n, n]: the inner product of
    two of them, over n (n - 3), is Song's estimator with its three terms."""
    n = len(x)
    x = x.double()
    x = x - x.mean(0)  # changes nothing but rounding
    gram = (x @ x.T).fill_diagonal_(0)
    means = gram.sum(1) / (n - 2)
    return (gram - means - means[:, None] + means.sum() / (n - 1)).fill_diagonal_(0)
