"""Accuracy of heads against their number of parameters, on one feature and on all blocks of its pass.

    python benchmarks/head_parameters.py            # the shipped pair; goes on where it was stopped

Figure 1 of "Diffusion Models Beat GANs on Image Classification" (Mukhopadhyay et al. 2023), for our heads. The
features are those at the answer of the default sweep, and of all blocks at its timestep. Each head is fitted on all
training images with the setting that is best on val, and judged on all test images. All that a head keeps counts:
kNN keeps the training features.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean

import record
import tyro
from matplotlib.figure import Figure

from ddae.heads import find_head
from ddae.report.style import MARKERS
from sweeps import fuse, layer_noise
from sweeps.fusing.sweep import Setup, set_up
from sweeps.probing.refit import refit
from sweeps.probing.task import ProbeTask, Read


@dataclass(frozen=True)
class HeadParameters:
    dataset: str = layer_noise.LayerNoise.dataset
    backbone: str = layer_noise.LayerNoise.backbone
    heads: tuple[str, ...] = (
        "ridge", "linear", "logistic", "bn-linear", "knn", "mlp-64", "mlp-256", "mlp-2048-2048", "cnn-64-64",
        "cnn-256-256", "attention-1", "attention-3", "efficient-8",
    )  # fmt: skip
    out: Path = Path("out/head-parameters")
    store: str = "out/store"
    name: str = "head_parameters"
    """Of the files in results/."""


@dataclass(frozen=True)
class Point:
    head: str
    pooling: int
    num_blocks: int
    parameters: int
    accuracy: float
    """Per cent of the test images."""
    stderr: float


def main(config: HeadParameters) -> None:
    flags = layer_noise.LayerNoise(
        backbone=config.backbone, dataset=config.dataset, out=config.out, store=config.store, atlas=False
    )
    setup, points = set_up(fuse.Fuse(sweep=layer_noise.sweep(flags).folder, out=config.out)), []
    for task, cell in cells(setup, config):
        kept = config.out / f"{config.name}-{cell.name.replace('/', '-')}.json"
        if not kept.exists():
            kept.write_text(json.dumps(asdict(measure(setup, task, cell))))
        points.append(Point(**json.loads(kept.read_text())))
        one = points[-1]
        print(
            f"{one.head:<14} {one.pooling}x{one.pooling} {one.num_blocks:>2} blocks {one.parameters:>10,} parameters "
            f"{one.accuracy:.1f} +- {one.stderr:.1f}",
            flush=True,
        )
    record.write(config.name, {"answer": setup.single.name, "points": [asdict(each) for each in points]})
    draw(points, f"{config.name}.png")


def cells(setup: Setup, config: HeadParameters) -> Iterator[tuple[ProbeTask, Read]]:
    """Every head at every pooling that it takes, on the answer's feature and on all blocks of its timestep."""
    single, space = setup.single, setup.probing.space
    for head, pooling in product(config.heads, space.poolings):
        if find_head(head)[0].min_grid <= pooling <= space.block(single.block).size:
            yield setup.probing, replace(single, pooling=pooling, head=head)
    members = tuple((block, single.timestep) for block in space.block_names)
    task = setup.task([members])
    yield from ((task, cell) for cell in task.cells if cell.pooling <= 2)


def measure(setup: Setup, task: ProbeTask, cell: Read) -> Point:
    fit = refit(task, cell, setup.dataset, ("test",))
    right = fit.correct("test").mean()
    head = fit.fitted.head.only(fit.fitted.setting)
    return Point(
        cell.head, cell.pooling, len(cell.members), sum(each.numel() for each in head.state_dict().values()),
        100 * right, 100 * (right * (1 - right) / len(setup.dataset.labels("test"))) ** 0.5,
    )  # fmt: skip


def draw(points: list[Point], name: str) -> None:
    """A line a head, from its coarsest pooling to its finest."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    heads = list(dict.fromkeys((each.num_blocks > 1, each.head) for each in points))
    for number, (joins, head) in enumerate(heads):
        chosen = [each for each in points if (each.num_blocks > 1, each.head) == (joins, head)]
        axes.plot(
            [each.parameters for each in chosen], [each.accuracy for each in chosen], color=f"C{number % 10}", lw=0.8,
            marker=MARKERS[(number + number // 10) % len(MARKERS)], ms=6, mfc="none" if joins else None,
            label=f"{head}, all blocks" if joins else head,
        )  # fmt: skip
    error = mean(each.stderr for each in points)
    axes.set(xscale="log", xlabel="numbers that the head keeps", ylabel="accuracy on the test images (%)")
    axes.set_title(f"standard error {error:.1f} points; finer pooling has more parameters", size=10, loc="left")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    figure.savefig(record.RESULTS / name, dpi=130)


if __name__ == "__main__":
    main(tyro.cli(HeadParameters, description=__doc__))
