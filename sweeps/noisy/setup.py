"""What a sweep of noise-conditional classifiers is to do, from its flags, and what it costs."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ddae.backbones import Backbone
from ddae.datasets import Dataset
from ddae.memory import for_fits
from ddae.noise import Clean
from ddae.noise_levels import all_levels, between, choose_grid
from ddae.noisy_classifier import head_size
from ddae.noisy_training import num_steps, step_seconds
from ddae.noisy_wide_resnet import sizes_of
from ddae.units import duration, parse_size, rounded, size
from storage.ledger import content_key
from sweeps.cluster.given import FOR_FITS, address
from sweeps.findings.folder import named, newest_sweep, read_results
from sweeps.flags import SEEDS, check_numbers
from sweeps.noisy.baseline import BaselineTask
from sweeps.noisy.task import READING, READING_BYTES, NoisyTask
from sweeps.noisy_classifier import NoiseConditional
from sweeps.probing.cost import time_passes
from sweeps.probing.refit import answer_cell, with_flags_of
from sweeps.probing.source import Need, choose_blocks, load_model, open_source
from sweeps.probing.space import Space, check_choices, stored_pooling
from sweeps.probing.task import ProbeTask
from sweeps.search.halving import plan_round_size
from sweeps.search.task import REDUCTION

log = logging.getLogger("sweeps")

OWN_HEADS = ("ridge", "linear")
"""What is fitted at one level alone; the better of them on val is the line that a shared head could reach."""
MIN_IMAGES = 50


@dataclass(frozen=True)
class Setup:
    config: NoiseConditional
    """With what a sweep has said filled in."""
    task: NoisyTask
    backbone: Backbone
    dataset: Dataset

    @property
    def folder(self) -> Path:
        """out/noisy-classifier-<hash of all that decides the trials, but for how many there are>."""
        keys = [self.task.key(cell, rung) for cell in self.task.cells for rung in self.task.rungs]
        return self.config.out / f"noisy-classifier-{content_key(trials=keys)[:8]}"

    @property
    def round_size(self) -> int:
        return plan_round_size("optuna", self.config.num_trials, len(self.task.cells))

    def baselines(self, noise: str) -> tuple[BaselineTask, ...]:
        """The networks that are trained from scratch, under this distribution of noise levels."""
        config = self.config
        return tuple(
            BaselineTask(self.task, name, noise, config.baseline_epochs) for name in dict.fromkeys(config.baseline)
        )

    @property
    def passes(self) -> float:
        """Full forward passes of all features."""
        own = [Need(t, "train", self.task.rungs[-1], self.task.blocks) for t in self.task.between]
        return self.task.probing.space.forward_passes([*self.task.needs(self.task.cells[0], self.task.rungs[-1]), *own])


def set_up(config: NoiseConditional) -> Setup:
    """Load the network and the dataset, and check every name and number against them. Raises ValueError for what cannot
    be trained."""
    many = 1, 10**6
    check_numbers(config, num_trials=many, num_blocks=(1, 100), seed=SEEDS, gpus_per_fit=(0, FOR_FITS))
    check_numbers(config, num_levels=(2, 1000), num_between=(0, 1000), num_draws=(1, 100), baseline_epochs=many)
    check_numbers(config, num_images=(MIN_IMAGES, 10**9), num_val=(MIN_IMAGES, 10**9))
    for name in config.baseline:
        sizes_of(name)
    if config.timesteps:
        raise ValueError(
            f"timesteps={list(config.timesteps)}: the levels are those of --num-levels; leave the flag out"
        )
    if min(config.widths, default=0) < 1:
        raise ValueError(f"widths={list(config.widths)} must be whole numbers of 1 or more; the default is 1 2")
    config = with_sweep(config)
    poolings, _ = check_choices({*(config.poolings or (1, 2)), 1})
    backbone = load_model(config)
    if isinstance(backbone.schedule, Clean):
        raise ValueError(f"backbone={config.backbone!r} was trained without noise, and has no noise levels; give a "
                         "diffusion network")  # fmt: skip
    levels = all_levels(backbone.schedule)
    grid = choose_grid(levels, config.num_levels)
    inside = between(levels, grid, config.num_between)
    blocks = choose_blocks(backbone, config.blocks)
    largest = max(block.size for block in blocks)
    if poolings[-1] > largest:
        raise ValueError(f"pooling={poolings[-1]} is larger than every chosen block's map; the largest is {largest}")
    sigmas = {timestep: backbone.sigma(timestep) for timestep in {**grid, **inside}}
    source, dataset = open_source(config, backbone, stored_pooling(poolings))
    labels = {split: dataset.labels(split) for split in ("train", "val")}
    space = Space(blocks, sigmas, poolings, OWN_HEADS)
    num_images, num_val = min(config.num_images, len(labels["train"])), min(config.num_val, len(labels["val"]))
    gpus = config.gpus_per_fit if source.fits_on != "cpu" else 0
    memory = parse_size(config.memory) if config.memory else 0
    probing = ProbeTask(
        source, space, space.sites, labels, dataset.num_classes, (num_images,), config.seed, notes=dataset.notes,
        memory_bytes=memory, gpus_per_fit=gpus, search_val=num_val,
    )  # fmt: skip
    rungs = (num_images // REDUCTION, num_images) if num_images // REDUCTION >= MIN_IMAGES else (num_images,)
    widths = tuple(sorted({*config.widths, 2}))
    task = NoisyTask(
        probing, levels, grid, inside, poolings, widths, rungs, config.num_draws, num_val, config.seed
    )  # fmt: skip
    check_memory(task)
    return Setup(config, task, backbone, dataset)


def check_memory(task: NoisyTask) -> None:
    """Raises ValueError where the widest head would not fit beside what it reads."""
    probing = task.probing
    if address() and not probing.memory_bytes:  # other machines'
        return
    may_have = probing.memory_bytes or for_fits(probing.device, probing.part(num_cpus=1))
    for cell in task.cells:
        num_features = probing.space.block(cell.block).channels * cell.pooling**2
        weights = head_size(num_features, probing.num_classes, cell.width, cell.embedding == "tau")
        trained = 16 * weights  # they, their gradients, and two moments of each
        takes = trained + min(READING_BYTES, int(READING * may_have))
        if takes > may_have:
            raise ValueError(
                f"a head of {weights:,} weights ({cell.width}x the {num_features:,} numbers of {cell.block}, "
                f"{cell.pooling} x {cell.pooling}) takes {size(takes)} and may have {size(may_have)}: give smaller "
                "--poolings or --widths, or raise --memory"
            )


def with_sweep(config: NoiseConditional) -> NoiseConditional:
    """The flags, with model, data, best blocks and pooling of a finished layer_noise.py sweep where no block is
    given."""
    if config.blocks and not config.sweep:
        return config
    folder = named(config.sweep) if config.sweep else newest_sweep(config.out, "layer-noise")
    results = read_results(folder)
    if results["task"] != "layer-noise":
        raise ValueError(f"--sweep {folder} is a sweep of {results['task']}; give one of layer_noise.py")
    cell = answer_cell(folder)
    best = dict.fromkeys([cell.block, *(block for block, _ in results.get("left", ()))])
    instead = "give --blocks and --poolings instead of the sweep"
    config, theirs = with_flags_of(folder, config, instead, take_store=config.sweep is not None)
    if theirs.metric != "accuracy":
        metric = theirs.metric.replace("_", " ")
        log.warning(f"{folder} has chosen its cell by {metric}; the head is chosen by accuracy")
    return replace(
        config,
        sweep=folder.absolute(),
        blocks=config.blocks or tuple(best)[: config.num_blocks],
        poolings=config.poolings or (cell.pooling,),
    )


def estimate(setup: Setup) -> str:
    """What it costs, by timing passes and a step of the widest head on one thread, as a worker has."""
    torch.set_num_threads(1)
    config, task, backbone = setup.config, setup.task, setup.backbone
    probing, num_images = task.probing, task.rungs[-1]
    rows = setup.dataset.splits["train"][: 32 if backbone.flops < 1e10 else 1]
    seconds, encoding_seconds = time_passes(probing, backbone, setup.dataset, rows)
    encodings = (num_images + task.num_val) * bool(task.source.encoder)
    share = probing.space.pass_share(task.blocks)
    stored = setup.passes / share * probing.space.bytes_per_image(task.source.key.pooling)
    widest = max(task.cells, key=lambda cell: task.params(cell)["num_features"] * cell.width)
    channels = probing.space.block(widest.block).channels
    steps = num_steps(len(task.grid) * task.num_draws * num_images)
    step = step_seconds(channels * widest.pooling**2, widest.width, probing.num_classes, len(task.grid))
    per_image = task.num_draws * len(task.grid)
    lines = {
        "network": f"{config.backbone} on {task.source.name}" + f", as in {config.sweep}" * bool(config.sweep),
        "blocks": f"{', '.join(task.blocks)}; a pass ends at {share:.0%} of the network",
        "levels": f"{len(task.grid)} from sigma {min(probing.space.sigmas.values()):.3g} to "
        f"{max(probing.space.sigmas.values()):.3g}, and {len(task.between)} between them",
        "an image": f"{per_image} passes of a training image ({len(task.grid)} levels x {task.num_draws} draws), "
        f"{len(task.looked_at)} of a val image",
        "passes": f"{setup.passes:,.0f} full ones for {num_images:,} training and {task.num_val:,} val images",
        "extraction": f"{duration(setup.passes * seconds + encodings * encoding_seconds)}, "
        f"{rounded(1000 * seconds, 3)} ms a pass, divided by the number of cores or GPUs; {size(stored)} in "
        f"{task.source.store}",
        "trials": f"{min(config.num_trials, len(task.cells))} of {len(task.cells)} cells, in rounds of "
        f"{setup.round_size}; a training has {steps:,} steps and takes up to {duration(steps * step)}",
    }
    for each in setup.baselines("log-sigma"):
        lines[each.network] = f"{each.rungs[-1]:,} steps of {each.batch_size} images, each image {each.epochs} times"
    return "\n".join(f"{name:<14}{text}" for name, text in lines.items())
