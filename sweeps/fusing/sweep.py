"""A fusing sweep from its flags to its findings."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ddae.backbones import Backbone
from ddae.datasets import Dataset
from ddae.fusion import Members, at_timesteps, name_of
from ddae.heads import FUSIONS, HEADS, expand, find_head
from storage.ledger import content_key
from storage.tracking import Tracker
from sweeps.cluster.given import FOR_FITS, address
from sweeps.cluster.pool import Pool
from sweeps.driver import open_run
from sweeps.findings.folder import named, newest_sweep, read_results
from sweeps.findings.logged import finished_report, incomplete
from sweeps.flags import as_flags, check_numbers
from sweeps.fuse import Fuse
from sweeps.fusing.findings import Findings, choose, compare
from sweeps.fusing.publish import publish, report
from sweeps.fusing.selection import Path as Joined
from sweeps.fusing.selection import all_of, select_paths, sets_of, worthwhile_of
from sweeps.fusing.task import FusedCell, FusionTask
from sweeps.probing.cost import memory
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
NUM_HEADS = 2
"""Under how many heads sets of each number of timesteps are fitted on all images."""


@dataclass(frozen=True)
class Setup:
    config: Fuse
    fused: Path
    """Folder of the sweep whose features are fused."""
    backbone: Backbone
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
    single, (task, backbone, dataset) = answer_cell(folder), recorded(folder, config.memory, here=not address())
    ranked = [timestep for _, timestep in results["left"]]
    looked_at = [t for round in reversed(list(results["timesteps_at"].values())) for t in round]
    timesteps = list(dict.fromkeys([single.timestep, *ranked, *looked_at, *task.space.timesteps]))[: config.max_passes]
    if len(timesteps) == 1 and len(task.space.blocks) == 1:
        raise ValueError(f"--sweep {folder} has one block at one timestep, and there is nothing to fuse")
    check_heads(config, task)
    config, num_images = replace(config, sweep=folder.absolute()), min(task.rungs[-1], MOST_IMAGES)
    setup = Setup(config, folder, backbone, dataset, task, single, tuple(timesteps), num_images)
    check_memory(setup)
    return setup


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


def check_memory(setup: Setup) -> None:
    """Raises ValueError where a head has too little memory for all blocks at all timesteps."""
    if address():
        return
    for cell in largest(setup).cells:
        try:
            setup.probing.check_memory(cell, setup.probing.num_train)
        except ValueError as error:
            raise ValueError(
                f"{cell.head} on {len(cell.members)} features at {cell.pooling}x{cell.pooling}: {error}"
            ) from error


def largest(setup: Setup) -> FusionTask:
    """The task of trying the set of all features."""
    blocks = [block.name for block in setup.probing.space.blocks if block.size >= setup.pooling]
    return setup.task([tuple((block, timestep) for timestep in setup.timesteps for block in blocks)])


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
            f"memory a fit  {memory(task, largest(setup).cells)}",
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
        """Try sets, poolings and heads; first what selection found worthwhile and all blocks, under each head in turn,
        at the pooling of the sweep's answer."""
        setup, num_trials = self.setup, self.setup.config.num_trials
        task = setup.task(sets_of(self.task, paths, setup.pooling))
        sets = {
            name_of(members): min(setup.single.pooling, *(self.task.space.block(block).size for block, _ in members))
            for path in paths
            for members in (worthwhile_of(self.task, path), all_of(self.task, path, setup.pooling))
        }
        cells = [cell for cell in task.cells if sets.get(cell.fused) == cell.pooling]
        first = sorted(cells, key=lambda cell: (task.heads.index(cell.head), list(sets).index(cell.fused)))
        halving = HalvingSearch(task, num_trials, round_size=setup.round_size, first=first[: num_trials // 2])
        return self.run(halving, self.tracker, "search")

    def fit_best(self, trials: Sequence[Trial]) -> list[Trial]:
        """The sweep's answer and the best sets of each number of timesteps, each under another head, on all images: a
        head that is ahead on a part of them may be behind on all."""
        finished = [trial for trial in trials if trial.state == "finished"]
        best: dict[int, dict[str, FusedCell]] = {}
        for trial in sorted(finished, key=lambda trial: -trial.last.metrics[f"val_{self.task.metric}"]):
            heads = best.setdefault(len(at_timesteps(trial.cell.members)), {})
            if len(heads) < NUM_HEADS:
                heads.setdefault(trial.cell.head, trial.cell)
        sets = [cell for _, heads in sorted(best.items()) for cell in heads.values()]
        searches = [self._on_all_images(self.setup.single), *map(self._on_all_images, sets)]
        return [trial for [trial] in self.run_all(searches, self.tracker, "the best on all images")]

    def _on_all_images(self, cell: Cell | FusedCell) -> HalvingSearch:
        task = self.task if isinstance(cell, Cell) else self.setup.task([cell.members])
        return HalvingSearch(task.on_all_images(cell), 1, "grid", cells=[cell])

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
