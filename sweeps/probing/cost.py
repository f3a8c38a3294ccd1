"""What a sweep will cost before anything is run, and what it has cost."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
import torch

from ddae.backbones import Backbone
from ddae.backbones.offload import largest_layer_bytes, size_bytes
from ddae.datasets import Dataset
from ddae.features import extract
from ddae.heads import find_head
from ddae.label_free import SCORES
from ddae.units import duration, rounded, size
from sweeps.cli import aligned
from sweeps.probing.screening import NUM_LABEL_FREE, Screening, ScreeningRules
from sweeps.probing.source import Need
from sweeps.probing.space import Cell
from sweeps.probing.task import ProbeTask, Read
from sweeps.search.task import Trial

TIMED_ROWS, TIMED_NUMBERS = 1280, 2**23
"""Images, and numbers of them, on which a head is timed at most."""


@dataclass(frozen=True)
class Cost:
    search_passes: float
    """Full forward passes of one image that choosing needed."""
    final_passes: float
    """What fitting the answer on all images needed beside them, where the search had fewer."""
    passes: float
    """All of these."""
    grid_passes: float
    """Those of the exhaustive grid."""
    num_train: int
    new_passes: float
    """Those of the passes that were run just now; the store held the others."""
    head_seconds: float
    """Seconds of ridge in screening and of the trials' heads, summed over processes."""
    wall_seconds: float
    ray_share: float
    """Share of the wall time in which neither a worker, nor a trial, nor the driver itself worked."""


def needs_of(task: ProbeTask, screening: Screening, trials: Sequence[Trial]) -> list[Need]:
    """All features that a search has read; those of val at every site that was left, whichever cells were tried."""
    needs = [need for draw in (0, 1) for need in label_free_needs(task, draw)] + screening.needs
    num_val = len(task.val_labels())
    needs += [Need(timestep, "val", num_val, blocks) for timestep, blocks in screening.sites.items()]
    return needs + [need for trial in trials for need in task.needs(trial.cell, trial.rung)]


def label_free_needs(task: ProbeTask, draw: int, num_images: int = NUM_LABEL_FREE) -> list[Need]:
    """The features of one of the two noise draws that the label-free scores compare; without noise, of the images as
    they are and of a view, flipped and cropped (Wang & Isola 2020)."""
    num_images = min(num_images, task.num_train)
    which = {"draw": draw} if task.space.has_noise else {"view": draw}
    return [Need(timestep, "train", num_images, blocks, **which) for timestep, blocks in task.space.sites.items()]


def draws_of(task: ProbeTask, names: Iterable[str], num_images: int = NUM_LABEL_FREE) -> list[dict[str, Need]]:
    """What the label-free scores of these names read at each timestep, by the field of label_free.Features."""
    first, second = (label_free_needs(task, draw, num_images) for draw in (0, 1))
    draws = {"first": first, "second": second}
    reads = {field for name in names if name in SCORES for field in SCORES[name].reads}
    more = {
        "noisier": second[1:] + second[-1:],
        "cleaner": second[1:2] + second[:-1] if len(second) > 1 else second,
        "turned": [replace(need, view=2) for need in first],
    }
    draws |= {field: needs for field, needs in more.items() if field in reads}
    return [dict(zip(draws, each, strict=True)) for each in zip(*draws.values(), strict=True)]


def least_and_most(task: ProbeTask, rules: ScreeningRules, final: bool = True) -> tuple[float, float]:
    """Full forward passes of a sweep in which the shallowest block wins soon, and of one that loses no block. final:
    with those for the answer on all images, where the search has fewer."""
    blocks = task.space.block_names
    winners = (blocks if rules.exhaustive else blocks[:1]), blocks
    least, most = (task.space.forward_passes(planned(task, rules, each, final)) for each in winners)
    return least, most


def planned(task: ProbeTask, rules: ScreeningRules, winners: tuple[str, ...], final: bool = True) -> Iterator[Need]:
    """What a sweep needs if these blocks are left after the first round."""
    timesteps, blocks = task.space.timesteps, task.space.block_names

    def kept(cut: int) -> tuple[int, ...]:
        return timesteps[: rules.num_kept(cut, len(timesteps))]

    for draw in (0, 1):
        yield from label_free_needs(task, draw)
    for timestep in kept(rules.first_cut - 1) if rules.first_cut else timesteps:
        yield Need(timestep, "train", rules.rounds[0], blocks)
    for cut, num_images in enumerate(rules.rounds[1:], start=rules.first_cut):
        for timestep in kept(cut):
            yield Need(timestep, "train", num_images, winners)
    left = dict.fromkeys(kept(rules.first_cut + len(rules.rounds) - 1), winners)
    cells = [Cell(winners[-1], timestep, 1, "") for timestep in left]
    for cell in cells:
        yield from replace(task, sites=left).needs(cell, task.rungs[-1])
    if final and task.is_bounded:
        yield from replace(task, sites=left).on_all_images(cells[0]).needs(cells[0], task.num_train)


def share_outside(intervals: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """Share of [start, end] that no interval covers."""
    covered, reached = 0.0, start
    for first, last in sorted(intervals):
        first, last = max(first, reached), min(last, end)
        if last > first:
            covered += last - first
            reached = last
    return 1 - covered / (end - start)


def estimate(
    task: ProbeTask,
    backbone: Backbone,
    dataset: Dataset,
    least: float,
    most: float,
    num_images: int | None = None,
    of_search: tuple[float, float] = (0, 0),
) -> str:
    """What at least and at most so many full forward passes cost, by timing up to 32 images on one thread, as a worker
    has. num_images: how many images they are of at most; if None, all of train and val. of_search: those of a bounded
    search among them."""
    torch.set_num_threads(1)
    space, source = task.space, task.source
    rows = dataset.splits["train"][: 32 if backbone.flops < 1e10 else 1]
    seconds, encoding_seconds = time_passes(task, backbone, dataset, rows)
    num_encodings = (task.views * task.num_train + task.num_val) if source.encoder else 0
    kept = 3 * backbone.image_size**2 * (num_images or task.num_train + task.num_val)
    latent_bytes = 2 * math.prod(backbone.encoder.shape) * num_encodings
    bytes_per_pass = space.bytes_per_image(source.key.pooling) / space.pass_share(space.block_names)
    sizes = [size(num * bytes_per_pass + latent_bytes) for num in (least, most)]
    extraction = [duration(num * seconds + num_encodings * encoding_seconds) for num in (least, most)]
    cells = f"{len(space.blocks)} blocks x {len(space.timesteps)} timesteps"
    if space.heads:
        cells += (
            f" x {len(space.poolings)} poolings x {len(space.heads)} heads = {len(space.cells):,} cells, "
            "without poolings above a map's size"
        )
    bounded = [
        "{:<16}{:,.0f} to {:,.0f} of them by the search, ".format("", *of_search)
        + f"on {task.rungs[-1]:,} training and {len(task.val_labels()):,} val images; the others for the answer on all"
    ] * task.is_bounded
    lines = [
        f"space           {cells}",
        *(f"{name:<16}{note}" for name, note in zip_longest(["images"], dataset.notes, fillvalue="")),
        f"forward passes  {least:,.0f} to {most:,.0f}; the grid would be {task.grid_passes:,.0f}",
        *bounded,
        f"one pass        {rounded(backbone.flops / 1e9, 3)} GFLOP an image, {rounded(1000 * seconds, 3)} ms on "
        f"{source.settings.device}",
        f"features        {' to '.join(dict.fromkeys(sizes))} in {source.store}",
        *(
            [f"decoded images  at most {size(kept)} beside them; --no-cache-images keeps none"]
            if source.cache_images
            else []
        ),
        f"extraction      {' to '.join(dict.fromkeys(extraction))}, divided by the number of cores or GPUs",
    ]
    if space.heads:
        lines.append(f"a fit           {fits(task)}")
    if source.settings.offload:
        lines.append(f"offload         {offloaded(backbone, source.settings.device)}")
    if source.encoder:
        lines.insert(
            3,
            f"encodings       at most {num_encodings:,}, each image once; "
            f"{rounded(1000 * encoding_seconds, 3)} ms an image",
        )
    return "\n".join(lines)


def fits(task: ProbeTask) -> str:
    """What the widest cells take when they are fitted on all images: memory, and seconds of every head, of a part of
    the images and of random features."""
    cells = task.space.cells_at({task.space.timesteps[0]: task.space.block_names})
    where = ""
    if task.device != "cpu" and not torch.cuda.is_available():  # a cluster's, seen from its head
        task, where = replace(task, gpus_per_fit=0), ", on this machine's CPU"
    seconds = []
    for head in task.space.heads:
        widest = max((cell for cell in cells if cell.head == head), key=task.space.num_features)
        seconds.append(f"{duration(fit_seconds(task, widest))} of {head}")
    return f"{memory(task, cells)}; up to {', '.join(seconds)} on all images{where}"


def memory(task: ProbeTask, cells: Sequence[Read]) -> str:
    """What a fit of the widest of these cells on all images takes."""
    held, streamed = map(max, zip(*(task.fit_bytes(cell, task.num_train) for cell in cells), strict=True))
    said = size(held) if held <= task.memory else f"{size(streamed)}, block by block"
    return f"up to {said}, of {size(task.memory)} that it may have"


def fit_seconds(task: ProbeTask, cell: Cell) -> float:
    """How long a fit on all images takes, from one on as many as the heads' fewest steps see."""
    num_features, num_train = task.space.num_features(cell), task.views * task.num_train
    num_rows = min(num_train, TIMED_ROWS, max(task.num_classes, TIMED_NUMBERS // num_features))
    generator = torch.Generator().manual_seed(0)
    shape = num_rows, num_features // cell.pooling**2, cell.pooling, cell.pooling
    maps = torch.randn(shape, generator=generator).to(task.device)
    labels = torch.randint(task.num_classes, (num_rows,), generator=generator).to(task.device)
    head, sizes = find_head(cell.head)
    started = time.perf_counter()
    head.fit(maps, labels, task.num_classes, task.seed, *sizes)
    return (time.perf_counter() - started) * num_train / num_rows


def offloaded(backbone: Backbone, device: str) -> str:
    """What is kept where."""
    whole, layer = size_bytes(backbone.network), largest_layer_bytes(backbone.network)
    vae = getattr(backbone.encoder, "vae", None)
    beside = f", and the VAE, {size(size_bytes(vae))}" if vae is not None else ""
    return (
        f"the weights, {size(whole)}, stay in CPU memory; beside activations {device} holds a layer at a time, of "
        f"{size(layer)} at most{beside}"
    )


def time_passes(task: ProbeTask, backbone: Backbone, dataset: Dataset, rows: np.ndarray) -> tuple[float, float]:
    """Seconds an image of a full forward pass and, of a latent model, of its encoding; a pass of a few warms up."""
    space, key = task.space, task.source.key
    for some in (rows[:4], rows):
        started = time.perf_counter()
        encoded = None
        if task.source.encoder:
            encoded = backbone.encode(dataset.images.read(some)).flatten(1).half().cpu().numpy()
        half_way = time.perf_counter()
        extract(backbone, dataset, some, space.timesteps[0], space.block_names, key, encoded=encoded)
        ended = time.perf_counter()
    pass_seconds = (ended - half_way) / len(rows) / space.pass_share(space.block_names)
    return pass_seconds, (half_way - started) / len(rows)


def block_table(backbone: Backbone) -> str:
    """Every block: name, the paper's number and name, module, channels, side, share of a full forward pass up to it."""
    rows = [("block", "index", "paper", "module", "channels", "size", "FLOPs up to it")]
    for block in backbone.blocks:
        side, share = f"{block.size}x{block.size}", f"{block.flops_share:.1%}"
        index = str(block.index) if block.name in backbone.strict else ""
        rows.append((block.name, index, block.alias, block.module, str(block.channels), side, share))
    timesteps = backbone.schedule.timesteps
    num = sum(parameter.numel() for parameter in backbone.network.parameters())
    parameters = f"{num / 1e6:.1f}M" if num >= 10**5 else f"{num:,}"
    return "\n".join(aligned(rows)) + (
        f"\n\n{parameters} parameters, {rounded(backbone.flops / 1e9, 3)} GFLOP a pass of one image of side "
        f"{backbone.image_size}; timesteps {timesteps[0]} to {timesteps[-1]}, of which "
        f"{' '.join(map(str, backbone.schedule.defaults))} are tried if none are given"
    )
