"""ImageNet-1k x ADM on many GPUs, on paper: what a sweep would pass, store, ask for and cost.

python benchmarks/on_paper.py                                     # the defaults of sweeps/layer_noise.py
python benchmarks/on_paper.py --num-timesteps 50 --views 8

Counts come from the plan that a sweep would make; only the network's shape is known here, not its weights. What is
assumed of machines and prices are the flags; the time of heads is measured on one core, with fewer images and classes.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import record
import torch
import tyro
from extraction import adm_256
from torch import Tensor

from ddae.backbones import Backbone, Settings
from ddae.features import FeatureKey, width
from ddae.heads.linear import PENALTIES, fit_linear
from ddae.screening import leave_one_out
from sweeps.layer_noise import LayerNoise
from sweeps.tuning.evaluation import LOOK_FEATURES
from sweeps.tuning.extractor import SHARD_ROWS
from sweeps.tuning.plan import VAL_FRACTION, Plan, choose_rungs
from sweeps.tuning.space import Need, Space

NUM_IMAGES, NUM_CLASSES = 1_281_167, 1000


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


def make_plan(config: OnPaper, backbone: Backbone) -> Plan:
    """As layer_noise.py has it, with labels of which only the number is known."""
    num_val = round(NUM_IMAGES * VAL_FRACTION)
    step = 1000 // max(1, config.num_timesteps)
    timesteps = tuple(range(0, 1000, step)) if config.num_timesteps else backbone.schedule.defaults
    rungs = choose_rungs(NUM_IMAGES - num_val, NUM_CLASSES)
    default = LayerNoise()
    return Plan(
        name="imagenet", backbone="adm-256", dataset="imagenet", data_root="", settings=backbone.settings, encoder="",
        store="", key=FeatureKey("", "", 0, VAL_FRACTION, 0, 0, max(default.poolings)),
        space=Space(backbone.blocks, timesteps, default.poolings, default.heads),
        looks=rungs[:-1], rungs=rungs[-2:], exhaustive=False, keep=default.keep, finalists=default.finalists,
        labels={"train": np.zeros(rungs[-1]), "val": np.zeros(num_val)}, num_classes=NUM_CLASSES,
        sigmas={}, seed=0, views=config.views,
    )  # fmt: skip


def stored(plan: Plan, needs: Iterable[Need]) -> tuple[float, int]:
    """Bytes, and shards, of what fills the needs."""
    rows: dict[tuple[int, str, int, str], int] = {}
    for need in needs:
        for block in need.blocks:
            column = need.timestep, need.split, need.draw, block
            rows[column] = max(rows.get(column, 0), need.num_images)
    size = sum(2.0 * num * width(plan.space.block(block), plan.key.pooling) for (_, _, _, block), num in rows.items())
    return size, sum(-(-num // SHARD_ROWS) for num in rows.values())


def extraction(config: OnPaper, plan: Plan, backbone: Backbone, needs: list[Need]) -> dict[str, float]:
    passes = plan.space.forward_passes(needs)
    gpu_seconds = passes * backbone.flops / (config.teraflops * 1e12)
    size, shards = stored(plan, needs)
    return {
        "passes": passes,
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


def core_hours(fit: Callable[[Tensor, Tensor], object]) -> float:
    """Of a fit to as many classes on one core of this machine, an image and number of it."""
    num_images, num_inputs = 2048, 1024
    torch.set_num_threads(1)
    features, labels = torch.randn(num_images, num_inputs, 1, 1), torch.arange(num_images) % NUM_CLASSES
    started = time.process_time()
    fit(features, labels)
    return (time.process_time() - started) / 3600 / num_images / num_inputs


def fits(plan: Plan, channels: int) -> dict[str, dict[str, float]]:
    """A look at one place, and `linear` on all training images at each pooling."""
    look = core_hours(lambda features, labels: leave_one_out(features, labels, NUM_CLASSES))
    linear = core_hours(lambda features, labels: fit_linear(features, labels, NUM_CLASSES, 0))
    num_train = plan.views * plan.rungs[-1]
    cases = {f"look at {num:,}": (num, LOOK_FEATURES, look, 8) for num in plan.looks}
    for pooling in plan.space.poolings:
        cases[f"linear, {pooling}x{pooling}"] = num_train, channels * pooling**2, linear, 4 * len(PENALTIES)
    return {
        name: {
            "images": images,
            "numbers an image": inputs,
            "core hours": hours * images * inputs,
            "gigabytes of features": 4e-9 * images * inputs,
            "gigabytes of scores": 1e-9 * images * NUM_CLASSES * score_bytes,
        }
        for name, (images, inputs, hours, score_bytes) in cases.items()
    }


def main(config: OnPaper) -> None:
    with torch.device("meta"):
        backbone = adm_256(Settings(device="meta"))
    plan = make_plan(config, backbone)
    blocks = tuple(block.name for block in backbone.blocks)
    [b24] = (block for block in backbone.blocks if block.alias == "b24")
    everything = [
        Need(timestep, split, num_images, blocks, draw)
        for timestep in plan.space.timesteps
        for split, num_images, draws in (("train", plan.rungs[-1], plan.draws), ("val", plan.num_val, (0,)))
        for draw in draws
    ]
    cases = {
        "only b24 is left": [*plan._planned((b24.name,))],
        "no block is lost": [*plan._planned(blocks)],
        "the grid": everything,
    }
    columns = {name: extraction(config, plan, backbone, needs) for name, needs in cases.items()}
    heads = fits(plan, b24.channels)
    print(f"{backbone.flops / 1e12:.2f} TFLOP a pass, {plan.bytes_per_image:,} bytes an image and timestep")
    print(f"{len(plan.space.candidates):,} cells, looks {plan.looks}, rungs {plan.rungs}, val {plan.num_val:,}")
    for rows in (columns, heads):
        print(f"\n{'':<24}" + "".join(f"{name:>20}" for name in rows))
        for name in next(iter(rows.values())):
            print(f"{name:<24}" + "".join(f"{row[name]:20,.6g}" for row in rows.values()))
    record.write("on_paper", {"extraction": columns, "heads": heads})


if __name__ == "__main__":
    main(tyro.cli(OnPaper, description=__doc__))
