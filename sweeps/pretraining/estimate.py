"""What a training would cost, by taking a few steps of it."""

import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch

from ddae.pretrain import Pretraining
from ddae.pretraining.latents import Latents
from ddae.units import duration, rounded, size
from sweeps.cluster.loop import update
from sweeps.flags import command_of
from sweeps.pretraining.setup import device_of

if TYPE_CHECKING:
    from sweeps.pretrain import Pretrain

NUM_STEPS = 3
"""That are timed, after one to warm up."""


def estimate(config: "Pretrain", training: Pretraining) -> str:
    """Parameters, speed, time, memory and disk, a line each, and the flags that are not as by default."""
    device = torch.device(device_of(config) if torch.cuda.is_available() else "cpu")
    with TemporaryDirectory() as scratch:
        step_seconds = timed(training, device, Path(scratch))
    memory = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    num = sum(each.numel() for each in training.network.parameters())
    speed, snapshots = config.batch_size / step_seconds, config.steps // (config.snapshot_every or 10**10)
    shared = f"; {config.num_workers} processes share the work, if each has as much to itself"
    lines = [
        f"flags       {command_of(config, 'pretrain')}",
        f"network     {num / 1e6:.2f}M parameters, {size(2 * num)} in the model's folder, {size(16 * num)} a checkpoint"
        f"{f', and {snapshots:,} snapshots' * bool(snapshots)}",
        f"speed       {rounded(speed, 3)} images/s, {rounded(1000 * step_seconds, 3)} ms a step, in one process on "
        f"{device}{shared * (config.num_workers > 1)}",
        f"in all      {config.steps:,} steps of {config.batch_size} images, "
        f"{config.steps * config.batch_size / training.images.num_train:,.1f} epochs: "
        f"{duration(config.steps * step_seconds / config.num_workers)}",
        f"memory      {size(memory)} at most{'' if device.type == 'cuda' else ', with the images'}",
    ]
    return "\n".join(lines)


def timed(training: Pretraining, device: torch.device, scratch: Path) -> float:
    """Seconds of a step; latents that are not encoded yet are zeros."""
    if training.latents and not training.latents.file.exists():
        shape, num = training.shape, training.read_images().num_train
        sides = shape.in_channels, shape.image_size, shape.image_size
        np.lib.format.open_memmap(scratch / "zeros.npy", "w+", np.float32, (2, num, *sides))
        training.latents = Latents(training.latents.vae, scratch / "zeros.npy")
    training.start(device)
    for step in range(1 + NUM_STEPS):
        if step == 1:
            started = time.perf_counter()
        update(training, training.network, step)
        training.ema.step(training.network.parameters())
    return (time.perf_counter() - started) / NUM_STEPS
