"""How a sweep grows: with its nodes, and with its trials.

python benchmarks/scale.py nodes         # 1, 2, 4 and 8 simulated nodes; half an hour
python benchmarks/scale.py trials        # 10,000 trials in one search

nodes: Ray nodes on this machine with a GPU each that Ray is told of, half of it for passes and half for fits. A forward
pass sleeps for as long as one of ADM would take a GPU, the ridge regression of screening for as long as it was measured
to take, and the fit of a trial for a second, so that two cores do for eight nodes: what is measured is scheduling. All
else is as in a sweep, from the images to the shards, the trials of Ray Tune and the ledger.

trials: each returns at once, so that what is measured is the driver: the search, Tune, the ledger, and the table of
progress.
"""

import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import record
import torch
import tyro
from matplotlib.figure import Figure
from ray.cluster_utils import Cluster
from torch import Tensor
from toy import Toy, stands_ready, toy_space

from ddae.backbones import Backbone
from ddae.backbones.base import Reduce
from ddae.ridge import leave_one_out
from sweeps.cluster.given import FOR_FITS
from sweeps.cluster.pool import Pool
from sweeps.cluster.session import ray_session
from sweeps.cluster.tune import Run
from sweeps.driver import run_searches
from sweeps.layer_noise import LayerNoise
from sweeps.probing import filling
from sweeps.probing.extractor import Extracted, opened
from sweeps.probing.plan import rules_for, set_up_search
from sweeps.probing.source import FeatureSource, Need
from sweeps.probing.space import Cell
from sweeps.probing.sweep import ProbeSweep
from sweeps.probing.task import SCREENED_FEATURES, ProbeTask
from sweeps.progress import Progress
from sweeps.search.halving import MIN_ROUND_SIZE, HalvingSearch
from sweeps.search.task import Checkpoint, Fit, Result


@dataclass(frozen=True)
class Nodes:
    """Seconds of screening and of search on every number of nodes, and their efficiency: so many times the first's."""

    counts: tuple[int, ...] = (1, 2, 4, 8)
    num_timesteps: int = 64
    pass_ms: float = 18
    """Of one image: ADM's at 256 pixels on an A100, by docs/scale.md."""
    blocks: tuple[str, ...] = ("mid", "up.1.0", "up.3.1")
    finalists: int = 8
    """Timesteps at which cells are tried."""
    num_trials: int = 400
    round_size: int = 80
    """Five times the fits that run at once on eight nodes."""
    fit_seconds: float = 1.0
    """Of a fit on the most images; on fewer it takes so much less."""


class SleepingBackbone(Backbone):
    """Its passes take their time, and no work."""

    pass_seconds: float
    """Of one image."""

    def activations(
        self, x0: Tensor, noise: Tensor, timestep: int, blocks: Sequence[str], reduce: Reduce = lambda map: map
    ) -> dict[str, Tensor]:
        chosen = [block for block in self.blocks if block.name in blocks]
        time.sleep(self.pass_seconds * len(x0) * chosen[-1].flops_share)
        return {
            block.name: reduce(torch.full((1, block.channels, block.size, block.size), 0.5)).expand(len(x0), -1)
            for block in chosen
        }


def extract_asleep(pass_seconds: float, source: FeatureSource, *shard: Any) -> Extracted:
    extractor = opened(source)
    extractor.backbone.__class__, extractor.backbone.pass_seconds = SleepingBackbone, pass_seconds
    return extractor.extract(*shard)


def screen_asleep(
    ridge_seconds: dict[int, float], source: FeatureSource, need: Need, poolings: tuple[int, ...]
) -> tuple[np.ndarray, float]:
    """All sites are alike."""
    seconds = ridge_seconds[need.num_images]
    time.sleep(seconds)
    return np.arange(need.num_images) % 2 == 0, seconds


@dataclass(frozen=True)
class FitsAsleep(ProbeTask):
    """Its fits take their time, and no work; how good a cell is follows from its name."""

    fit_seconds: float = 0.0

    def run(self, cells: Sequence[Cell], rung: int, checkpoints: Sequence[Checkpoint]) -> Iterator[Result]:
        for cell in cells:
            started = time.time()
            time.sleep(self.fit_seconds * rung / self.rungs[-1])
            accuracy = 0.5 + 0.4 * random.Random(cell.name).random()
            yield Result({"val_accuracy": accuracy}, {}, started, time.time())


def nodes(config: Nodes) -> None:
    timesteps = tuple(range(0, 10 * config.num_timesteps, 10))
    sweep = LayerNoise(
        timesteps=timesteps, blocks=config.blocks, finalists=config.finalists, num_trials=config.num_trials,
        round_size=config.round_size, heads=("linear", "logistic", "ridge", "mlp"), device="cpu",
    )  # fmt: skip
    ridge_seconds = time_ridge(sweep)
    filling.extract_shard = partial(extract_asleep, config.pass_ms / 1000)  # type: ignore[assignment]
    filling.screen = partial(screen_asleep, ridge_seconds)  # type: ignore[assignment]
    rows: dict[int, dict[str, float]] = {}
    for num_nodes in config.counts:
        rows[num_nodes] = sweep_on(num_nodes, sweep, config.fit_seconds)
        first = rows[config.counts[0]]
        for stage in ("screening", "search"):
            alone = first[f"{stage}_seconds"] * config.counts[0]
            rows[num_nodes][f"{stage}_efficiency"] = alone / (rows[num_nodes][f"{stage}_seconds"] * num_nodes)
        print(f"{num_nodes} nodes: " + ", ".join(f"{k} {v:.2f}" for k, v in rows[num_nodes].items()), flush=True)
    record.write("scale_nodes", {"pass_ms": config.pass_ms, "ridge_seconds": ridge_seconds, "nodes": rows})


def time_ridge(config: LayerNoise) -> dict[int, float]:
    """Number of images -> seconds of ridge on the most numbers an image that screening takes."""
    torch.set_num_threads(1)
    task = set_up_search(config).task
    seconds = {}
    for num_images in rules_for(config, task).rounds:
        features, labels = torch.randn(num_images, SCREENED_FEATURES, 1, 1), torch.arange(num_images) % task.num_classes
        started = time.perf_counter()
        leave_one_out(features, labels, task.num_classes)
        seconds[num_images] = time.perf_counter() - started
    return seconds


def load(source: FeatureSource) -> None:
    """Reads network and images, which on nodes of their own would take no core of the others."""
    opened(source)
    time.sleep(10)  # until each worker has been given one


def sweep_on(num_nodes: int, config: LayerNoise, fit_seconds: float) -> dict[str, float]:
    """Seconds of a sweep's screening and search on so many nodes, whose workers have started and read the network."""
    node = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(num_nodes - 1):
        cluster.add_node(**node)
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        with tempfile.TemporaryDirectory() as store, ray_session():
            found = set_up_search(replace(config, store=store)).task
            parts = {each.name: getattr(found, each.name) for each in fields(ProbeTask) if each.init}
            task = FitsAsleep(**parts | {"gpus_per_fit": 0.25}, fit_seconds=fit_seconds)
            with Pool("cuda", left=FOR_FITS) as pool:
                while pool.num_ready < num_nodes:
                    time.sleep(0.1)
                wait([pool.submit(load, task.source) for _ in range(num_nodes)])
                began, sweep = time.perf_counter(), ProbeSweep(task, pool, least_passes=0)
                screening = sweep.screen(rules_for(config, task))
                screened = time.perf_counter()
                seconds = search_in(sweep, replace(task, sites=screening.sites), config)
    finally:
        cluster.shutdown()
    num_images = sum({need.timestep: need.num_images for need in screening.needs}.values())
    return {
        "screening_seconds": screened - began,
        "images_a_second": num_images / (screened - began),
        "search_seconds": seconds,
    }


def search_in(sweep: ProbeSweep, task: ProbeTask, config: LayerNoise) -> float:
    """Seconds from the end of the first round, in which the trials' processes start, to that of the last whole one."""
    size = config.round_size or MIN_ROUND_SIZE
    halving, meter = HalvingSearch(task, config.num_trials, config.search, config.seed, size), Meter(size)

    def prepare(fit: Fit, lost: bool) -> Future:
        return sweep.pool.run(sweep.filling.fill(task.needs(*fit), lost))

    run_searches([Run(halving, task.source.store, prepare)], NoTracker(), meter, [])  # type: ignore[arg-type]
    return meter.points[-1]["seconds"] - meter.points[1]["seconds"]


@dataclass(frozen=True)
class Trials:
    """The driver's memory, and what a trial takes of its time, against the number of trials."""

    num_trials: int = 10_000
    search: Literal["optuna", "random", "grid"] = "optuna"
    round_size: int = 16
    num_points: int = 20
    """Of each curve."""


SPACE = toy_space(num_blocks=37, timesteps=range(0, 1000, 20))
"""The cells of a model of 37 blocks, as ADM, at fifty timesteps: 11,100."""


class Meter(Progress):
    """The table of progress, and what the driver is after every so many trials."""

    def __init__(self, every: int):
        super().__init__(1, 1)
        self.every = every
        self.points: list[dict[str, float]] = []

    def trials(self, num_ended: int, num_trials: int, num_stopped: int, best: str) -> None:
        super().trials(num_ended, num_trials, num_stopped, best)
        if num_ended >= len(self.points) * self.every:
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            point = {"trials": num_ended, "resident_mb": resident / 1e6}
            self.points.append({**point, "seconds": time.time(), "cpu_seconds": time.process_time()})


class NoTracker:
    """MLflow is written in the background, and is not what is measured."""

    uri = ""

    def log_child(self, **child: object) -> None:
        pass

    def hurried(self) -> AbstractContextManager[None]:
        return nullcontext()


def trials(config: Trials) -> None:
    search = HalvingSearch(
        Toy(SPACE, (256, 1024)), config.num_trials, sampler=config.search, round_size=config.round_size
    )
    meter = Meter(config.num_trials // config.num_points)
    with tempfile.TemporaryDirectory() as store, ray_session():
        run_searches([Run(search, store, stands_ready)], NoTracker(), meter, [])  # type: ignore[arg-type]  # type: ignore[arg-type]
    rows = [
        {
            "trials": after["trials"],
            "resident_mb": after["resident_mb"],
            "ms": 1000 * (after["seconds"] - before["seconds"]) / (after["trials"] - before["trials"]),
            "driver_cpu_ms": 1000
            * (after["cpu_seconds"] - before["cpu_seconds"])
            / (after["trials"] - before["trials"]),
        }
        for before, after in pairwise(meter.points)
    ]
    print("trials, MB, ms a trial, of which the driver's CPU")
    for row in rows:
        print(*(f"{value:8.0f}" for value in row.values()))
    draw(rows, record.RESULTS / "scale_trials.png")
    record.write("scale_trials", {"points": rows})


def draw(rows: list[dict[str, float]], path: Path) -> None:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    count = [row["trials"] for row in rows]
    above.plot(count, [row["resident_mb"] for row in rows])
    above.set(ylabel="driver's memory (MB)", ylim=(0, 1.2 * max(row["resident_mb"] for row in rows)))
    below.plot(count, [row["ms"] for row in rows], label="wall")
    below.plot(count, [row["driver_cpu_ms"] for row in rows], label="the driver's CPU")
    below.set(xlabel="trials", ylabel="ms a trial", ylim=(0, None))
    below.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    config: Nodes | Trials = tyro.cli(Nodes | Trials, description=__doc__)  # type: ignore[arg-type]
    nodes(config) if isinstance(config, Nodes) else trials(config)
