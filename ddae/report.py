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
    """values: [blocks, timesteps], blocks in the order the data meets them, top to bottom, NaN where there is none;
    sigmas: timestep -> sigma.

    rings and star mark (block, timestep) cells.
    """
    timesteps = list(sigmas)
    figure, axes = _axes(1.8 + 0.8 * len(timesteps), 1.6 + 0.36 * len(blocks))
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for row, block in enumerate(blocks):
        for column, timestep in enumerate(timesteps):
            ink = "white" if values[row, column] < middle else "black"
            number = "" if np.isnan(values[row, column]) else f"{values[row, column]:.1f}"
            axes.text(column, row, number, ha="center", va="center", color=ink, size=8)
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
    axes.set_title(f"Spearman {correlation:.2f} over {np.isfinite(accuracy).sum()} cells", size=10, loc="left")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def trajectories(
    alignment: np.ndarray, uniformity: np.ndarray, steps: Sequence[int], blocks: Sequence[str], title: str, path: Path
) -> None:
    """Alignment against uniformity along pre-training (DDAE paper, Figure 3), [checkpoints, blocks] each: a line a
    block, a point a checkpoint, the last one filled."""
    from matplotlib import colormaps

    figure, axes = _axes(7, 5)
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(blocks)))
    for column, (block, color) in enumerate(zip(blocks, colors, strict=True)):
        marker = "os^Dv<>p"[column % 8]
        x, y = uniformity[:, column], alignment[:, column]
        axes.plot(x, y, f"{marker}-", color=color, mfc="white", ms=4, linewidth=1)
        axes.plot(x[-1], y[-1], marker, color=color, ms=8, label=block)
    axes.set(xlabel="uniformity (lower is better)", ylabel="alignment (lower is better)")
    axes.set_title(
        f"{title}\nsteps {', '.join(f'{step:,}' for step in steps)}; the last is filled", size=10, loc="left"
    )
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, title="block, input first")
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
