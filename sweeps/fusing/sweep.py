"""A fusing sweep from its flags to its findings."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ddae.datasets import Dataset
from ddae.fusion import Members, name_of
from ddae.heads import FUSIONS, HEADS, expand, find_head
from storage.ledger import content_key
from storage.tracking import Tracker
from sweeps.cluster.pool import FOR_FITS, Pool
from sweeps.driver import open_run
from sweeps.findings.folder import named, newest_sweep, read_results
from sweeps.findings.logged import finished_report, incomplete
from sweeps.flags import as_flags, check_numbers
from sweeps.fuse import Fuse
from sweeps.fusing.findings import Findings, choose, compare
from sweeps.fusing.publish import publish, report
from sweeps.fusing.selection import Path as Joined
from sweeps.fusing.selection import first_of, select_paths, sets_of
from sweeps.fusing.task import FusedCell, FusionTask
from sweeps.probing.refit import answer_cell, recorded
from sweeps.probing.source import Need
from sweeps.probing.space import Cell
from sweeps.probing.sweep import ProbeSweep
from sweeps.probing.task import ProbeTask
from sweeps.search.halving import HalvingSearch, plan_round_size
from sweeps.search.task import Trial

__all__ = ["estimate", "finished_report", "incomplete", "open_sweep", "report", "set_up"]

COLUMNS = "fused", "pooling", "head", "num_blocks", "passes", "num_features", "num_images"
"""Params of a trial that MLflow's page of trials shows."""
MOST_IMAGES = 1500
"""On which features are selected: a Gram matrix is as large as their number squared."""
NUM_FIRST = 8
"""Cells that selection proposes, before Optuna does."""


@dataclass(frozen=True)
class Setup:
    config: Fuse
    fused: Path
    """Folder of the sweep whose features are fused."""
    dataset: Dataset
    probing: ProbeTask
    """Its task."""
    single: Cell
    """Its answer."""
    timesteps: tuple[int, ...]
    """Those that may be read, best first."""
    num_images: int
    """On which features are selected."""

    @property
    def folder(self) -> Path:
        """out/fuse-<hash of all that decides the trials, but for how many there are>."""
        task = self.task((self.single.members,))
        key = content_key(
            trials=[task.key(cell, rung) for cell in task.cells for rung in task.rungs],
            single=self.single.name,
            selected=(self.timesteps, self.num_images, self.pooling, self.config.max_blocks),
            round_size=self.round_size,
        )
        return self.config.out / f"fuse-{key[:8]}"

    @property
    def pooling(self) -> int:
        """At which features are selected."""
        poolings = self.probing.space.poolings
        return 2 if 2 in poolings else poolings[0]

    @property
    def round_size(self) -> int:
        return plan_round_size("optuna", self.config.num_trials, self.config.num_trials)

    def task(self, sets: Sequence[Members]) -> FusionTask:
        """The task of trying these sets."""
        kept = {each.name: getattr(self.probing, each.name) for each in fields(ProbeTask) if each.init}
        sites: dict[int, tuple[str, ...]] = {}
        for block, timestep in dict.fromkeys(member for members in sets for member in members):
            sites[timestep] = (*sites.get(timestep, ()), block)
        heads = expand(self.config.heads, HEADS | FUSIONS)
        return FusionTask(**kept | {"name": FusionTask.name, "sites": sites}, sets=tuple(sets), heads=heads)


def set_up(config: Fuse) -> Setup:
    """Load what the sweep has recorded. Raises ValueError for what cannot be fused."""
    check_numbers(config, max_passes=(1, 100), max_blocks=(2, 100), num_trials=(1, 10**6))
    if not config.heads:
        raise ValueError("--heads is empty; give at least one, or leave the flag out for the default")
    expand(config.heads, HEADS | FUSIONS)
    folder = named(config.sweep) if config.sweep else newest_sweep(config.out, "layer-noise")
    results = read_results(folder)
    if results["task"] != "layer-noise":
        raise ValueError(f"--sweep {folder} is a sweep of {results['task']}; give one of layer_noise.py")
    single, (task, _, dataset) = answer_cell(folder), recorded(folder)
    ranked = [timestep for _, timestep in results["left"]]
    looked_at = [t for round in reversed(list(results["timesteps_at"].values())) for t in round]
    timesteps = list(dict.fromkeys([single.timestep, *ranked, *looked_at, *task.space.timesteps]))[: config.max_passes]
    if len(timesteps) == 1 and len(task.space.blocks) == 1:
        raise ValueError(f"--sweep {folder} has one block at one timestep, and there is nothing to fuse")
    check_heads(config, task)
    config, num_images = replace(config, sweep=folder.absolute()), min(task.rungs[-1], MOST_IMAGES)
    return Setup(config, folder, dataset, task, single, tuple(timesteps), num_images)


def check_heads(config: Fuse, task: ProbeTask) -> None:
    """Raises ValueError for a head that cannot read what the sweep has."""
    largest = max(task.space.poolings)
    for name in expand(config.heads, HEADS | FUSIONS):
        head, _ = find_head(name, [1])
        if head.min_grid > largest:
            raise ValueError(f"head={name!r} wants a pooling of {head.min_grid} or more, and the sweep has {largest}")
        if name.startswith("stacked") and task.views > 1:
            raise ValueError(
                f"head={name!r} leaves out each image once, and the sweep has views={task.views} of it; leave it out "
                "of --heads"
            )


def estimate(setup: Setup) -> str:
    """What it costs at most."""
    task, num_timesteps = setup.probing, len(setup.timesteps)
    num_search = task.rungs[-1] + len(task.val_labels())
    deepest = task.space.pass_share(task.space.block_names)
    num_all = task.num_train + task.num_val
    return "\n".join(
        [
            f"sweep         {setup.fused}, whose answer is {setup.single.name}",
            f"timesteps     {', '.join(map(str, setup.timesteps))}; each is a forward pass an image",
            f"selection     on {setup.num_images:,} images, {len(task.space.blocks) * num_timesteps} features",
            f"trials        {setup.config.num_trials}, in rounds of {setup.round_size}",
            f"search        {num_search * deepest * num_timesteps:,.0f} forward passes at most; what the store has "
            "costs none",
            f"final fits    {num_all * deepest * num_timesteps:,.0f} at most",
        ]
    )


class FuseSweep(ProbeSweep):
    def __init__(self, setup: Setup, pool: Pool, tracker: Tracker, started_seconds: float):
        super().__init__(setup.probing, pool, least_passes=0)
        self.setup, self.tracker, self.started_seconds = setup, tracker, started_seconds

    def select(self) -> tuple[Joined, ...]:
        """Which features go together, with one timestep, with two, and so on."""
        setup, blocks = self.setup, self.task.space.block_names
        self.fill([Need(timestep, "train", setup.num_images, blocks) for timestep in setup.timesteps])
        self.progress.stage("select features")
        args = setup.timesteps, setup.pooling, setup.num_images, setup.config.max_blocks
        with self.progress:
            return self.pool.submit(select_paths, self.task, *args).result()

    def search(self, paths: Sequence[Joined]) -> tuple[Trial, ...]:
        """Try sets, poolings and heads; first some of the sets that selection found worthwhile."""
        config, pooling = self.setup.config, self.setup.pooling
        task = self.setup.task(sets_of(self.task, paths, pooling))
        sets = [name_of(first_of(self.task, path, max(2, path.num_worthwhile))) for path in paths]
        first = [cell for cell in task.cells if cell.fused in sets and cell.pooling == pooling]
        halving = HalvingSearch(task, config.num_trials, round_size=self.setup.round_size, first=first[:NUM_FIRST])
        return self.run(halving, self.tracker, "search")

    def fit_best(self, trials: Sequence[Trial]) -> list[Trial]:
        """The sweep's answer and the best set of each number of timesteps, on all images."""
        finished = [trial for trial in trials if trial.state == "finished"]
        best: dict[int, FusedCell] = {}
        for trial in sorted(finished, key=lambda trial: trial.last.metrics[f"val_{self.task.metric}"]):
            best[len({timestep for _, timestep in trial.cell.members})] = trial.cell
        cells: list[Cell | FusedCell] = [self.setup.single, *(best[count] for count in sorted(best))]
        return [self._fit_on_all(cell) for cell in cells]

    def _fit_on_all(self, cell: Cell | FusedCell) -> Trial:
        task = self.task if isinstance(cell, Cell) else self.setup.task([cell.members])
        halving = HalvingSearch(task.on_all_images(cell), 1, "grid", cells=[cell])
        [trial] = self.run(halving, self.tracker, f"{cell.name} on all images")
        return trial

    def conclude(self, paths: Sequence[Joined], trials: Sequence[Trial], fitted: Sequence[Trial]) -> Findings:
        setup = self.setup
        task = setup.task(sets_of(self.task, paths, setup.pooling))
        best = tuple(compare(task, trial, fitted[0]) for trial in fitted)
        found = Findings(
            task=task,
            tried=tuple(trials),
            paths=tuple(paths),
            best=best,
            answer=choose(task, best),
            folder=setup.folder,
            tracked=self.tracker.where,
            wall_seconds=time.time() - self.started_seconds,
            new_passes=self.new_passes,
        )
        publish(found, setup.config, self.tracker)
        return found


@contextmanager
def open_sweep(setup: Setup, started_seconds: float) -> Iterator[FuseSweep]:
    """The sweep on a running cluster, alone in its folder, open in MLflow, until the block ends."""
    source, task = setup.probing.source, setup.task((setup.single.members,))
    more = {"backbone_sha256": source.key.backbone, "fused_sweep": setup.fused.name}
    flags, left = as_flags(setup.config), FOR_FITS if task.gpus_per_fit else 0
    with (
        open_run(setup.folder, source.name, source.store, task, COLUMNS, flags, more) as tracker,
        Pool(source.settings.device, left=left) as pool,
    ):
        yield FuseSweep(setup, pool, tracker, started_seconds)
