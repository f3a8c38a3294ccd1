"""Figures of feature learning: along training, at its end, and of images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddae.report.style import FAINT, MARKERS, make_axes, open_frame, plain_log_axis, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Course = Mapping[str, np.ndarray]
"""steps, signal, noise and loss, [T] each."""
STYLES = {"signal": ("C0", "-"), "noise": ("C3", "--")}
DASHES = "-", "--", ":", "-."


def _grid(width: float, height: float, rows: int, columns: int):
    """A figure, and its axes as an array [rows, columns]."""
    figure, first = make_axes(width, height)
    first.remove()
    return figure, figure.subplots(rows, columns, squeeze=False)


def training_courses(courses: Mapping[str, Mapping[str, Sequence[Course]]], path: Path) -> "Figure":
    """Both inner products against step: a row of panels an objective, a column an n SNR^2, a line a seed. courses:
    objective -> name of the column -> one a seed."""
    columns = list(next(iter(courses.values())))
    figure, panels = _grid(3.4 * len(columns), 2.3 * len(courses) + 0.3, len(courses), len(columns))
    for row, (objective, by_column) in zip(panels, courses.items(), strict=True):
        for axes, (name, seeds) in zip(row, by_column.items(), strict=True):
            for number, course in enumerate(seeds):
                for kind, (color, style) in STYLES.items():
                    label = kind if number == 0 else None
                    axes.plot(course["steps"], course[kind], style, color=color, linewidth=1, label=label)
            axes.set(ylim=(3e-3, 30))
            plain_log_axis(axes, "y")
            axes.set_title(f"{objective}, {name}", size=9)
        row[0].set_ylabel("largest inner product")
    for axes in panels[-1]:
        axes.set_xlabel("step")
    panels[0, 0].legend(frameon=False, fontsize=8)
    return save(open_frame(figure), path)


def losses(courses: Mapping[str, Mapping[str, Sequence[Course]]], path: Path) -> "Figure":
    """Loss against step: a panel an objective, a line an n SNR^2, of the first seed."""
    figure, panels = _grid(2.6 * len(courses) + 0.4, 2.8, 1, len(courses))
    for axes, (objective, by_column) in zip(panels[0], courses.items(), strict=True):
        for number, (name, seeds) in enumerate(by_column.items()):
            for course in seeds[:1]:
                axes.plot(course["steps"], course["loss"], DASHES[number % 4], color=f"C{number}", label=name)
        axes.set_title(objective, size=9)
        axes.set(xlabel="step")
        axes.locator_params(axis="x", nbins=4)
    panels[0, 0].set_ylabel("loss")
    panels[0, 0].legend(frameon=False, fontsize=8)
    return save(open_frame(figure), path)


Points = Mapping[str, Sequence[tuple[float, float, int]]]
"""objective -> (n SNR^2, signal over noise, n) of each training"""


def against_snr(early: Points, final: Points, least: float, path: Path) -> "Figure":
    """Signal over noise against n SNR^2, in early growth and at the end of training: a colour and a line an objective,
    a mark an n. What is below `least` is drawn there."""
    figure, panels = _grid(10.5, 4, 1, 2)
    counts = sorted({n for points in final.values() for *_, n in points})
    titles = {"growth of signal over that of noise, early": early, "signal over noise, at the end": final}
    for axes, (title, lines) in zip(panels[0], titles.items(), strict=True):
        for number, (name, points) in enumerate(lines.items()):
            for n in counts:
                own = [(snr, max(ratio, least)) for snr, ratio, each in points if each == n]
                marker = MARKERS[counts.index(n) % len(MARKERS)]
                if own:
                    axes.plot(*zip(*own, strict=True), marker, color=f"C{number}", ms=4, alpha=0.7)
            snrs = sorted({snr for snr, *_ in points})
            means = [np.exp(np.mean([np.log(max(r, least)) for s, r, _ in points if s == snr])) for snr in snrs]
            axes.plot(snrs, means, DASHES[number % 4], color=f"C{number}", linewidth=1, label=name)
        axes.axhline(1, color=FAINT, linewidth=0.8)
        axes.set(xlabel="n SNR^2", title=title)
        axes.title.set_size(10)
    known = np.array(sorted({snr for points in early.values() for snr, *_ in points}))
    panels[0, 0].plot(known, known / 2, color="black", linewidth=3, alpha=0.2, label="n SNR^2 / 2, by theory")
    for axes in panels[0]:
        plain_log_axis(axes, "xy")
    for n in counts:
        marker = MARKERS[counts.index(n) % len(MARKERS)]
        panels[0, 0].plot([], [], marker, color="0.4", ms=4, label=f"n = {n}")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return save(open_frame(figure), path)


Lines = Mapping[str, Sequence[tuple[float, float, float]]]
"""name -> (n SNR^2, mean over seeds, standard error)"""


def image_read_outs(panels: Mapping[str, Lines], path: Path) -> "Figure":
    """A panel a read-out, named by its axis, of numbers in percent against n SNR^2."""
    figure, axes_of = _grid(3.6 * len(panels), 3.8, 1, len(panels))
    for axes, (name, lines) in zip(axes_of[0], panels.items(), strict=True):
        for number, (label, points) in enumerate(lines.items()):
            x, y, error = np.array(points, dtype=float).T
            marker, style = MARKERS[number % len(MARKERS)], DASHES[number % 4]
            axes.errorbar(x, 100 * y, 100 * error, marker=marker, ls=style, ms=4, lw=1, capsize=2, label=label)
        snrs = sorted({snr for points in lines.values() for snr, *_ in points})
        axes.set(xscale="log", xlabel="n SNR^2", ylabel=name)
        axes.set_xticks(snrs, [f"{snr:g}" for snr in snrs])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=7)
    return save(open_frame(figure), path)
