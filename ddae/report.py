"""Tables and figures. Axes name their units; colours read in grey too."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor


def heat_map(
    accuracy: np.ndarray,
    blocks: Sequence[str],
    timesteps: Sequence[int],
    sigmas: Sequence[float],
    searched: Sequence[tuple[str, int]],
    winner: tuple[str, int],
    title: str,
    path: Path,
) -> None:
    """accuracy: [blocks, timesteps] in 0..1, blocks in the order the data meets them, top to bottom.

    searched: cells that were fitted on all images (a ring); winner: the chosen one (a star).
    """
    figure, axes = _axes(1.8 + 0.8 * len(timesteps), 1.6 + 0.36 * len(blocks))
    image = axes.imshow(100 * accuracy, aspect="auto", cmap="viridis")
    dark = accuracy < (accuracy.min() + accuracy.max()) / 2
    for row in range(len(blocks)):
        for column in range(len(timesteps)):
            color = "white" if dark[row, column] else "black"
            axes.text(column, row, f"{100 * accuracy[row, column]:.1f}", ha="center", va="center", color=color, size=8)
    places = [(list(timesteps).index(t), list(blocks).index(b)) for b, t in searched]
    for column, row in set(places):
        axes.plot(column - 0.38, row, "o", mfc="none", mec="white" if dark[row, column] else "black", ms=5)
    row, column = list(blocks).index(winner[0]), list(timesteps).index(winner[1])
    axes.plot(column + 0.38, row, "*", color="red", mec="white", mew=0.5, ms=13)
    axes.set_yticks(range(len(blocks)), blocks)
    axes.set_xticks(range(len(timesteps)), [f"{t}\n{s:.2g}" for t, s in zip(timesteps, sigmas, strict=True)])
    axes.set(xlabel="timestep, and below it the noise-to-signal ratio sigma", ylabel="block, input at the top")
    axes.set_title(title, size=10, loc="left")
    figure.colorbar(image, label="val accuracy (%)")
    _save(figure, path)


def score_scatter(
    ranking: np.ndarray, accuracy: np.ndarray, timesteps: Sequence[int], correlation: float, path: Path
) -> None:
    """A label-free ranking against probe accuracy, [blocks, timesteps] each, one colour a timestep."""
    figure, axes = _axes(5.5, 4)
    for column, timestep in enumerate(timesteps):
        color = _colormap()(column / max(1, len(timesteps) - 1))
        axes.plot(ranking[:, column], 100 * accuracy[:, column], "o", color=color, ms=5, label=f"t = {timestep}")
    axes.set(xlabel="label-free ranking (higher is better)", ylabel="val accuracy of ridge (%)")
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


def _colormap():
    from matplotlib import colormaps

    return colormaps["viridis"]


def _save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
