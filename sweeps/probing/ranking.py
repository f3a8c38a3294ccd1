"""The label-free scores of every site of a network, ranked, or followed along the snapshots of a training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddae.label_free import CONSENSUS, LABELLED, MIN_IMAGES, SCORES
from ddae.report.figures import heat_map
from ddae.report.training import trajectories as draw
from sweeps.cli import aligned
from sweeps.findings.folder import RESULTS, answered, attempt, write_results
from sweeps.findings.table import formatted, write_csv
from sweeps.flags import check_numbers
from sweeps.label_free import LabelFreeRanking
from sweeps.probing import cost
from sweeps.probing.plan import Setup, set_up
from sweeps.probing.screening import LabelFree
from sweeps.probing.space import Space
from sweeps.probing.sweep import ProbeSweep, open_pool
from sweeps.probing.task import ProbeTask
from sweeps.probing.text import how_sure
from sweeps.search.task import Value

FLOATS = ".4g"
NEAR = "within 0.5 points of the best site on 3 of 8 pairs of network and images, within 1.0 on 6 (docs/label-free.md)"
"""What was measured of the ranking's first choice without labels."""
DECIDED, RIVAL = 0.75, 0.05
"""Shares of the resamples in which a site is first: below the one it may not be the best, from the other it may be."""


class Choice(NamedTuple):
    """What one score alone would choose."""

    block: str
    timestep: int


@dataclass(frozen=True)
class Ranking:
    space: Space
    scores: LabelFree
    num_images: int
    num_labels: int
    folder: Path
    incomplete: str = ""
    """Why the figure could not be drawn, if so."""

    @property
    def sites(self) -> list[tuple[str, int]]:
        """Every (block, timestep), best first."""
        return self.space.ranked(self.scores.ranking)

    @property
    def table(self) -> list[dict[str, Value]]:
        """One row a site, best first; pandas.DataFrame takes it."""
        columns, sure = {**self.scores.scores, "ranking": self.scores.ranking}, self.scores.confidence
        rows: list[dict[str, Value]] = []
        for block, timestep in self.sites:
            at = self.space.position(block, timestep)
            row: dict[str, Value] = {"block": block, "timestep": timestep, "sigma": self.space.sigmas[timestep]}
            row |= {name: float(values[at]) for name, values in columns.items()}
            row["ranks_first"] = float(sure.ranks_first[at])
            rows.append(row | {name: int(getattr(sure, name)[at]) for name in ("best_rank", "worst_rank")})
        return rows

    @property
    def choices(self) -> dict[str, Choice]:
        """Score -> what it alone would choose; consensus is the ranking."""
        return {name: Choice(*self.space.ranked(merit)[0]) for name, merit in self.scores.merits.items()}

    @property
    def text(self) -> str:
        """The first ten sites and the choice of every score, as a person reads them."""
        alone = [("score", "its first choice")]
        alone += [(name, f"{choice.block}/{choice.timestep}") for name, choice in self.choices.items()]
        labels = "no label was read"
        if self.num_labels:
            joins = ", ".join(name for name in CONSENSUS if name in LABELLED)
            labels = f"{', '.join(LABELLED)} saw the first {self.num_labels} labels, and {joins} joins the ranking"
        draws = "in two noise draws" if self.space.has_noise else "as they are, and flipped and cropped"
        return "\n".join(
            [
                *table_text(self.table[:10]),
                "",
                *aligned(alone),
                "",
                f"how sure  {self.how_sure}",
                f"how near  its first choice was {NEAR}",
                f"images    {self.num_images:,} of the training images {draws}; {labels}",
                f"heat map  {self.folder / 'label_free.png'}",
                f"table     {self.folder / 'label_free.csv'}",
                f"results   {self.folder / RESULTS}",
            ]
        )

    @property
    def how_sure(self) -> str:
        sure = self.scores.confidence
        says, rivals = (
            how_sure(sure, self.space, self.sites[0], self.num_images),
            int((sure.ranks_first >= RIVAL).sum()),
        )
        if sure.ranks_first[self.space.position(*self.sites[0])] >= DECIDED:
            return says
        more = "a larger --num-images tells them apart, and 100 labels (--num-labels) may choose better"
        return f"{says}; {rivals} sites are first in 5 % or more: {more}"

    @property
    def results(self) -> dict[str, Any]:
        """All numbers, for results.json; tables are [blocks][timesteps]."""
        return {
            "task": "label-free",
            "blocks": list(self.space.block_names),
            "sigmas": dict(self.space.sigmas),
            "num_images": self.num_images,
            "num_labels": self.num_labels,
            "first": Choice(*self.sites[0])._asdict(),
            "choices": {name: choice._asdict() for name, choice in self.choices.items()},
            **self.scores.as_json(),
        }


@dataclass(frozen=True)
class Trajectories:
    timestep: int
    """The timestep at which the scores are taken."""
    blocks: tuple[str, ...]
    scores: Mapping[int, Mapping[str, np.ndarray]]
    """step -> score -> value of each block, [blocks]; the last step last."""
    num_images: int
    folder: Path
    incomplete: str = ""
    """Why the figure could not be drawn, if so."""

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


def rank(config: LabelFreeRanking) -> Ranking:
    """Measure the scores of every site, and write the heat map and the table. Raises ValueError for a wrong flag."""
    _, (task, _, _) = checked_set_up(config)
    folder = folder_of(config, task)
    num_images, num_labels = (min(number, task.num_train) for number in (config.num_images, config.num_labels))
    names = names_of(config)
    with open_pool(config, task.source, folder) as pool:
        sweep = ProbeSweep(task, pool, num_passes(task, num_images, names))
        scores = sweep.label_free(num_images, num_labels, names)
    ranking = Ranking(task.space, scores, num_images, num_labels, folder)
    title = f"ranking with {num_labels:,} labels" if num_labels else "label-free ranking"
    title += f" on {num_images:,} images   * its first"
    space, label, path = task.space, "ranking, higher is better", folder / "label_free.png"
    with answered(ranking.text):
        write_csv(folder / "label_free.csv", ranking.table, FLOATS)
        write_results(folder, ranking.results)
    show = partial(heat_map, scores.ranking, space.block_names, space.sigmas, label, title, star=ranking.sites[0])
    return replace(ranking, incomplete=attempt(path, show))


def follow(config: LabelFreeRanking) -> Trajectories:
    """Measure the scores of every snapshot at one timestep, the best of the last snapshot, and write figure and table.

    Raises ValueError for a wrong flag, and where there is no snapshot.
    """
    steps, (task, _, _) = checked_set_up(config)
    num_images = min(config.num_images, task.num_train)
    folder = folder_of(config, task, f"every-{config.every}-")
    scores, names = {}, names_of(config)
    with open_pool(config, task.source, folder) as pool:
        ranked = ProbeSweep(task, pool, num_passes(task, num_images)).label_free(num_images, names=names)
        [(_, timestep), *_] = task.space.ranked(ranked.ranking)
        for step, snapshot in steps.items():
            at_step, _, _ = set_up(replace(config, backbone=str(snapshot), timesteps=(timestep,)))
            found = ProbeSweep(at_step, pool, num_passes(at_step, num_images)).label_free(num_images, names=names)
            scores[step] = {name: table[:, 0] for name, table in found.scores.items()}
    trajectories = Trajectories(timestep, task.space.block_names, scores, num_images, folder)
    alignment, uniformity = (np.array([of[name] for of in scores.values()]) for name in ("alignment", "uniformity"))
    title = f"{Path(config.backbone).name} at t = {timestep}, {num_images:,} images"
    with answered(trajectories.text):
        write_csv(folder / "trajectories.csv", trajectories.table, FLOATS)
    show = partial(draw, alignment, uniformity, list(scores), trajectories.blocks, title)
    return replace(trajectories, incomplete=attempt(folder / "trajectories.png", show))


def estimate(config: LabelFreeRanking) -> str:
    """What the ranking, or following the training, will cost."""
    steps, setup = checked_set_up(config)
    others = max(0, len(steps) - 1) / len(setup.task.space.timesteps)
    passes = num_passes(setup.task, config.num_images, names_of(config)) * (1 + others)
    return cost.estimate(*setup, passes, passes, min(config.num_images, setup.task.num_train))


def checked_set_up(config: LabelFreeRanking) -> tuple[dict[int, Path], Setup]:
    """(step -> snapshot, none where no training is followed; the last of them, or the network itself)."""
    check(config)
    steps = snapshots(Path(config.backbone), config.every) if config.every else {}
    return steps, set_up(replace(config, backbone=str(steps[max(steps)])) if steps else config)


def check(config: LabelFreeRanking) -> None:
    """Raises ValueError for a number of images, labels or steps that no ranking can be made of."""
    least, most = 2 * MIN_IMAGES, 10**9
    check_numbers(config, num_images=(least, most), num_labels=(0, most), every=(0, most))
    if config.num_labels > config.num_images:
        raise ValueError(
            f"num_labels={config.num_labels} must be 0 or more, and {config.num_images} at most, which is num_images; "
            "raise that as well"
        )
    if 0 < config.num_labels < least:
        raise ValueError(f"num_labels={config.num_labels} must be {least} or more, or 0 for none")


def names_of(config: LabelFreeRanking) -> tuple[str, ...]:
    """The scores that are computed: those that the ranking sums, or all; with labels those that want some."""
    labelled = tuple(LABELLED) if config.num_labels else ()
    known = SCORES if config.scores == "all" else [name for name in CONSENSUS if name in SCORES]
    return (*known, *labelled)


def num_passes(task: ProbeTask, num_images: int, names: Sequence[str] = CONSENSUS) -> float:
    """Full forward passes of one image that the scores of one network need."""
    draws = cost.draws_of(task, names, num_images)
    return task.space.forward_passes(need for each in draws for need in each.values())


def folder_of(config: LabelFreeRanking, task: ProbeTask, kind: str = "") -> Path:
    return config.out / f"label-free-{kind}{task.source.folder().rpartition('/')[2]}"


def table_text(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as aligned lines under their names."""
    return aligned([list(rows[0]), *(list(formatted(row, FLOATS).values()) for row in rows)])


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
