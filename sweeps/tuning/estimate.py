"""What a sweep will cost, and what a model holds, before anything is run."""

import math
import time

import numpy as np
import torch

from ddae.backbones import Backbone
from ddae.datasets import Dataset
from ddae.features import extract
from sweeps.cli import aligned
from sweeps.tuning.plan import Plan


def estimate(plan: Plan, backbone: Backbone, dataset: Dataset, least: float, most: float) -> str:
    """What at least and at most so many full forward passes cost, by timing up to 32 images on one thread, as an
    extractor has."""
    torch.set_num_threads(1)
    space = plan.space
    rows = dataset.splits["train"][: 32 if backbone.flops < 1e10 else 1]
    blocks = [block.name for block in space.blocks]
    seconds, encoding_seconds = time_passes(plan, backbone, dataset, rows)
    num_encodings = (plan.views * plan.rungs[-1] + plan.num_val) if plan.encoder else 0
    latent_bytes = 2 * math.prod(backbone.encoder.shape) * num_encodings
    passes = least, most
    gigabytes = [(num * plan.bytes_per_image / space.pass_share(blocks) + latent_bytes) / 1e9 for num in passes]
    minutes = [(num * seconds + num_encodings * encoding_seconds) / 60 for num in passes]
    cells = f"{len(blocks)} blocks x {len(space.timesteps)} timesteps"
    if space.heads:
        cells += (
            f" x {len(space.poolings)} poolings x {len(space.heads)} heads = {len(space.candidates):,} cells, "
            "without poolings above a map's size"
        )
    lines = [
        f"space           {cells}",
        f"images          {plan.rungs[-1]:,} train, {plan.num_val:,} val, {plan.num_classes} classes",
        f"forward passes  {least:,.0f} to {most:,.0f}; the grid would be {plan.grid_passes:,.0f}",
        f"one pass        {backbone.flops / 1e9:.3g} GFLOP an image, {1000 * seconds:.3g} ms on {plan.settings.device}",
        f"features        {gigabytes[0]:.2g} to {gigabytes[1]:.2g} GB in {plan.store}",
        f"extraction      {minutes[0]:.2g} to {minutes[1]:.2g} minutes, divided by the number of cores or GPUs",
    ]
    if plan.encoder:
        lines.insert(
            3, f"encodings       at most {num_encodings:,}, each image once; {1000 * encoding_seconds:.3g} ms an image"
        )
    return "\n".join(lines)


def time_passes(plan: Plan, backbone: Backbone, dataset: Dataset, rows: np.ndarray) -> tuple[float, float]:
    """Seconds an image of a full forward pass and, of a latent model, of its encoding; after one pass to warm up."""
    blocks = [block.name for block in plan.space.blocks]
    for _ in range(2):
        started = time.perf_counter()
        encoded = None
        if plan.encoder:
            encoded = backbone.encode(dataset.images.read(rows)).flatten(1).half().cpu().numpy()
        half_way = time.perf_counter()
        extract(backbone, dataset, rows, plan.space.timesteps[0], blocks, plan.key, encoded=encoded)
        ended = time.perf_counter()
    pass_seconds = (ended - half_way) / len(rows) / plan.space.pass_share(blocks)
    return pass_seconds, (half_way - started) / len(rows)


def block_table(backbone: Backbone) -> str:
    """Every block: name, the paper's number and name, module, channels, side, share of a full forward pass up to it."""
    rows = [("block", "index", "paper", "module", "channels", "size", "FLOPs up to it")]
    for block in backbone.blocks:
        size, share = f"{block.size}x{block.size}", f"{block.flops_share:.1%}"
        rows.append((block.name, str(block.index), block.alias, block.module, str(block.channels), size, share))
    lines = aligned(rows)
    timesteps = backbone.schedule.timesteps
    parameters = sum(parameter.numel() for parameter in backbone.network.parameters())
    lines.append(
        f"\n{parameters / 1e6:.1f}M parameters, {backbone.flops / 1e9:.3g} GFLOP a pass of one image of side "
        f"{backbone.image_size}; timesteps {timesteps[0]} to {timesteps[-1]}, of which "
        f"{' '.join(map(str, backbone.schedule.defaults))} are tried if none are given"
    )
    return "\n".join(lines)
