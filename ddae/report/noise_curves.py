"""Accuracy against the noise level."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddae.report.style import MARKERS, make_axes, open_frame, plain_log_axis, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curves = Mapping[str, Sequence[tuple[float, float, float]]]
"""name -> (sigma, accuracy in [0, 1], standard error), sigma growing."""


def noise_curves(curves: Curves, between: Curves, path: Path, measured: str = "val accuracy (%)") -> "Figure":
    """A line for each name; hollow points of `between`, by the same names, beside it. measured: the label of y."""
    figure, axes = make_axes(7, 4.2)
    for number, (name, points) in enumerate(curves.items()):
        color, marker = f"C{number % 10}", MARKERS[number % len(MARKERS)]
        x, y, error = np.array(points, dtype=float).T
        axes.errorbar(x, 100 * y, 100 * error, color=color, marker=marker, ms=4, linewidth=1, capsize=2, label=name)
        if len(between.get(name, ())):
            x, y, error = np.array(between[name], dtype=float).T
            axes.errorbar(x, 100 * y, 100 * error, color=color, fmt=marker, ms=6, mfc="white", capsize=2)
    plain_log_axis(axes)
    axes.set(xlabel="sigma, noise against image", ylabel=measured)
    axes.legend(frameon=False, fontsize=8)
    return save(open_frame(figure), path)
