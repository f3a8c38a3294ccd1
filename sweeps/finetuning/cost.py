"""What a fine-tuning sweep keeps of the network, and what it costs."""

import math
import time
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ddae.finetune import Cut, cut_network
from ddae.units import duration, size
from sweeps.cluster.loop import update
from sweeps.finetuning.findings import Kept
from sweeps.finetuning.task import latents_seen
from sweeps.finetuning.training import CellTraining
from sweeps.probing.extractor import opened
from sweeps.probing.source import FeatureSource, Need

if TYPE_CHECKING:
    from sweeps.finetuning.sweep import Setup


def latents_needed(setup: "Setup") -> dict[FeatureSource, list[Need]]:
    """What must be encoded for all trainings of all seeds, of a source for each encoder."""
    num_train, num_val = (len(setup.dataset.splits[split]) for split in ("train", "val"))
    seeds = range(setup.config.seed, setup.config.seed + setup.config.seeds)
    sources = {task.source.encoder: task.source for task in setup.tasks if task.source.encoder}
    counts = {count for task in setup.tasks for count in task.num_labels}
    is_augmented = any(cell.augment != "none" for task in setup.tasks for cell in task.cells)
    needs = [
        need
        for seed in seeds
        for count in counts
        for need in latents_seen(seed, count, num_train, num_val, is_augmented)
    ]
    most = {(need.split, need.view): need for need in sorted(needs, key=lambda need: need.num_images)}
    return {source: list(most.values()) for source in sources.values()}


def kept_by_cuts(setup: "Setup") -> dict[str, Kept]:
    """cut -> what it keeps of the network."""
    task, backbone = setup.tasks[0], setup.backbone
    sizes = {name: each.numel() for name, each in backbone.network.named_parameters()}
    shares = {block.name: block.flops_share for block in backbone.blocks}
    found = {}
    for cut in dict.fromkeys(task.cuts[0] for task in setup.tasks if not task.baseline):
        _, names = cut_network(backbone, Cut(cut, task.timesteps[0], task.pooling, task.head))
        kept = sum(sizes[name] for name in names)
        found[cut] = Kept(kept, kept / sum(sizes.values()), shares[cut])
    return found


def estimate(setup: "Setup") -> str:
    """What the sweep costs at most, by timing a step of each task, after one to warm up, on one thread, as a trial
    has."""
    torch.set_num_threads(1)
    config, device, num_val = setup.config, setup.tasks[0].source.settings.device, len(setup.dataset.splits["val"])
    lines, most_seconds, memory_bytes = [], 0.0, 0
    for cut, kept in kept_by_cuts(setup).items():
        lines.append(
            f"kept      {cut}: {kept.num_parameters / 1e6:.2f}M parameters ({kept.share_of_parameters:.0%}), "
            f"{kept.share_of_forward:.0%} of a forward pass"
        )
    for task in setup.tasks:
        num_trials = min(config.num_trials, len(task.cells)) + config.seeds - 1
        if not task.num_steps:
            continue
        training = Rehearsal(task, replace(task.cells[0], head_start="fresh"))
        training.start(torch.device(device))
        memory_bytes = max(memory_bytes, 4 * sum(map(Tensor.numel, training.trained.values())) * 4 + saved(training))
        step_seconds, val_seconds = timed(training)
        seconds = task.num_steps * step_seconds + len(task.ladder) * val_seconds * num_val
        most_seconds += num_trials * seconds
        lines.append(
            f"{task.start:<9} {task.cuts[0]}, t = {task.timesteps[0]}, {task.num_labels[0]:,} labels: at most "
            f"{num_trials} trainings of {task.num_steps:,} steps of {training.batch_size} images; "
            f"{1000 * step_seconds:,.0f} ms a step, {duration(seconds)} a training with val"
        )
    for source, needs in latents_needed(setup).items():
        lines.append(f"latents   {latents_text(source, sum(need.num_images for need in needs))}")
    return "\n".join(
        [
            *(f"{name:<10}{note}" for name, note in zip_longest(["images"], setup.dataset.notes, fillvalue="")),
            *lines,
            f"in all    at most {duration(most_seconds)} on one {device}, divided by their number; most trials "
            "are stopped early",
            f"memory    {memory_bytes / 1e6:,.0f} MB of weights, gradients, moments and activations for each training",
        ]
    )


def latents_text(source: FeatureSource, num_images: int) -> str:
    """How long encoding so many images takes, by timing one after a first to warm up, and what the store then holds."""
    extractor = opened(source)
    num_bytes = 2 * math.prod(extractor.backbone.encoder.shape) * num_images
    for row in extractor.dataset.splits["train"][:2]:
        started = time.perf_counter()
        extractor.backbone.encode(extractor.dataset.images.read(np.array([row])))
        seconds = time.perf_counter() - started
    return (
        f"{num_images:,} images and views of images are encoded once, in {duration(num_images * seconds)} on one "
        f"{source.settings.device}, and kept: {size(num_bytes)} in {source.store}"
    )


class Rehearsal(CellTraining):
    """A training that is timed: where it would see latents it sees zeros, because ten views of 512 images would be
    encoded first."""

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        if not self.source.encoder:
            return super().batch(step)
        encoder, device = self.network.backbone.encoder, self.source.settings.device
        x = torch.zeros(self.batch_size, *encoder.shape, device=device)
        return x, torch.zeros(self.batch_size, dtype=torch.int64, device=device)


def timed(training: CellTraining) -> tuple[float, float]:
    """Seconds of a step, and of classifying one val image."""
    clock = []
    for step in range(2):
        clock.append(time.perf_counter())
        update(training, training.network, step)
    clock.append(time.perf_counter())
    training.network.eval()
    with torch.inference_mode():
        x, _ = training.batch(0)
        began = time.perf_counter()
        training.network(x).cpu()
    return clock[2] - clock[1], (time.perf_counter() - began) / len(x)


def saved(training: CellTraining) -> int:
    """Bytes that a step keeps for its backward pass."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = training.loss(training.network, 0)
    del loss
    return sum(storages.values())
