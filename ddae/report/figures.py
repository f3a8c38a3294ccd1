"""Figures: each is written as a PNG and returned. Axes name their units; shapes, line styles and lightness tell what
colours tell, so that all of it reads in grey."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ddae.report.style import FAINT, MARKERS, log_axis, make_axes, open_frame, room_for, save, shortened, shortened_path
from ddae.units import rounded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#111111"
"""On bright cells; plain black becomes the page's own text colour."""
MANY = 1000
"""Points or cells, beyond which they are drawn as pixels, and without their numbers."""


def heat_map(
    values: np.ndarray,
    blocks: Sequence[str],
    sigmas: Mapping[int, float],
    label: str,
    title: str,
    path: Path,
    rings: Collection[tuple[str, int]] = (),
    star: tuple[str, int] | None = None,
) -> "Figure":
    """values: [blocks, timesteps], blocks in the order the data meets them, top to bottom, NaN where there is none;
    sigmas: timestep -> sigma.

    rings and star mark (block, timestep) cells.
    """
    names = [shortened_path(block) for block in blocks]
    figure, axes = make_axes(max(4.5, 1.9 + 0.52 * len(sigmas)) + room_for(names), 1.5 + 0.28 * len(blocks))
    image = axes.imshow(values, aspect="auto", cmap="viridis", interpolation="none")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for row, block in enumerate(blocks):
        for column, timestep in enumerate(sigmas):
            ink = "white" if values[row, column] < middle else INK
            if values.size <= MANY and np.isfinite(values[row, column]):
                axes.text(column, row, f"{values[row, column]:.1f}", ha="center", va="center", color=ink, size=8)
            if (block, timestep) in rings:
                axes.plot(column - 0.38, row, "o", mfc="none", mec=ink, ms=4)
            if (block, timestep) == star:
                axes.plot(column + 0.35, row, "*", color=INK, mec="white", mew=0.7, ms=10)
    axes.set_yticks(range(len(blocks)), names)
    axes.set_xticks(range(len(sigmas)), [f"{t}\n{rounded(sigma)}" for t, sigma in sigmas.items()])
    axes.set(xlabel="timestep, and below it the noise-to-signal ratio sigma", ylabel="block, input at the top")
    axes.set_title(title, size=10, loc="left")
    figure.colorbar(image, label=label)
    return save(figure, path)


def score_scatter(
    ranking: np.ndarray,
    accuracy: np.ndarray,
    timesteps: Sequence[int],
    correlation: float,
    measure: str,
    path: Path,
    first: tuple[int, int] | None = None,
    star: tuple[int, int] | None = None,
) -> "Figure":
    """A label-free ranking against probe accuracy, [blocks, timesteps] each, one colour a timestep.

    measure: accuracy, or balanced accuracy, for the axis.
    first, star: [block, timestep] positions of the ranking's first choice and of the answer.
    """
    from matplotlib import colormaps

    figure, axes = make_axes(5.5, 4)
    colors = colormaps["viridis"](np.linspace(0, 0.95, len(timesteps)))
    for column, (timestep, color) in enumerate(zip(timesteps, colors, strict=True)):
        axes.scatter(
            ranking[:, column], 100 * accuracy[:, column], s=28, color=color, marker=MARKERS[column % len(MARKERS)],
            edgecolors=FAINT, linewidths=0.5, rasterized=ranking.size > MANY, label=f"t = {timestep}",
        )  # fmt: skip
    for at, mark, size, label in ((first, "o", 13, "first choice"), (star, "*", 15, "the answer")):
        if at is not None:
            face = "none" if mark == "o" else "black"
            axes.plot(ranking[at], 100 * accuracy[at], mark, ms=size, mfc=face, mec="black", ls="", label=label)
    axes.set(xlabel="label-free ranking (higher is better)", ylabel=f"{measure} of leave-one-out ridge (%)")
    axes.set_title(f"Spearman {correlation:.2f} over {np.isfinite(accuracy).sum()} sites", size=10, loc="left")
    figure.legend(loc="outside upper left", frameon=False, fontsize=8, ncols=5, columnspacing=1)
    return save(open_frame(figure), path)


def image_grid(images: Tensor, path: Path) -> None:
    """images: [N, C, H, W] in [0, 1], eight a row."""
    from torchvision.utils import save_image

    save_image(images, path, nrow=8, padding=1)


def class_grid(images: Tensor, rows: Sequence[str], columns: Sequence[str], path: Path) -> "Figure":
    """images: uint8 [columns, rows, n, 3, H, W]; n beside each other in every cell."""
    height, width = images.shape[-2], images.shape[2] * images.shape[-1]
    figure, axes = make_axes(0.9 + 0.011 * (width + 10) * len(columns), 0.4 + 0.011 * (height + 2) * len(rows))
    gap, margin = max(4, height // 4), max(1, height // 16)
    sheet = np.full((len(rows) * (height + margin), len(columns) * (width + gap), 3), 255, dtype=np.uint8)
    for column, cells in enumerate(images):
        for row, cell in enumerate(cells):
            y, x = row * (height + margin), column * (width + gap)
            sheet[y : y + height, x : x + width] = cell.permute(2, 0, 3, 1).flatten(1, 2).numpy()
    axes.imshow(sheet, interpolation="none")
    axes.set_yticks([row * (height + margin) + height / 2 for row in range(len(rows))], rows, size=8)
    axes.set_xticks([column * (width + gap) + width / 2 for column in range(len(columns))], columns, size=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return save(figure, path)


def alignment_uniformity(
    alignment: np.ndarray,
    uniformity: np.ndarray,
    accuracy: np.ndarray,
    star: tuple[int, int],
    measure: str,
    path: Path,
) -> "Figure":
    """The plane of both scores (DDAE paper, section 4), and accuracy's trend over it: a plane fitted by least
    squares, whose lines of equal accuracy are dashed.

    [blocks, timesteps] each, accuracy in [0, 1]; star: where the answer is.
    """
    figure, axes = make_axes(5.5, 4)
    known = np.isfinite(accuracy)
    percent = 100 * accuracy[known]
    options = {"s": 34, "cmap": "viridis", "edgecolors": FAINT, "linewidths": 0.5, "rasterized": percent.size > MANY}
    points = axes.scatter(alignment[known], uniformity[known], c=percent, **options)
    axes.plot(alignment[star], uniformity[star], "*", color="black", mec="white", mew=1, ms=16, label="the answer")
    terms = np.stack([np.ones(percent.size), alignment[known], uniformity[known]], axis=1)
    fitted, *_ = np.linalg.lstsq(terms, percent, rcond=None)
    explained = 1 - np.var(percent - terms @ fitted) / max(np.var(percent), 1e-12)
    if explained > 0.01:
        x, y = np.meshgrid(*(np.linspace(low, high, 30) for low, high in (axes.get_xlim(), axes.get_ylim())))
        trend = fitted[0] + fitted[1] * x + fitted[2] * y
        lines = axes.contour(x, y, trend, 5, colors=FAINT, linestyles="dashed", linewidths=1)
        axes.clabel(lines, fmt="%.0f %%", fontsize=8)
    axes.set(xlabel="alignment (lower: two draws of an image agree)", ylabel="uniformity (lower: images lie apart)")
    axes.set_title(f"dashed: trend of {measure}, which explains {100 * explained:.0f} % of it", size=10, loc="left")
    axes.legend(frameon=False, fontsize=8)
    figure.colorbar(points, label=f"{measure} of leave-one-out ridge (%)")
    return save(open_frame(figure), path)


def paired_effects(
    effects: Mapping[str, Mapping[str, np.ndarray]], references: Mapping[str, str], measure: str, path: Path
) -> "Figure":
    """One choice against another, all else being equal.

    effects: axis -> choice -> points of accuracy by which it is better than references[axis], one a pair of cells.
    """
    heights = [1 + len(choices) for choices in effects.values()]
    figure, panels = make_axes(5.5, 0.9 * len(effects) + 0.34 * sum(heights), rows=len(effects), height_ratios=heights)
    for axes, (axis, choices) in zip(np.atleast_1d(panels), effects.items(), strict=True):
        labels = []
        for row, (choice, points) in enumerate(choices.items()):
            spread = 0.6 * (np.arange(len(points)) * 0.618 % 1 - 0.5)
            axes.plot(points, row + spread, "o", color=FAINT, ms=3, rasterized=len(points) > MANY)
            if len(points):
                axes.errorbar(
                    points.mean(), row, xerr=_stderr(points), fmt="D", ms=6, color="black", mec="white", capsize=4
                )
            labels.append(f"{choice} ({len(points)} pair{'s' * (len(points) != 1)})")
        axes.axvline(0, color="black", linewidth=1)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_title(f"{axis}, against {references[axis]}", size=10, loc="left")
        axes.set_xlabel(f"points of {measure}, better (right) or worse (left)")
    return save(open_frame(figure), path)


def cost_scatter(
    accuracy: np.ndarray,
    stderr: np.ndarray,
    costs: Mapping[str, np.ndarray],
    kinds: Sequence[str],
    star: int,
    measure: str,
    path: Path,
) -> "Figure":
    """Accuracy in [0, 1] of N cells against each of their costs, and the Pareto front: no cell is both cheaper and
    better. kinds: what shapes tell apart; star: number of the answer."""
    figure, panels = make_axes(5.5, 0.4 + 2.4 * len(costs), rows=len(costs))
    for axes, (label, cost) in zip(np.atleast_1d(panels), costs.items(), strict=True):
        for marker, kind in zip(np.resize(list(MARKERS), len(set(kinds))), dict.fromkeys(kinds), strict=True):
            of_kind = np.array([one == kind for one in kinds])
            axes.plot(cost[of_kind], 100 * accuracy[of_kind], marker, color=FAINT, ms=5, ls="", label=kind,
                      rasterized=len(accuracy) > MANY)  # fmt: skip
        front = pareto_front(cost, accuracy)
        axes.step(cost[front], 100 * accuracy[front], where="post", color="black", linewidth=1)
        axes.errorbar(cost[front], 100 * accuracy[front], 100 * stderr[front], fmt="o", mfc="none", ms=9, color="black",
                      capsize=2, label="Pareto front, ± s.e.")  # fmt: skip
        axes.plot(cost[star], 100 * accuracy[star], "*", color="black", ms=14, mec="white", ls="", label="the answer")
        axes.set(xlabel=label, ylabel=f"val {measure} (%)")
        if cost.max() > 10 * cost.min() >= 10:
            log_axis(axes, [2.0**power for power in range(31) if cost.min() <= 2**power <= cost.max()])
    handles, labels = np.atleast_1d(panels)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", frameon=False, fontsize=8, ncols=4, columnspacing=1)
    return save(open_frame(figure), path)


def pareto_front(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Numbers of those that none is both as cheap and better than, or cheaper and as good; cheapest first."""
    order = np.lexsort((-value, cost))
    best_before = np.maximum.accumulate(np.concatenate([[-np.inf], value[order][:-1]]))
    return order[value[order] > best_before]


def courses(
    lines: Sequence[Sequence[tuple[int, float]]],
    stopped: Sequence[bool],
    labels: Sequence[str],
    ylabel: str,
    path: Path,
    star: int | None = None,
) -> "Figure":
    """How each of several went: (number of images, accuracy in [0, 1]) from the first to the last time it was measured.

    stopped: which went no further than that; labels stand at the ends of the lines; star: the answer.
    """
    figure, axes = make_axes(5.5, 4)
    counts = sorted({count for line in lines for count, _ in line})
    gap = [(np.nan, np.nan)]
    for is_stopped, style, end, name in ((True, "--", "x", "stopped"), (False, "-", "o", "went on to the end")):
        those = [line for line, at in zip(lines, stopped, strict=True) if at == is_stopped]
        if those:
            x, y = np.array([point for line in those for point in [*line, *gap]]).T
            color, many = FAINT if is_stopped else "black", len(those) > MANY
            axes.plot(x, 100 * y, style, color=color, linewidth=0.8, rasterized=many)
            x, y = np.array([line[-1] for line in those]).T
            axes.plot(x, 100 * y, end, color=color, ms=6, label=f"{name} ({len(those)})", rasterized=many)
    if star is not None:
        x, y = np.array(lines[star]).T
        axes.plot(x, 100 * y, color="black", linewidth=2.5)
        axes.plot(x[-1], 100 * y[-1], "*", color="black", mec="white", ms=16, label="the answer")
    log_axis(axes, counts)
    axes.set(xlabel="training images", ylabel=ylabel, xlim=(counts[0] / 1.2, counts[-1] * 1.5))
    ends = [(*line[-1], label) for line, label in zip(lines, labels, strict=True) if label]
    low, high = axes.get_ylim()
    readable = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
    for count in counts:
        here = sorted(((100 * y, label) for x, y, label in ends if x == count), reverse=True)
        for (y, label), apart in zip(here, _apart([y for y, _ in here], (high - low) / 22), strict=True):
            axes.annotate(label, (count, y), (count * 1.07, apart), va="center", size=8, bbox=readable)
    axes.legend(frameon=False, fontsize=8)
    return save(open_frame(figure), path)


def confusion(shares: np.ndarray, classes: Sequence[str], path: Path) -> "Figure":
    """shares: [true, predicted] in [0, 1], shown in percent; rows sum to 1, or to 0 where a class has no image."""
    figure, axes = make_axes(max(3.5, 1.8 + 0.38 * len(classes)), 1.3 + 0.3 * len(classes))
    axes.imshow(shares, aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="none")
    for row, column in np.argwhere(shares >= 0.005):
        ink = "white" if shares[row, column] > 0.5 else INK
        axes.text(column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center", color=ink, size=8)
    names = [shortened(name) for name in classes]
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set(xlabel="predicted class", ylabel="true class")
    return save(figure, path)


def pictures(
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[Sequence[str]],
    path: Path,
    wrong: Collection[tuple[int, int]] = (),
) -> "Figure":
    """Rows of images, uint8 [H, W, 3], each above its caption; those that are wrong have a thick dashed frame."""
    from matplotlib.patches import Rectangle

    num_columns = max(map(len, rows))
    figure, axes = make_axes(0.9 * num_columns, 1.1 * len(rows))
    figure.set_layout_engine("none")
    axes.set_position((0, 0, 1, 1))
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            x, y = 1.1 * column, -1.35 * row
            axes.imshow(image, extent=(x, x + 1, y, y + 1), interpolation="none")
            style = {"linewidth": 2.5, "linestyle": (0, (2, 1))} if (row, column) in wrong else {"linewidth": 0.5}
            axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor="black", **style))
            axes.text(x + 0.5, y - 0.05, captions[row][column], ha="center", va="top", size=7)
    axes.set(xlim=(-0.1, 1.1 * num_columns), ylim=(-1.35 * len(rows) + 1, 1.1))
    axes.set_axis_off()
    return save(figure, path)


def _stderr(points: np.ndarray) -> float:
    """The standard error of the mean; 0 for one point."""
    return float(points.std(ddof=1) / len(points) ** 0.5) if len(points) > 1 else 0.0


def _apart(heights: Sequence[float], least: float) -> list[float]:
    """Places for labels, at least so far apart, near their heights, which descend."""
    places: list[float] = []
    for height in heights:
        places.append(min(height, places[-1] - least) if places else height)
    return places


def similarity_map(
    values: np.ndarray,
    rows: Sequence[tuple[str, str]],
    columns: Sequence[tuple[str, str]],
    label: str,
    title: str,
    path: Path,
) -> "Figure":
    """values: [rows, columns] in 0 to 1; rows, columns: of each its group and its name in it, groups one after the
    other. Names stand left and below, groups right and above, with lines between them."""
    rows, columns = ([(group, shortened_path(name)) for group, name in axis] for axis in (rows, columns))
    aside, below = (room_for([name for _, name in axis], 6) for axis in (rows, columns))
    figure, axes = make_axes(2.6 + max(2.8, 0.13 * len(columns)) + aside, 1.9 + max(1.2, 0.13 * len(rows)) + below)
    figure.set_layout_engine("compressed")  # its cells are squares
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    axes.set_yticks(range(len(rows)), [name for _, name in rows], size=6)
    axes.set_xticks(range(len(columns)), [name for _, name in columns], size=6, rotation=90)
    for names, line, beside in (
        (rows, axes.axhline, axes.secondary_yaxis("right").yaxis),
        (columns, axes.axvline, axes.secondary_xaxis("top").xaxis),
    ):
        starts = [i for i, (group, _) in enumerate(names) if i == 0 or names[i - 1][0] != group]
        ends = [*starts[1:], len(names)]
        for start in starts[1:]:
            line(start - 0.5, color="white", linewidth=1)
        middles = [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)]
        beside.set_ticks(middles, [names[start][0] for start in starts], size=7)
        beside.set_tick_params(length=0)
    figure.suptitle(title, size=9, wrap=True)
    figure.colorbar(image, label=label, shrink=0.6)
    return save(figure, path)
