"""ImageNet-1k, and fine-grained sets, x ADM on many GPUs, on paper: what a sweep would pass, store, ask for and cost.

python benchmarks/on_paper.py                                     # the defaults of sweeps/layer_noise.py
python benchmarks/on_paper.py --num-timesteps 50 --views 8

Counts come from the Task that a sweep would run; only the network's shape is known here, not its weights. What is
assumed of machines and prices are the flags; the time of heads is measured on one core, with fewer images and classes.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import record
import torch
import tyro
from extraction import adm_256
from torch import Tensor

from ddae.backbones import Backbone, Settings
from ddae.features import FeatureKey, width
from ddae.heads.linear import PENALTIES, fit_linear
from ddae.ridge import leave_one_out
from sweeps.layer_noise import LayerNoise
from sweeps.probing.cost import planned
from sweeps.probing.extractor import SHARD_ROWS
from sweeps.probing.plan import bounded, rules_for
from sweeps.probing.screening import ScreeningRules
from sweeps.probing.source import VAL_FRACTION, FeatureSource, Need
from sweeps.probing.space import Space, stored_pooling
from sweeps.probing.task import SCREENED_FEATURES, ProbeTask


class Images(NamedTuple):
    """How many there are."""

    train: int
    """Val is taken from them."""
    test: int
    classes: int


IMAGENET = Images(1_281_167, 50_000, 1000)
FINE_GRAINED = {
    "Aircraft": Images(6_667, 3_333, 100),
    "Cars": Images(8_144, 8_041, 196),
    "CUB": Images(5_994, 5_794, 200),
    "Dogs": Images(12_000, 8_580, 120),
    "Flowers": Images(2_040, 6_149, 102),
    "NABirds": Images(23_929, 24_633, 555),
}
"""The sets of the GANs paper, section 4.2, as they are published."""


@dataclass(frozen=True)
class OnPaper:
    num_gpus: int = 1000
    num_timesteps: int = 0
    """Evenly spaced; 0 is the model's own seven."""
    views: int = 1
    teraflops: float = 125
    """That a GPU keeps up, in bfloat16: 0.4 of an A100's 312."""
    gpu_dollars: float = 2.0
    """An hour of a GPU with its share of the machine."""
    s3_put_dollars: float = 5e-6
    s3_gigabyte_month_dollars: float = 0.023


def make_task(config: OnPaper, backbone: Backbone, images: Images) -> tuple[ProbeTask, ScreeningRules]:
    """As layer_noise.py has them, with labels of which only the number is known."""
    default = LayerNoise()
    num_val = round(images.train * VAL_FRACTION)
    step = 1000 // max(1, config.num_timesteps)
    timesteps = tuple(range(0, 1000, step)) if config.num_timesteps else backbone.schedule.defaults
    space = Space(backbone.blocks, dict.fromkeys(timesteps, 0.0), default.poolings, default.heads)
    key = FeatureKey("", "", 0, VAL_FRACTION, 0, stored_pooling(default.poolings))
    source = FeatureSource("images", "adm-256", "images", "", backbone.settings, encoder="", store="", key=key)
    labels = {"train": np.zeros(images.train - num_val), "val": np.zeros(num_val)}
    rungs = (images.train - num_val,)
    task = ProbeTask(source, space, space.sites, labels, images.classes, rungs, views=config.views)
    task = bounded(task, default.search_images)
    return task, rules_for(default, task)


def stored(task: ProbeTask, needs: Iterable[Need]) -> tuple[float, int]:
    """Bytes, and shards, of what fills the needs."""
    rows: dict[tuple[int, str, int, int, str], int] = {}
    for need in needs:
        for block in need.blocks:
            column = need.timestep, need.split, need.draw, need.view, block
            rows[column] = max(rows.get(column, 0), need.num_images)
    pooling = task.source.key.pooling
    size = sum(2.0 * num * width(task.space.block(block), pooling) for (*_, block), num in rows.items())
    return size, sum(-(-num // SHARD_ROWS) for num in rows.values())


def extraction(
    config: OnPaper, task: ProbeTask, backbone: Backbone, needs: list[Need], searched: list[Need]
) -> dict[str, float]:
    """searched: those of the needs that the search has, before the answer is fitted on all images."""
    passes, search_passes = (task.space.forward_passes(each) for each in (needs, searched))
    gpu_seconds = passes * backbone.flops / (config.teraflops * 1e12)
    size, shards = stored(task, needs)
    return {
        "passes": passes,
        "times the images": passes / task.num_train,
        "by the search": search_passes / task.num_train,
        "for the answer": (passes - search_passes) / task.num_train,
        "GPU hours": gpu_seconds / 3600,
        "GPU dollars": gpu_seconds / 3600 * config.gpu_dollars,
        "seconds on all GPUs": gpu_seconds / config.num_gpus,
        "terabytes": size / 1e12,
        "shards": shards,
        "shards a second": shards / gpu_seconds * config.num_gpus,
        "gigabytes a second": size / 1e9 / gpu_seconds * config.num_gpus,
        "dollars to put": shards * config.s3_put_dollars,
        "dollars a month": size / 1e9 * config.s3_gigabyte_month_dollars,
    }


def core_hours(fit: Callable[[Tensor, Tensor, int], object], num_classes: int) -> float:
    """Of a fit to as many classes on one core of this machine, an image and number of it."""
    num_images, num_inputs = 2048, 1024
    torch.set_num_threads(1)
    features, labels = torch.randn(num_images, num_inputs, 1, 1), torch.arange(num_images) % num_classes
    started = time.process_time()
    fit(features, labels, num_classes)
    return (time.process_time() - started) / 3600 / num_images / num_inputs


def fits(task: ProbeTask, rules: ScreeningRules, channels: int) -> dict[str, dict[str, float]]:
    """Ridge at one site in each round of screening, and `linear` at each pooling, on the images of the search and on
    all."""
    ridge = core_hours(leave_one_out, task.num_classes)
    linear = core_hours(linear_head, task.num_classes)
    cases = {f"ridge on {num:,}": (num, SCREENED_FEATURES, ridge, 8) for num in rules.rounds}
    for num in (*task.rungs, task.num_train):
        for pooling in task.space.poolings:
            name = f"linear, {pooling}x{pooling}, {num:,}"
            cases[name] = task.views * num, channels * pooling**2, linear, 4 * len(PENALTIES)
    return {
        name: {
            "images": images,
            "numbers an image": inputs,
            "core hours": hours * images * inputs,
            "gigabytes of features": 4e-9 * images * inputs,
            "gigabytes of scores": 1e-9 * images * task.num_classes * score_bytes,
        }
        for name, (images, inputs, hours, score_bytes) in cases.items()
    }


def linear_head(features: Tensor, labels: Tensor, num_classes: int) -> object:
    return fit_linear(features, labels, num_classes, 0)


def fine_grained(config: OnPaper, backbone: Backbone, images: Images) -> dict[str, float]:
    """A sweep that loses no block, the answer's test set with it, and one fit of `linear` at 4x4."""
    task, rules = make_task(config, backbone, images)
    needs, searched = (list(planned(task, rules, task.space.block_names, final)) for final in (True, False))
    row = extraction(config, task, backbone, needs, searched)
    test = images.test * backbone.flops / (config.teraflops * 1e12) / 3600
    numbers = max(block.channels for block in backbone.blocks) * max(task.space.poolings) ** 2
    return {
        "train": task.num_train,
        "val": len(task.val_labels()),
        "test": images.test,
        "classes": images.classes,
        "passes": row["passes"],
        "times the images": row["times the images"],
        "GPU hours": row["GPU hours"],
        "GPU hours of test, at most": test,
        "gigabytes": 1000 * row["terabytes"],
        "shards": row["shards"],
        "core hours of linear at 4x4": core_hours(linear_head, images.classes) * task.num_train * numbers,
    }


def main(config: OnPaper) -> None:
    with torch.device("meta"):
        backbone = adm_256(Settings(device="meta"))
    task, rules = make_task(config, backbone, IMAGENET)
    space = task.space
    [b24] = (block for block in backbone.blocks if block.alias == "b24")
    everything = [
        Need(timestep, split, num_images, blocks, view=view)
        for timestep, blocks in space.sites.items()
        for split, num_images, num_views in (("train", task.num_train, task.views), ("val", task.num_val, 1))
        for view in range(num_views)
    ]
    cases = {
        name: tuple(list(planned(task, rules, winners, final)) for final in (True, False))
        for name, winners in (("only b24 is left", (b24.name,)), ("no block is lost", space.block_names))
    }
    cases["the grid"] = everything, everything
    columns = {name: extraction(config, task, backbone, *needs) for name, needs in cases.items()}
    heads = fits(task, rules, b24.channels)
    size_bytes = space.bytes_per_image(task.source.key.pooling)
    print(f"{backbone.flops / 1e12:.2f} TFLOP a pass, {size_bytes:,} bytes an image and timestep")
    print(f"{len(space.cells):,} cells, screening {rules.rounds}, rungs {task.rungs}, val {len(task.val_labels()):,}")
    small = {name: fine_grained(config, backbone, images) for name, images in FINE_GRAINED.items()}
    for rows in (columns, heads, small):
        print(f"\n{'':<24}" + "".join(f"{name:>26}" for name in rows))
        for name in next(iter(rows.values())):
            print(f"{name:<24}" + "".join(f"{row[name]:26,.6g}" for row in rows.values()))
    record.write("on_paper", {"extraction": columns, "heads": heads, "fine_grained": small})


if __name__ == "__main__":
    main(tyro.cli(OnPaper, description=__doc__))
