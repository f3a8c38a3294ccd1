"""Trains one network: in this process, or in several at once under Ray Train, which starts them and starts them again
when one dies."""

import math
import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.progress import Progress
from torch import distributed

from storage.files import published
from sweeps.cluster.beside import beside
from sweeps.cluster.given import address
from sweeps.cluster.loop import OnProgress, Trained, Training, TrainingProgress, is_one_of_several, run_loop
from sweeps.cluster.pool import MAX_DEATHS, Warnings, log
from sweeps.cluster.session import check_cluster, ray_session
from sweeps.search.task import Checkpoint

REPORT_SECONDS = 1.0
"""Between two reports of a training in other processes."""
PATIENCE_SECONDS = 60
"""How long the processes of a training may take to start before the command says that it waits for them."""


@dataclass(frozen=True)
class FileCheckpoint:
    """A checkpoint in one file, which appears whole or not at all."""

    path: Path

    def __post_init__(self) -> None:
        """An actor of a cluster that runs already reads and writes it, and begins relative paths elsewhere."""
        object.__setattr__(self, "path", self.path.absolute())

    def load(self) -> bytes | None:
        with suppress(FileNotFoundError):
            return self.path.read_bytes()
        return None

    def save(self, state: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with published(self.path) as part:
            part.write_bytes(state)

    def __str__(self) -> str:
        return str(self.path)


def train(
    training: Training,
    checkpoint: Checkpoint,
    device: str = "cpu",
    num_workers: int = 1,
    cpus_per_worker: int = 1,
    stop: int | None = None,
    every_steps: int = 250,
    every_seconds: float = math.inf,
    on_progress: OnProgress = lambda progress: None,
) -> Trained:
    """Train to the last step, or go on from the checkpoint; afterwards `training` holds the result in this process.

    One worker on this machine is this process: starting Ray would take longer than many a training. Several workers,
    or one of the cluster at RAY_ADDRESS, are started by Ray Train; each holds its CPUs, and a GPU where the device is
    cuda. The checkpoint is read and written on this machine alone.

    stop: train to this step, and save; the schedule stays that of num_steps. every_steps, every_seconds: what first
    asks for a checkpoint. on_progress: called in this process after every step, or once a second.
    Raises ValueError for a loss that is no number, and for a checkpoint that is damaged or of another recipe.
    """
    check_shares(training.batch_size, num_workers)
    if num_workers > 1 or address():
        check_cluster()
        resources = {"CPU": cpus_per_worker, "GPU": int(device.startswith("cuda"))}
        loop = {"stop": stop, "every_steps": every_steps, "every_seconds": every_seconds}
        with ray_session(), TemporaryDirectory() as unread:
            _train_in_workers(training, checkpoint, num_workers, resources, loop, unread, on_progress)
        device = device if torch.cuda.is_available() and not address() else "cpu"
    return run_loop(training, checkpoint, torch.device(device), stop, every_steps, every_seconds, on_progress)


def check_shares(batch_size: int, num_workers: int) -> None:
    """Raises ValueError where the workers cannot have equal shares of a batch."""
    if batch_size % num_workers:
        raise ValueError(
            f"batch_size={batch_size} cannot be shared evenly by num_workers={num_workers}; choose a multiple of it"
        )


def training_bar(bars: Progress, name: str, num_steps: int) -> OnProgress:
    """Add a bar for a training; what is returned moves it."""
    bar, begun = bars.add_task(name, total=num_steps, note=""), False

    def show(progress: TrainingProgress) -> None:
        nonlocal begun
        if not begun:  # what was trained before took no time
            bars.reset(bar, completed=progress.num_steps)
            begun = True
        note = f"loss {progress.loss:.4f}, {progress.images_per_second:,.0f} images/s"
        bars.update(bar, completed=progress.num_steps, note=note)

    return show


class Recorder:
    """An actor on the command's own machine, which keeps the checkpoint there and collects what the workers report."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint, self.warned = checkpoint, Warnings()
        self.reports: list[TrainingProgress] = []
        self.mistake: Exception | None = None

    def load(self) -> bytes | None:
        return self.checkpoint.load()

    def save(self, state: bytes) -> None:
        self.checkpoint.save(state)

    def report(self, progress: TrainingProgress) -> None:
        self.reports.append(progress)

    def fail(self, mistake: Exception) -> None:
        """Note what no new start mends."""
        self.mistake = self.mistake or mistake

    def failed(self) -> Exception | None:
        return self.mistake

    def drain(self) -> tuple[list[TrainingProgress], list[str]]:
        """What came since the last call, and what the store warned of."""
        reports, self.reports = self.reports, []
        return reports, self.warned.drain()


@dataclass
class RecorderClient:
    """What a worker uses in place of the checkpoint and of on_progress."""

    recorder: ray.actor.ActorHandle
    name: str
    reported_seconds: float = -math.inf
    latest: TrainingProgress | None = None
    """Not passed on yet."""

    def load(self) -> bytes | None:
        return ray.get(self.recorder.load.remote())

    def save(self, state: bytes) -> None:
        ray.get(self.recorder.save.remote(state))

    def report(self, progress: TrainingProgress) -> None:
        """Pass it on once a second, and whenever something was measured."""
        self.latest = progress
        if progress.metrics or time.monotonic() - self.reported_seconds >= REPORT_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.latest:
            ray.get(self.recorder.report.remote(self.latest))
            self.reported_seconds, self.latest = time.monotonic(), None

    def __str__(self) -> str:
        return self.name


def _train_in_workers(
    training: Training,
    checkpoint: Checkpoint,
    num_workers: int,
    resources: Mapping[str, float],
    loop: Mapping[str, Any],
    unread: str,
    on_progress: OnProgress,
) -> None:
    """unread: folder of Ray Train's own state, which nobody reads, because the checkpoint is what a rerun goes on
    from."""
    for name, each in resources.items():
        has = ray.cluster_resources().get(name, 0)
        if not address() and num_workers * each > has:
            raise ValueError(f"num_workers={num_workers} need a {name} each, and this machine has {has:g}; lower it")
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    recorder = ray.remote(Recorder).options(num_cpus=0, scheduling_strategy=here).remote(checkpoint)
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    trainer = TorchTrainer(
        _work,
        train_loop_config={"training": training, "recorder": RecorderClient(recorder, str(checkpoint)), **loop},
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=resources["GPU"] > 0, resources_per_worker=dict(resources)
        ),
        run_config=RunConfig(
            name="train",
            storage_path=unread,
            failure_config=FailureConfig(max_failures=MAX_DEATHS - 1, controller_failure_limit=3),
        ),
    )
    ended = beside(trainer.fit)  # Ray Train would take an interrupt for itself
    _follow(ended, recorder, num_workers, on_progress)
    if mistake := ray.get(recorder.failed.remote()):
        raise mistake
    try:
        ended.result()
    except TrainingFailedError as error:
        raise ValueError(f"the training's processes died {MAX_DEATHS} times; is there enough memory?") from error


def _follow(ended: Future, recorder: ray.actor.ActorHandle, num_workers: int, on_progress: OnProgress) -> None:
    """Pass on what the recorder collects, until the training has ended."""
    patience = time.monotonic() + PATIENCE_SECONDS
    while True:
        over = ended.done()
        reports, warnings = ray.get(recorder.drain.remote())
        for message in warnings:
            log.warning(message)
        for progress in reports:
            on_progress(progress)
        if over:
            return
        if reports:
            patience = math.inf
        if time.monotonic() > patience:
            log.warning(f"waiting for the cluster to have room for num_workers={num_workers}")
            patience = math.inf
        wait([ended], timeout=REPORT_SECONDS)


def _work(config: dict[str, Any]) -> None:
    """What each worker runs. After a mistake, which would come again, the others are ended as well, and the start that
    follows does nothing; a worker that dies, or loses the others because one of them died, is started again."""
    client: RecorderClient = config["recorder"]
    if ray.get(client.recorder.failed.remote()):
        return
    several = is_one_of_several()
    training, loop = config["training"], {name: config[name] for name in ("stop", "every_steps", "every_seconds")}
    try:
        run_loop(training, client, get_device(), on_progress=client.report, **loop)
        client.flush()
    except Exception as error:
        # Ray Train ends the process group of those that are left, perhaps before they notice
        ended = type(error) is RuntimeError or isinstance(error, distributed.DistError) or not is_one_of_several()
        if not (several and ended):
            ray.get(client.recorder.fail.remote(error))
        raise
