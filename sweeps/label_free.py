"""Rank every (block, timestep) of a diffusion model on images alone: no label is read, no head is fitted.

    python sweeps/label_free.py                                           # the model and images that ship with it
    python sweeps/label_free.py --backbone ./my-model --dataset ./my-images --timesteps 0 50 100
    python sweeps/label_free.py --num-labels 100                          # with the scores that want a few labels
    python sweeps/label_free.py --backbone out/ddpm-digits --every 1000   # along a training by pretrain.py

Two noise draws of 256 images pass the network once a timestep. Prints the first ten places of the consensus, what each
score alone would choose, and how alike half of the images rank; writes a heat map and a table. With --every it draws
alignment against uniformity instead, a line a block, a point a snapshot (DDAE paper, Figure 3).
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps import cli

if TYPE_CHECKING:
    from sweeps.tuning.plan import Plan


@dataclass(frozen=True)
class LabelFreeRanking(cli.ModelAndData):
    num_images: int = 256
    """So many training images, or all if there are fewer, in two noise draws each."""
    num_labels: int = 0
    """Labels of so many of them, the first, for LogME, H-score and ridge, of which ridge joins the ranking."""
    every: int = 0
    """Follow the snapshots `step-<n>` in the folder --backbone whose n is a multiple of this, at the timestep that
    --timesteps gives; of several, at the one that ranks first in the last snapshot."""


def main(config: LabelFreeRanking) -> None:
    from ddae.label_free import MIN_IMAGES
    from sweeps.tuning.estimate import estimate
    from sweeps.tuning.plan import make_plan
    from sweeps.tuning.run import check_cluster, ray_cluster

    least, most = 2 * MIN_IMAGES, 10**9  # half of the images are ranked as well
    cli.check_numbers(config, num_images=(least, most), num_labels=(0, most), every=(0, most))
    if config.num_labels > config.num_images:
        raise ValueError(
            f"num_labels={config.num_labels} must be 0 or more, and {config.num_images} at most, which is num_images; "
            "raise that as well"
        )
    if 0 < config.num_labels < least:
        raise ValueError(f"num_labels={config.num_labels} must be {least} or more, or 0 for none")
    steps = snapshots(Path(config.backbone), config.every) if config.every else {}
    newest = str(steps[max(steps)]) if steps else config.backbone
    plan, backbone, dataset = make_plan(replace(config, backbone=newest))
    if config.dry_run:
        passes = num_passes(plan, config) * (1 + max(0, len(steps) - 1) / len(plan.space.timesteps))
        print(estimate(plan, backbone, dataset, passes, passes))
        return
    check_cluster()
    kind = f"every-{config.every}-" if steps else ""
    folder = config.out / f"label-free-{kind}{plan.folder().rpartition('/')[2]}"
    cli.check_writable(folder, plan.store)
    with ray_cluster():
        print(follow_training(config, plan, steps, folder) if steps else rank_places(config, plan, folder))


def rank_places(config: LabelFreeRanking, plan: "Plan", folder: Path) -> str:
    """Measure, draw and write; returns what a person reads."""
    from ddae.label_free import CONSENSUS, LABELLED, spearman
    from ddae.report import heat_map
    from sweeps.tuning.outcome import best_cells
    from sweeps.tuning.run import Sweep

    with Sweep(plan, num_passes(plan, config)) as sweep:
        scores = sweep.label_free(config.num_images, config.num_labels)
        half = sweep.label_free(config.num_images // 2, config.num_labels // 2)
    names = [block.name for block in plan.space.blocks]
    num_images, num_labels = (min(number, plan.rungs[-1]) for number in (config.num_images, config.num_labels))
    order = best_cells(plan, scores.ranking, scores.ranking.size)
    title = f"ranking with {num_labels:,} labels" if num_labels else "label-free ranking"
    heat_map(
        scores.ranking,
        names,
        plan.sigmas,
        "ranking, higher is better",
        f"{title} on {num_images:,} images   * its first",
        folder / "label_free.png",
        star=order[0],
    )
    rows = [("block", "timestep", "sigma", *scores.scores, "ranking")]
    for block, timestep in order:
        at = names.index(block), plan.space.timesteps.index(timestep)
        numbers = plan.sigmas[timestep], *(table[at] for table in scores.scores.values()), scores.ranking[at]
        rows.append((block, str(timestep), *(f"{number:.4g}" for number in numbers)))
    write_csv(folder / "label_free.csv", rows)
    alone = [("score", "its first choice", "Spearman of half of the images with all")]
    for name, merit in scores.merits.items():
        [(block, timestep)] = best_cells(plan, merit)
        alone.append((name, f"{block}/{timestep}", f"{spearman(merit, half.merits[name]):.2f}"))
    joins = ", ".join(name for name in CONSENSUS if name in LABELLED)
    labels = "no label was read"
    if num_labels:
        labels = f"{', '.join(LABELLED)} saw the first {num_labels} labels, and {joins} joins the ranking"
    return "\n".join(
        [
            *cli.aligned(rows[:11]),
            "",
            *cli.aligned(alone),
            "",
            f"images    {num_images:,} of the training images in two noise draws; {labels}",
            f"heat map  {folder / 'label_free.png'}",
            f"table     {folder / 'label_free.csv'}",
        ]
    )


def follow_training(config: LabelFreeRanking, last: "Plan", steps: dict[int, Path], folder: Path) -> str:
    """The scores of every snapshot, drawn and written; returns what a person reads. last: the plan of the last one,
    whose ranking chooses the timestep."""
    import numpy as np

    from ddae.report import trajectories
    from sweeps.tuning.outcome import best_cells
    from sweeps.tuning.plan import make_plan
    from sweeps.tuning.run import Sweep

    with Sweep(last, num_passes(last, config)) as sweep:
        scores = sweep.label_free(config.num_images)
    [(_, timestep)] = best_cells(last, scores.ranking)
    column = last.space.timesteps.index(timestep)
    tables = {max(steps): {name: table[:, column] for name, table in scores.scores.items()}}
    for step, snapshot in list(steps.items())[:-1]:
        plan, *_ = make_plan(replace(config, backbone=str(snapshot), timesteps=(timestep,)))
        with Sweep(plan, num_passes(plan, config)) as sweep:
            tables[step] = {name: table[:, 0] for name, table in sweep.label_free(config.num_images).scores.items()}
    blocks = [block.name for block in last.space.blocks]
    alignment, uniformity = (np.array([tables[step][name] for step in steps]) for name in ("alignment", "uniformity"))
    title = f"{Path(config.backbone).name} at t = {timestep}, {min(config.num_images, last.rungs[-1]):,} images"
    trajectories(alignment, uniformity, list(steps), blocks, title, folder / "trajectories.png")
    rows = [("step", "block", "timestep", *scores.scores)]
    for step in steps:
        for row, block in enumerate(blocks):
            numbers = (f"{values[row]:.4g}" for values in tables[step].values())
            rows.append((str(step), block, str(timestep), *numbers))
    write_csv(folder / "trajectories.csv", rows)
    return "\n".join(
        [
            *cli.aligned([rows[0], *rows[-len(blocks) :]]),
            "",
            f"snapshots     {', '.join(map(str, steps))}; above is the last",
            f"trajectories  {folder / 'trajectories.png'}",
            f"table         {folder / 'trajectories.csv'}",
        ]
    )


def snapshots(folder: Path, every: int) -> dict[int, Path]:
    """step -> folder of those whose step is a multiple of `every`, in order."""
    found = sorted((int(path.name[5:]), path) for path in folder.glob("step-*") if path.name[5:].isdigit())
    chosen = {step: path for step, path in found if step % every == 0}
    if not chosen:
        has = ", ".join(path.name for _, path in found) or "none"
        raise ValueError(
            f"every={every} fits none of the snapshots in {folder} ({has}); pretrain.py --snapshot-every makes them"
        )
    return chosen


def num_passes(plan: "Plan", config: LabelFreeRanking) -> float:
    """Full forward passes of one network."""
    needs = [need for draw in (0, 1) for need in plan.label_free_needs(config.num_images, draw)]
    return plan.space.forward_passes(needs)


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    cli.run(main, LabelFreeRanking, __doc__)
