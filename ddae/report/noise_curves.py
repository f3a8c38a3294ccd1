"""Accuracy against the noise level."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddae.report.figures import MARKERS, make_axes, open_frame, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curves = Mapping[str, Sequence[tuple[float, float, float]]]
"""name -> (sigma, accuracy in [0, 1], standard error), sigma growing."""


def noise_curves(curves: Curves, between: Curves, path: Path) -> "Figure":
    """A line for each name; hollow points of `between`, by the same names, beside it."""
    figure, axes = make_axes(7, 4.2)
    for number, (name, points) in enumerate(curves.items()):
        color, marker = f"C{number % 10}", MARKERS[number % len(MARKERS)]
        x, y, error = np.array(points, dtype=float).T
        axes.errorbar(x, 100 * y, 100 * error, color=color, marker=marker, ms=4, linewidth=1, capsize=2, label=name)
        if len(between.get(name, ())):
            x, y, error = np.array(between[name], dtype=float).T
            axes.errorbar(x, 100 * y, 100 * error, color=color, fmt=marker, ms=6, mfc="white", capsize=2)
    axes.set(xscale="log", xlabel="sigma, noise against image", ylabel="val accuracy (%)")
    sigmas = [sigma for points in curves.values() for sigma, *_ in points]
    powers = range(math.ceil(math.log10(min(sigmas)) - 0.01), math.floor(math.log10(max(sigmas)) + 0.01) + 1)
    axes.set_xticks([10.0**power for power in powers], [f"{10.0**power:g}" for power in powers])
    axes.legend(frameon=False, fontsize=8)
    return save(open_frame(figure), path)
