"""An ablation of the noise of pre-training, from its flags to its findings."""

import re
import shlex
import time
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ddae.datasets import Images, split_rows
from ddae.generation.extractors import load_extractor
from ddae.generation.measures import check_enough
from ddae.generation.sampling import num_passes
from ddae.pretrain import Pretraining
from ddae.units import duration
from storage.ledger import content_key
from sweeps import cli, pretraining
from sweeps.ablation.findings import Findings
from sweeps.ablation.publish import flags_of, publish, report
from sweeps.ablation.task import STARTS, AblationTask, Probing, Sampling
from sweeps.cluster.tune import Run
from sweeps.driver import no_needs, open_run, run_searches
from sweeps.findings.logged import finished_report, incomplete
from sweeps.flags import SEEDS, check_numbers
from sweeps.noise_ablation import NoiseAblation
from sweeps.pretrain import Pretrain
from sweeps.pretraining import recipe_of
from sweeps.pretraining.estimate import timed
from sweeps.probing.source import VAL_FRACTION, absolute, choose_device
from sweeps.progress import Progress
from sweeps.sampling import JUDGE
from sweeps.search.halving import HalvingSearch, check_search

__all__ = ["estimate", "finished_report", "incomplete", "report", "run", "set_up"]

CONFIGURATIONS = {
    "full": "",
    "T512": "--num-levels 512",
    "T256": "--num-levels 256",
    "T64": "--num-levels 64",
    "smaller-half": "--beta-range 1e-4 0.01005",
    "larger-half": "--beta-range 0.01005 0.02",
    "ddpm-ddpm++": "--network ddpm++",
    "edm-unet": "--family edm --network unet",
    "edm-ddpm++": "--family edm",
    "flow": "--family flow",
}
"""The flags of pretrain.py that a name stands for; the schedules are those of Xiang et al. 2023, section 4.1.1."""
SAME = (
    "dataset", "steps", "snapshot_every", "out", "data_root", "label_column", "group_by", "white", "image_size",
    "check_data", "skip_unreadable", "num_workers", "dry_run", "recipe",
)  # fmt: skip
"""Flags of pretrain.py that no configuration has of its own."""
COLUMNS = "configuration", "steps", "block", "timestep", "sigma", "amplitude_left"
"""Params of a trial that MLflow's page of trials shows."""


@dataclass(frozen=True)
class Setup:
    config: NoiseAblation
    task: AblationTask
    images: Images
    folder: Path


def set_up(config: NoiseAblation) -> Setup:
    """Check the flags, and load what is needed. Raises ValueError, or OSError where --out cannot be written."""
    many = 1, 10**9
    check_numbers(config, steps=many)
    check_numbers(config, num_snapshots=(1, config.steps), num_images=(8, 10**9), num_val=many, pooling=(1, 64))
    check_search(config.search, config.num_trials)
    check_numbers(config, num_seeds=(1, 1000), num_samples=(2, 10**9), sampling_steps=(2, 10**6), seed=SEEDS)
    for name in config.configurations:
        if name not in CONFIGURATIONS and not name.lstrip().startswith("--"):
            raise ValueError(
                f"configuration={name!r} is none of {', '.join(CONFIGURATIONS)}, and no flags of pretrain.py, as "
                "'--num-levels 128 --flip'"
            )
    if not config.configurations or len(set(config.configurations)) < len(config.configurations):
        raise ValueError(f"configurations={list(config.configurations)}: give one or more, and each once")
    if not config.sigmas or min(config.sigmas) <= 0:
        raise ValueError(f"sigmas={list(config.sigmas)}: give one or more above 0, as 0.03 0.1 0.4")
    if config.steps % config.num_snapshots:
        raise ValueError(
            f"steps={config.steps} cannot be shared evenly by num_snapshots={config.num_snapshots}; give a multiple"
        )
    device = choose_device(config.device)
    name = config.extractor or (str(JUDGE) if config.dataset.startswith("fashion-mnist") and JUDGE.is_dir() else "")
    if not name:
        raise ValueError(f"--extractor is needed for dataset={config.dataset!r}, as efficientnet-lite0")
    extractor = load_extractor(absolute(name) if Path(name).exists() else name, device)
    trainings = {each: training_of(config, each, not n) for n, each in enumerate(config.configurations)}
    for one, other in combinations(trainings, 2):
        if trainings[one].recipe == trainings[other].recipe:
            raise ValueError(f"configurations {one!r} and {other!r} are the same training; give one of them")
    images = next(iter(trainings.values())).read_images()
    if len(images.classes) < 2:
        raise ValueError(f"dataset={config.dataset!r} has one class, and features of it cannot be told apart")
    if len(images.labels) < 2 * config.num_samples:
        raise ValueError(
            f"num_samples={config.num_samples:,} needs twice as many real images and dataset={config.dataset!r} has "
            f"{len(images.labels):,}; give --num-samples {len(images.labels) // 2} or fewer"
        )
    check_enough(config.num_samples, extractor(images.read([0, 1])).shape[1])  # type: ignore[arg-type]
    every = config.steps // config.num_snapshots
    splits = split_rows(images, 0, VAL_FRACTION)
    sizes = min(config.num_images, len(splits["train"])), min(config.num_val, len(splits["val"]))
    probing = Probing(config.sigmas, *sizes, config.pooling, config.num_seeds)
    sampling = Sampling(extractor.name, extractor.fingerprint, config.num_samples, config.sampling_steps)
    task = AblationTask(
        trainings, tuple(range(every, config.steps + 1, every)), probing, sampling, absolute(config.dataset),
        str(Path(config.data_root).absolute()), replace(images.reading, check=False), images.fingerprint, device,
    )  # fmt: skip
    searched = {} if config.search == "grid" else {"search": config.search, "num_trials": config.num_trials}
    key = content_key(cells=[task.key(cell, 1) for cell in task.cells], **searched)
    return Setup(config, task, images, config.out / f"noise-ablation-{key[:8]}")


def training_of(config: NoiseAblation, name: str, says: bool) -> Pretraining:
    """The training of a configuration, whose network and snapshots lie in a folder of its recipe. says: whether what is
    to be known of the images is logged."""
    common = Pretrain(
        dataset=config.dataset, steps=config.steps, batch_size=config.batch_size, seed=config.seed, decay="none",
        learning_rate=config.learning_rate, channels=config.channels, device=config.device, sample_every=0,
        data_root=config.data_root, label_column=config.label_column, group_by=config.group_by, white=config.white,
        check_data=config.check_data, skip_unreadable=config.skip_unreadable,
        snapshot_every=config.steps // config.num_snapshots,
    )  # fmt: skip
    try:
        args = shlex.split(f"{config.training} {CONFIGURATIONS.get(name, name)}")
        flags = cli.parse(Pretrain, args, None, default=common)
    except ValueError as error:
        raise ValueError(f"configuration={name!r}: {error}") from error
    if others := [each for each in SAME if getattr(flags, each) != getattr(common, each)]:
        flag = others[0].replace("_", "-")
        raise ValueError(f"configuration={name!r}: --{flag} is the same for all, or not for this command; leave it out")
    if flags.family == "vae":
        raise ValueError(
            f"configuration={name!r} has no noise; give a kind of diffusion, and an autoencoder by --latents"
        )
    key = content_key(recipe=recipe_of(flags), snapshots=config.num_snapshots)
    folder = "-".join(re.findall(r"[\w.+-]+", name.replace("--", ""))) or "full"
    return pretraining.set_up(replace(flags, out=config.out / "networks" / f"{folder[:40]}-{key[:8]}"), says)


def run(setup: Setup, started_seconds: float) -> Findings:
    """Train and look at every cell, in Ray's workers, and write and log what was found."""
    config, task = setup.config, setup.task
    store = str(Path(config.store).absolute())
    progress = Progress()
    with open_run(
        setup.folder, Path(config.dataset).resolve().name, store, task, COLUMNS, flags_of(config), {}
    ) as tracker:
        search = HalvingSearch(task, config.num_trials, config.search, config.seed)
        [trials] = run_searches([Run(search, store, no_needs)], tracker, progress, [], "ablation")
        found = Findings(task, tuple(trials), setup.folder, tracker.where, time.time() - started_seconds)
        publish(found, config, tracker)
    return found


def estimate(setup: Setup) -> str:
    """What it costs, by a few steps of the first training on one thread, as a worker has."""
    torch.set_num_threads(1)
    config, task = setup.config, setup.task
    training = next(iter(task.trainings.values()))
    with TemporaryDirectory() as scratch:
        seconds = timed(training, torch.device(task.device), Path(scratch))
    per_pass = seconds / config.batch_size / 3  # a step is a pass forwards, and a backward one of twice its work
    sampled = len(STARTS) * config.num_samples * num_passes("ddim", config.sampling_steps)
    searched = config.num_seeds * (config.num_images * len(config.sigmas) + config.num_val)
    cells, trainings = len(task.cells), len(task.trainings)
    if config.search != "grid":
        cells = min(cells, config.num_trials)
    lines = {
        "cells": f"{cells} of {trainings} configurations x {len(task.snapshots)} snapshots",
        "training": f"{trainings} x {config.steps:,} steps, {duration(trainings * config.steps * seconds)}",
        "features": f"{cells} x {searched:,} passes, {duration(cells * searched * per_pass)}",
        "sampling": f"{cells} x {sampled:,} passes, {duration(cells * sampled * per_pass)}",
        "in all": f"{duration(trainings * config.steps * seconds + cells * (searched + sampled) * per_pass)}, divided "
        "by the number of cores or GPUs",
    }
    return "\n".join(f"{name:<12}{text}" for name, text in lines.items())
