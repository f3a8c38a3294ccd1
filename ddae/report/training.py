"""Figures of trainings, in the style of figures.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddae.report.style import MARKERS, log_axis, make_axes, open_frame, plain_log_axis, room_for, save, shortened_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def trajectories(
    alignment: np.ndarray, uniformity: np.ndarray, steps: Sequence[int], blocks: Sequence[str], title: str, path: Path
) -> "Figure":
    """Alignment against uniformity along pre-training (DDAE paper, Figure 3), [checkpoints, blocks] each: a line a
    block, a point a checkpoint, the last one filled."""
    from matplotlib import colormaps

    names = [shortened_path(block) for block in blocks]
    figure, axes = make_axes(7 + room_for(names, 8), 5)
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(blocks)))
    for column, (block, color) in enumerate(zip(names, colors, strict=True)):
        marker = "os^Dv<>p"[column % 8]
        x, y = uniformity[:, column], alignment[:, column]
        axes.plot(x, y, f"{marker}-", color=color, mfc="white", ms=4, linewidth=1)
        axes.plot(x[-1], y[-1], marker, color=color, ms=8, label=block)
    axes.set(xlabel="uniformity (lower is better)", ylabel="alignment (lower is better)")
    axes.set_title(
        f"{title}\nsteps {', '.join(f'{step:,}' for step in steps)}; the last is filled", size=10, loc="left"
    )
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, title="block, input first")
    return save(figure, path)


def loss_curve(losses: list[float], path: Path) -> "Figure":
    """Training loss against step, with a running mean over a hundredth of the training."""
    figure, axes = make_axes(6, 3.5)
    window = max(1, len(losses) // 100)
    mean = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(losses, color="0.8", linewidth=0.5, label="each step")
    axes.plot(np.arange(window - 1, len(losses)), mean, color="C0", label=f"mean of {window} steps")
    axes.set(xlabel="step", ylabel="noise-prediction loss", yscale="log")
    axes.legend(frameon=False)
    return save(figure, path)


def accuracy_curves(
    curves: Mapping[str, Sequence[tuple[float, float, float]]],
    label: str,
    path: Path,
    log: bool = False,
    measured: str = "val accuracy (%)",
) -> "Figure":
    """Accuracy against a number, a line for each name. curves: name -> (number, accuracy in [0, 1], standard error),
    numbers growing. label: what the number is. measured: what is against it."""
    figure, axes = make_axes(5.5, 4)
    for marker, (name, points) in zip(MARKERS, curves.items(), strict=False):
        x, y, error = np.array(points, dtype=float).T
        axes.errorbar(x, 100 * y, 100 * error, marker=marker, ms=6, capsize=3, linewidth=1, label=name)
    if log:
        log_axis(axes, sorted({number for points in curves.values() for number, *_ in points}))
    axes.set(xlabel=label, ylabel=measured)
    axes.legend(frameon=False, fontsize=8)
    return save(open_frame(figure), path)


def along_training(lines: Mapping[str, Sequence[tuple[float, float, float]]], path: Path) -> "Figure":
    """Accuracy against the distance of samples from real images (DDAE paper, Figure 4): a line for each name, a point a
    snapshot, the last one filled. lines: name -> (distance, accuracy in [0, 1], standard error) along training."""
    figure, axes = make_axes(7.5, 4.5)
    for number, (name, points) in enumerate(lines.items()):
        color, marker = f"C{number % 10}", MARKERS[number % len(MARKERS)]
        x, y, error = np.array(points, dtype=float).T
        axes.errorbar(x, 100 * y, 100 * error, color=color, marker=marker, mfc="white", ms=5, linewidth=1, capsize=2)
        axes.plot(x[-1], 100 * y[-1], marker, color=color, ms=8, label=name, zorder=3)
    plain_log_axis(axes)
    axes.set(xlabel="FD of samples (lower is better)", ylabel="val accuracy (%)")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return save(open_frame(figure), path)
