"""Tables and figures. Axes name their units; colours read in grey too."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor


def heat_map(
    values: np.ndarray,
    blocks: Sequence[str],
    sigmas: Mapping[int, float],
    label: str,
    title: str,
    path: Path,
    rings: Collection[tuple[str, int]] = (),
    star: tuple[str, int] | None = None,
) -> None:
    """values: [blocks, timesteps], blocks in the order the data meets them, top to bottom; sigmas: timestep -> sigma.

    rings and star mark (block, timestep) cells.
    """
    timesteps = list(sigmas)
    figure, axes = _axes(1.8 + 0.8 * len(timesteps), 1.6 + 0.36 * len(blocks))
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    middle = (values.min() + values.max()) / 2
    for row, block in enumerate(blocks):
        for column, timestep in enumerate(timesteps):
            ink = "white" if values[row, column] < middle else "black"
            axes.text(column, row, f"{values[row, column]:.1f}", ha="center", va="center", color=ink, size=8)
            if (block, timestep) in rings:
                axes.plot(column - 0.38, row, "o", mfc="none", mec=ink, ms=5)
            if (block, timestep) == star:
                axes.plot(column + 0.38, row, "*", color="red", mec="white", mew=0.5, ms=13)
    axes.set_yticks(range(len(blocks)), blocks)
    axes.set_xticks(range(len(timesteps)), [f"{t}\n{sigma:.2g}" for t, sigma in sigmas.items()])
    axes.set(xlabel="timestep, and below it the noise-to-signal ratio sigma", ylabel="block, input at the top")
    axes.set_title(title, size=10, loc="left")
    figure.colorbar(image, label=label)
    _save(figure, path)


def score_scatter(
    ranking: np.ndarray, accuracy: np.ndarray, timesteps: Sequence[int], correlation: float, path: Path
) -> None:
    """A label-free ranking against probe accuracy, [blocks, timesteps] each, one colour a timestep."""
    from matplotlib import colormaps

    figure, axes = _axes(5.5, 4)
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(timesteps)))
    for column, (timestep, color) in enumerate(zip(timesteps, colors, strict=True)):
        marker = "os^Dv<>p"[column % 8]
        axes.plot(ranking[:, column], 100 * accuracy[:, column], marker, color=color, ms=5, label=f"t = {timestep}")
    axes.set(xlabel="label-free ranking (higher is better)", ylabel="accuracy of leave-one-out ridge (%)")
    axes.set_title(f"Spearman {correlation:.2f} over {accuracy.size} cells", size=10, loc="left")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def loss_curve(losses: list[float], path: Path) -> None:
    """Training loss against step, with a running mean over a hundredth of the training."""
    figure, axes = _axes(6, 3.5)
    window = max(1, len(losses) // 100)
    mean = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(losses, color="0.8", linewidth=0.5, label="each step")
    axes.plot(np.arange(window - 1, len(losses)), mean, color="C0", label=f"mean of {window} steps")
    axes.set(xlabel="step", ylabel="noise-prediction loss", yscale="log")
    axes.legend(frameon=False)
    _save(figure, path)


def image_grid(images: Tensor, path: Path) -> None:
    """images: [N, C, H, W] in [0, 1], eight a row."""
    from torchvision.utils import save_image

    save_image(images, path, nrow=8, padding=1)


def _axes(width: float, height: float):
    """A figure of width x height inches that needs no screen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def similarity_map(
    values: np.ndarray,
    rows: Sequence[tuple[str, str]],
    columns: Sequence[tuple[str, str]],
    label: str,
    title: str,
    path: Path,
) -> None:
    """values: [rows, columns] in 0 to 1; rows, columns: of each its group and its name in it, groups one after the
    other. Names stand left and below, groups right and above, with lines between them."""
    figure, axes = _axes(2.6 + max(2.8, 0.13 * len(columns)), 1.9 + max(1.2, 0.13 * len(rows)))
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
    _save(figure, path)
