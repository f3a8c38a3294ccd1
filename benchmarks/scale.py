"""How a sweep grows: with its nodes, and with its trials.

python benchmarks/scale.py nodes         # 1, 2, 4 and 8 simulated nodes
python benchmarks/scale.py trials        # 10,000 trials in one search

nodes: Ray nodes of one CPU each on this machine. A forward pass sleeps for as long as it was measured to take, and so
does a look, so that two cores do for eight nodes; all else is as in a sweep, from the images to the shards.

trials: each returns at once, so that what is measured is the driver: the search, Tune, and the table of progress.
"""

import json
import os
import random
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import record
import torch
import tyro
from matplotlib.figure import Figure
from ray import tune
from ray.cluster_utils import Cluster
from torch import Tensor

from ddae.backbones import Backbone, Block
from ddae.backbones.base import Reduce
from ddae.screening import leave_one_out
from sweeps.layer_noise import LayerNoise
from sweeps.tuning import extraction
from sweeps.tuning.evaluation import LOOK_FEATURES
from sweeps.tuning.extractor import Extractor
from sweeps.tuning.plan import Plan
from sweeps.tuning.progress import Progress
from sweeps.tuning.run import Sweep, Watch, num_slots, ray_cluster, tune_fits
from sweeps.tuning.searcher import HalvingSearch, TuneSearcher
from sweeps.tuning.space import Need, Space


@dataclass(frozen=True)
class Nodes:
    """Images a second on every number of nodes, and their share of so many times those on the first."""

    counts: tuple[int, ...] = (1, 2, 4, 8)
    num_timesteps: int = 64
    blocks: tuple[str, ...] = ("mid", "up.1.0", "up.3.1")


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


class SleepingExtractor(Extractor):
    ridge_seconds: dict[int, float]
    """Number of images -> of one look."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.backbone.__class__ = SleepingBackbone

    def look(self, need: Need) -> np.ndarray:
        """All places are alike."""
        time.sleep(self.ridge_seconds[need.num_images])
        return np.arange(need.num_images) % 2 == 0


def nodes(config: Nodes) -> None:
    timesteps = tuple(range(0, 10 * config.num_timesteps, 10))
    sweep = LayerNoise(timesteps=timesteps, blocks=config.blocks, device="cpu")
    measured = json.loads((record.RESULTS / "extraction.json").read_text())["results"]
    SleepingBackbone.pass_seconds = measured["float32: bare forward"]["milliseconds_an_image"] / 1000
    SleepingExtractor.ridge_seconds = time_looks(sweep.plan()[0])
    extraction.Extractor = SleepingExtractor  # type: ignore[misc]
    rows: dict[int, dict[str, float]] = {}
    for num_nodes in config.counts:
        seconds, num_images = look_on(num_nodes, sweep)
        rows[num_nodes] = {"seconds": seconds, "images_a_second": num_images / seconds}
        first = rows[config.counts[0]]["seconds"] * config.counts[0]
        rows[num_nodes]["efficiency"] = first / (seconds * num_nodes)
        print(
            f"{num_nodes} nodes: {num_images / seconds:6.0f} images/s, {rows[num_nodes]['efficiency']:.2f}", flush=True
        )
    results = {"pass_ms": 1000 * SleepingBackbone.pass_seconds, "ridge_seconds": SleepingExtractor.ridge_seconds}
    record.write("scale_nodes", {**results, "nodes": rows})


def time_looks(plan: Plan) -> dict[int, float]:
    """Number of images -> seconds of ridge on the most numbers an image that a look takes."""
    torch.set_num_threads(1)
    seconds = {}
    for num_images in plan.looks:
        features, labels = torch.randn(num_images, LOOK_FEATURES, 1, 1), torch.arange(num_images) % plan.num_classes
        started = time.perf_counter()
        leave_one_out(features, labels, plan.num_classes)
        seconds[num_images] = time.perf_counter() - started
    return seconds


def look_on(num_nodes: int, config: LayerNoise) -> tuple[float, int]:
    """Seconds of a sweep's looks on so many nodes, whose actors have started, and the images that pass in them."""
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(num_nodes - 1):
        cluster.add_node(**node)
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        with tempfile.TemporaryDirectory() as store, ray_cluster():
            plan, _, _ = replace(config, store=store).plan()
            with Sweep(plan) as sweep:
                while sweep.extraction.num_ready < num_nodes:
                    time.sleep(0.1)
                started = time.perf_counter()
                race = sweep.look()
                seconds = time.perf_counter() - started
    finally:
        cluster.shutdown()
    return seconds, sum({need.timestep: need.num_images for need in race.needs(plan)}.values())


@dataclass(frozen=True)
class Trials:
    """The driver's memory, and what a trial takes of its time, against the number of trials."""

    num_trials: int = 10_000
    search: Literal["optuna", "random", "grid"] = "optuna"
    round_size: int = 16
    num_points: int = 20
    """Of each curve."""


SPACE = Space(
    blocks=tuple(Block(f"b{i}", i, "up", 512, 16, (i + 1) / 37) for i in range(37)),
    timesteps=tuple(range(0, 1000, 20)),
    poolings=(1, 2, 4),
    heads=("linear", "mlp"),
)
"""The cells of a model of 37 blocks, as ADM, at fifty timesteps: 11,100."""


class InstantTrial(tune.Trainable):
    def setup(self, config: dict) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict) -> bool:
        self.fit = dict(new_config)
        return True

    def step(self) -> dict:
        """Best at one block and timestep, with noise."""
        apart = abs(int(self.fit["block"][1:]) - 24) / 37 + abs(self.fit["timestep"] - 90) / 1000
        accuracy = 0.8 - 0.3 * apart + 0.02 * random.Random(str(self.fit)).random()
        now = time.time()
        told = {"lost": "", "mistake": "", "warnings": [], "fit_started": now, "fit_ended": now, "done": True}
        return {"val_accuracy": accuracy, **told}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing, as a sweep's trial."""


class Meter(Watch):
    """What the driver is after every so many trials."""

    def __init__(self, search: HalvingSearch, every: int):
        super().__init__(Progress(1, 1), search, log=lambda: None)
        self.every = every
        self.points: list[dict[str, float]] = []

    def update(self) -> None:
        super().update()
        if self.num_settled >= len(self.points) * self.every:
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            point = {"trials": self.num_settled, "resident_mb": resident / 1e6}
            self.points.append({**point, "seconds": time.time(), "cpu_seconds": time.process_time()})


def trials(config: Trials) -> None:
    round_size = config.round_size if config.search == "optuna" else None
    search = HalvingSearch(
        SPACE, SPACE.candidates, (256, 1024), config.num_trials, sampler=config.search, round_size=round_size
    )
    there: Future = Future()
    there.set_result(None)
    meter = Meter(search, config.num_trials // config.num_points)
    with ray_cluster(), meter.progress:
        meter.update()
        tune_fits(InstantTrial, TuneSearcher(search, lambda fit: None, lambda fit, lost: there, num_slots), meter)
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
