"""Images a second of pretrain.py's loop, against the bare training step, and of two processes against one.

    python benchmarks/pretraining.py                   # the default recipe; ten minutes on 2 cores
    python benchmarks/pretraining.py --dataset FOLDER  # with files to decode

The bare step has its images in memory, noised beforehand: forward, backward, clipping, optimizer and moving average.
The loop reads, checks, reports and keeps a checkpoint besides. Each process computes with one thread; efficiency is
that of the machine's free cores, whose load average before is recorded.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

os.environ["OMP_NUM_THREADS"] = "1"

import record
import torch
import tyro
from torch import nn

from ddae.pretrain import Pretraining
from sweeps.cluster.loop import computes_in, run_loop
from sweeps.cluster.train import FileCheckpoint, train
from sweeps.pretrain import Pretrain
from sweeps.pretraining import set_up


@dataclass(frozen=True)
class Benchmark:
    dataset: str = "fashion-mnist-8k"
    steps: int = 30
    repeats: int = 5
    processes: bool = True
    """Also measure two processes against one."""


def main(config: Benchmark) -> None:
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with TemporaryDirectory() as scratch:
        flags = Pretrain(dataset=config.dataset, steps=config.steps, sample_every=0, out=Path(scratch))
        bare, shares = BareStep(set_up(flags)), []
        seconds = record.interleave(
            {
                "bare": lambda: bare.run(config.steps),
                "loop": lambda: shares.append(loop(set_up(flags), Path(scratch) / f"{time.time_ns()}.pt")),
            },
            config.repeats,
        )
        # what the loop took without building its network
        loops = [each for each, _ in shares[1:]]
        speeds = {"bare": config.steps * flags.batch_size / median(seconds["bare"])}
        speeds["loop"] = config.steps * flags.batch_size / median(loops)
        ratios = [a / b for a, b in zip(seconds["bare"], loops, strict=True)]
        results = {
            "dataset": config.dataset,
            "load_average_before": load,
            "images_per_second": speeds,
            "loop_against_bare": median(ratios),
            "share_of_waiting_for_data": median(share for _, share in shares[1:]),
        }
        print(f"{speeds}\nloop against bare {median(ratios):.3f}, waiting for data {shares[-1][1]:.2%}")
        if config.processes:
            one, two = (processes(flags, number, Path(scratch)) for number in (1, 2))
            results |= {"images_per_second_of_processes": {"1": one, "2": two}, "efficiency_at_2": two / one / 2}
            print(f"one process {one:.1f} images/s, two {two:.1f}, efficiency {two / one / 2:.3f}")
    record.write("pretraining", results)


class BareStep:
    """A training's network and optimizer, and one batch."""

    def __init__(self, training: Pretraining):
        self.training = training
        training.start(torch.device("cpu"))
        batch, network = training.batch(0), training.network.train()
        a = training.scheduler.alphas_cumprod[batch.levels].view(-1, 1, 1, 1)
        self.noised, self.noise, self.levels = (
            a.sqrt() * batch.x0 + (1 - a).sqrt() * batch.noise,
            batch.noise,
            batch.levels,
        )
        self.network = network

    def run(self, num_steps: int) -> None:
        training, network = self.training, self.network
        for _ in range(num_steps):
            with torch.autocast("cpu", training.autocast, enabled=computes_in(training.autocast, torch.device("cpu"))):
                predicted = network(self.noised, self.levels).sample
            loss = (predicted.float() - self.noise).square().mean()
            training.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), training.max_gradient_norm)
            training.optimizer.step()
            training.ema.step(network.parameters())


def loop(training: Pretraining, checkpoint: Path) -> tuple[float, float]:
    """(seconds of the loop from its first step to its checkpoint, share of them that waited for data)."""
    begun = time.perf_counter()
    start = training.start

    def started(*args: object) -> None:
        nonlocal begun
        start(*args)  # type: ignore[arg-type]
        begun = time.perf_counter()

    training.start = started  # type: ignore[method-assign]
    run_loop(training, FileCheckpoint(checkpoint), torch.device("cpu"))
    seconds = time.perf_counter() - begun
    return seconds, training.data_seconds / seconds


def processes(flags: Pretrain, number: int, scratch: Path) -> float:
    """Images a second of processes of one thread each, started by Ray Train, over all their steps."""
    os.environ["RAY_OVERRIDE_RESOURCES"] = f'{{"CPU": {number}}}'
    training, path = set_up(flags), scratch / f"processes-{number}.pt"
    trained = train(training, FileCheckpoint(path), num_workers=number)
    return flags.steps * flags.batch_size / trained.seconds


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
