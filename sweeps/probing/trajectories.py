"""The label-free scores of every block, followed along the snapshots of a training."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ddae.report import trajectories as draw
from sweeps.findings.table import write_csv
from sweeps.label_free import LabelFreeRanking
from sweeps.probing import cost
from sweeps.probing.ranking import FLOATS, check, folder_of, num_passes, table_text
from sweeps.probing.sweep import ProbeSweep, Setup, set_up
from sweeps.probing.workers import open_pool
from sweeps.search.task import Value


@dataclass(frozen=True)
class Trajectories:
    model: str
    """The name of the training's folder."""
    timestep: int
    """The timestep at which the scores are taken."""
    blocks: tuple[str, ...]
    scores: Mapping[int, Mapping[str, np.ndarray]]
    """step -> score -> value of each block, [blocks]; the last step last."""
    num_images: int
    folder: Path

    @property
    def table(self) -> list[dict[str, Value]]:
        """One row a step and block; pandas.DataFrame takes it."""
        rows: list[dict[str, Value]] = []
        for step, scores in self.scores.items():
            for number, block in enumerate(self.blocks):
                row: dict[str, Value] = {"step": step, "block": block, "timestep": self.timestep}
                rows.append(row | {name: float(values[number]) for name, values in scores.items()})
        return rows

    @property
    def text(self) -> str:
        """The scores of the last snapshot, as a person reads them."""
        return "\n".join(
            [
                *table_text(self.table[-len(self.blocks) :]),
                "",
                f"snapshots     {', '.join(map(str, self.scores))}; above is the last",
                f"trajectories  {self.folder / 'trajectories.png'}",
                f"table         {self.folder / 'trajectories.csv'}",
            ]
        )


def follow(config: LabelFreeRanking) -> Trajectories:
    """Measure the scores of every snapshot at one timestep, the best of the last snapshot, and write figure and table.

    Raises ValueError for a wrong flag, and where there is no snapshot.
    """
    steps, (task, _, _) = set_up_last(config)
    num_images = min(config.num_images, task.num_train)
    folder = folder_of(config, task, f"every-{config.every}-")
    scores = {}
    with open_pool(config, task.source, folder) as pool:
        ranked = ProbeSweep(task, pool, num_passes(task, num_images)).label_free(num_images)
        [(_, timestep), *_] = task.space.ranked(ranked.ranking)
        for step, snapshot in steps.items():
            at_step, _, _ = set_up(replace(config, backbone=str(snapshot), timesteps=(timestep,)))
            found = ProbeSweep(at_step, pool, num_passes(at_step, num_images)).label_free(num_images)
            scores[step] = {name: table[:, 0] for name, table in found.scores.items()}
    name = Path(config.backbone).name
    trajectories = Trajectories(name, timestep, task.space.block_names, scores, num_images, folder)
    publish(trajectories)
    return trajectories


def publish(found: Trajectories) -> None:
    """Write the figure and the table into the folder."""
    values = found.scores.values()
    alignment, uniformity = (np.array([scores[name] for scores in values]) for name in ("alignment", "uniformity"))
    title = f"{found.model} at t = {found.timestep}, {found.num_images:,} images"
    draw(alignment, uniformity, list(found.scores), found.blocks, title, found.folder / "trajectories.png")
    write_csv(found.folder / "trajectories.csv", found.table, FLOATS)


def estimate(config: LabelFreeRanking) -> str:
    """What following the training will cost."""
    steps, setup = set_up_last(config)
    passes = num_passes(setup.task, config.num_images) * (1 + (len(steps) - 1) / len(setup.task.space.timesteps))
    return cost.estimate(*setup, passes, passes)


def set_up_last(config: LabelFreeRanking) -> tuple[dict[int, Path], Setup]:
    """(step -> snapshot, the last of them as set_up has it)."""
    check(config)
    steps = snapshots(Path(config.backbone), config.every)
    return steps, set_up(replace(config, backbone=str(steps[max(steps)])))


def snapshots(folder: Path, every: int) -> dict[int, Path]:
    """step -> the snapshot's folder, in order, of those whose step is a multiple of `every`."""
    found = sorted((int(path.name[5:]), path) for path in folder.glob("step-*") if path.name[5:].isdigit())
    chosen = {step: path for step, path in found if step % every == 0}
    if not chosen:
        has = ", ".join(path.name for _, path in found) or "none"
        raise ValueError(
            f"every={every} fits none of the snapshots in {folder} ({has}); pretrain.py --snapshot-every makes them"
        )
    return chosen
