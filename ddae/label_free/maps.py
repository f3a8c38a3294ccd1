"""Scores of the places of a map, that need no label. Maps are [N, C, g, g], as they are stored."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from ddae.label_free.unlabelled import spectral_entropy
from ddae.scaling import Standardise

LEAST_FREQUENCY = 0.25
"""In cycles a place, along either side: half of the highest that a grid can hold."""


def high_frequencies(maps: Tensor) -> float:
    """Share of the maps' Fourier power at LEAST_FREQUENCY or more (high-frequency ratio of A-SelecT, Liu et al. 2026,
    arXiv 2603.25758, which takes it of one chosen feature of a DiT).

    0 to 1, 0 for a grid of one place. Channels are standardised, and maps are as they are stored, where the paper has
    neither.
    """
    power = torch.fft.fft2(by_channel(maps)).abs().square().sum((0, 1))
    frequencies = torch.fft.fftfreq(len(power), device=maps.device).abs()
    high = (frequencies[:, None] >= LEAST_FREQUENCY) | (frequencies >= LEAST_FREQUENCY)
    return float(power[high].sum() / power.sum().clamp(min=1e-300))


def curvature(maps: Tensor) -> float:
    """Mean angle between one step and the next from place to place, along rows and columns (Skean et al. 2025, 'Layer
    by layer ...', section 3; Hosseini & Fedorenko 2023, whose steps are from word to word).

    0 to pi, lower is straighter; pi / 2 where a side has fewer than three places.
    """
    maps = by_channel(maps)
    if maps.shape[-1] < 3:
        return math.pi / 2
    angles = [torch.arccos(_cosines(steps).clamp(-1, 1)).mean() for steps in (maps.diff(dim=3), maps.diff(dim=2).mT)]
    return float(angles[0] + angles[1]) / 2


def prompt_entropy(maps: Tensor) -> float:
    """Entropy of the spectrum of each image's places [P, C], as a share of the most that it can be, averaged over the
    images (Skean et al. 2025, equation 1 at alpha = 1, whose places are the words of a prompt).

    0 where all places of an image are alike, to 1.
    """
    places = by_channel(maps).flatten(2).mT
    most = math.log(min(places.shape[1:]))
    return float(spectral_entropy(places).mean()) / most if most else 0.0


def by_channel(maps: Tensor) -> Tensor:
    """Standardise each channel over images and places, in double precision."""
    maps = maps.double()
    return Standardise(maps, (0, 2, 3))(maps)


def _cosines(steps: Tensor) -> Tensor:
    """The cosine of each step [N, C, rows, steps] with the next, over channels; 0 where one of them has no length."""
    return functional.cosine_similarity(steps[..., :-1], steps[..., 1:], dim=1)
