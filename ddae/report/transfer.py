"""Figures of transfer between datasets and networks, in the style of figures.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddae.report.figures import INK, pareto_front
from ddae.report.style import FAINT, MARKERS, make_axes, open_frame, plain_log_axis, room_for, save, shortened
from ddae.transfer import LEAST_SIGMA, Agreement, Loss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_GFLOPS = 1e-6
"""So little has a place on a logarithmic axis."""


def regret_map(losses: Mapping[tuple[str, str], Loss], names: Sequence[str], title: str, path: Path) -> "Figure":
    """losses: (row, column) -> points lost by what was chosen on the row and is used on the column; losses of more than
    two standard errors have a frame."""
    from matplotlib.patches import Rectangle

    points = np.array([[losses[row, column].points for column in names] for row in names])
    short = [shortened(name, 18) for name in names]
    figure, axes = make_axes(2.6 + 1.15 * len(names) + room_for(short, 9), 1.4 + 0.5 * len(names))
    most = max(1.0, float(np.abs(points).max()))
    image = axes.imshow(points, aspect="auto", cmap="viridis_r", vmin=min(0.0, points.min()), vmax=most)
    middle = (min(0.0, points.min()) + most) / 2
    for row, one in enumerate(names):
        for column, other in enumerate(names):
            lost, ink = losses[one, other], "white" if points[row, column] > middle else INK
            said = "own" if one == other else f"{lost.points:.1f} ± {lost.stderr:.1f}"
            axes.text(column, row, said, ha="center", va="center", color=ink, size=8)
            if not lost.is_tied:
                frame = Rectangle((column - 0.46, row - 0.44), 0.92, 0.88, fill=False, edgecolor=ink, linewidth=1.2)
                axes.add_patch(frame)
    axes.set_yticks(range(len(names)), short)
    axes.set_xticks(range(len(names)), short, rotation=20 if len(names) > 3 else 0)
    axes.set(xlabel="used on", ylabel="chosen on")
    axes.set_title(title, size=10, loc="left")
    figure.colorbar(image, label="points lost on val")
    return save(figure, path)


def agreements(rows: Mapping[str, tuple[Agreement, float]], path: Path) -> "Figure":
    """rows: scope, a colon and what is compared -> (Spearman correlation, what the datasets' own halves let expect of
    equal orders)."""
    names = [[shortened(part, 72) for part in name.split(": ", 1)] for name in rows]
    figure, axes = make_axes(6.5 + room_for([part for parts in names for part in parts], 8), 1.1 + 0.4 * len(rows))
    for number, (found, ceiling) in enumerate(rows.values()):
        first = number == 0
        axes.plot(
            [found.low, found.high],
            [number, number],
            color="black",
            linewidth=1,
            label="without noise, 95 %" if first else None,
        )
        axes.plot(found.value, number, "D", color="black", ms=5, label="Spearman" if first else None)
        axes.plot(ceiling, number, "|", color=FAINT, ms=11, mew=2, label="equal orders" if first else None)
    axes.set_yticks(range(len(names)), ["\n".join(parts) for parts in names], size=8)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(-1.02, 1.02), xlabel="Spearman correlation of the sites' accuracies")
    axes.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
    figure.legend(loc="outside upper left", frameon=False, fontsize=8, ncols=3)
    return save(open_frame(figure), path)


def cost_of_networks(
    points: Mapping[str, Sequence[tuple[float, float, float]]], raw_pixels: float | None, measure: str, path: Path
) -> "Figure":
    """points: network -> (GFLOPs an image, accuracy in [0, 1], standard error) of its cells, the answer first. The line
    is the Pareto front of all of them: nothing is both cheaper and better. raw_pixels: their accuracy, if known."""
    figure, axes = make_axes(7, 4.2)
    every = np.array([point for cells in points.values() for point in cells], dtype=float)
    every[:, 0] = np.maximum(every[:, 0], LEAST_GFLOPS)
    for number, (name, cells) in enumerate(points.items()):
        x, y, error = np.array(cells, dtype=float).T
        color, marker = f"C{number % 10}", MARKERS[number % len(MARKERS)]
        x = np.maximum(x, LEAST_GFLOPS)
        axes.plot(x[1:], 100 * y[1:], marker, color=color, mfc="white", ms=5, ls="")
        axes.errorbar(
            x[0],
            100 * y[0],
            100 * error[0],
            color=color,
            marker=marker,
            ms=8,
            capsize=2,
            ls="",
            label=shortened(name, 32),
        )
    front = pareto_front(every[:, 0], every[:, 1])
    axes.step(every[front, 0], 100 * every[front, 1], where="post", color="black", linewidth=1, label="Pareto front")
    if raw_pixels is not None:
        axes.axhline(100 * raw_pixels, color=FAINT, ls="--", linewidth=1, label="raw pixels, no pass")
    plain_log_axis(axes)
    axes.set(xlabel="GFLOPs an image, up to the block", ylabel=f"val {measure} (%)")
    axes.legend(frameon=False, fontsize=8)
    return save(open_frame(figure), path)


def winners(points: Mapping[str, Sequence[tuple[float, float]]], path: Path) -> "Figure":
    """Where the answers of sweeps lie. points: network -> (sigma, share of the forward pass) of each."""
    figure, axes = make_axes(7, 4.2)
    for number, (name, its) in enumerate(points.items()):
        sigma, depth = np.array(its, dtype=float).T
        color, marker = f"C{number % 10}", MARKERS[number % len(MARKERS)]
        sigma = np.maximum(sigma, LEAST_SIGMA)
        axes.plot(sigma, depth, marker, color=color, ms=8, alpha=0.7, ls="", label=shortened(name, 32))
    plain_log_axis(axes)
    axes.set(xlabel="sigma, noise against image; 0.001 is none", ylabel="share of a forward pass", ylim=(-0.03, 1.03))
    figure.legend(loc="outside upper left", frameon=False, fontsize=8, ncols=3)
    return save(open_frame(figure), path)
