"""A sweep of feature learning from its flags to its findings."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ddae.datasets import Dataset, load_dataset
from ddae.feature_learning import CLASSIFIERS, check_samples
from ddae.nearest import did_you_mean
from ddae.units import duration
from storage.ledger import content_key
from storage.remote import is_address
from sweeps.cluster.tune import Run
from sweeps.driver import no_needs, open_run, run_searches
from sweeps.dynamics.findings import Findings
from sweeps.dynamics.publish import publish, report
from sweeps.dynamics.task import DynamicsTask, ImageTask, Network, PatchTask
from sweeps.feature_learning import FeatureLearning
from sweeps.findings.logged import finished_report, incomplete
from sweeps.flags import SEEDS, as_flags, check_numbers
from sweeps.probing.source import reading_of
from sweeps.progress import Progress
from sweeps.search.halving import HalvingSearch
from sweeps.search.task import Task

__all__ = ["estimate", "finished_report", "incomplete", "report", "run", "set_up"]

COLUMNS = "objective", "num_samples", "signal_norm", "relative_snr", "seed", "ended"
"""Params of a trial that MLflow's page of trials shows."""
SIDE = 32
"""Pixels to which image files are resized."""
MOST_IMAGES = 1000
"""So many images of each class are read, from which trainings draw theirs."""
FEWEST, MOST_LOOKED_AT = 10, 100
"""Images of each class that a probe is fitted on, and that it and the network are looked at on, val images."""
NUM_TIMED = 200
"""Steps that a dry run times, of each objective."""


@dataclass(frozen=True)
class Setup:
    config: FeatureLearning
    patches: PatchTask
    images: ImageTask | None

    @property
    def tasks(self) -> list[Task]:
        return [self.patches, *([self.images] if self.images else [])]

    @property
    def folder(self) -> Path:
        """out/feature-learning-<hash of all that decides the trials>."""
        keys = [task.key(cell, task.rungs[-1]) for task in self.tasks for cell in task.cells]
        return self.config.out / f"feature-learning-{content_key(trials=keys)[:8]}"

    @property
    def store(self) -> str:
        store = self.config.store
        return store if is_address(store) else str(Path(store).absolute())


def set_up(config: FeatureLearning) -> Setup:
    """Check every flag, and load the images. Raises ValueError for what cannot be trained."""
    check(config)
    rates = {"diffusion": config.diffusion_rate, "autoencoder": config.autoencoder_rate}
    rates |= dict.fromkeys(CLASSIFIERS, config.classifier_rate)
    trained = tuple(dict.fromkeys(config.objectives))
    network = Network(
        config.num_filters, config.init_std, config.alpha, tuple((name, float(rates[name])) for name in trained)
    )
    seeds = tuple(range(config.seed, config.seed + config.seeds))
    shared: dict[str, Any] = {"network": network, "rungs": (config.steps,), "trained": trained, "seeds": seeds}
    patches = PatchTask(
        **shared,
        num_samples=tuple(sorted(set(config.num_samples))),
        signal_norms=tuple(sorted(set(map(float, config.signal_norms)))),
        dimension=config.dimension,
        noise_std=float(config.noise_std),
    )
    return Setup(config, patches, image_task(config, shared) if config.images else None)


def check(config: FeatureLearning) -> None:
    """Raises ValueError for a flag that makes no sense."""
    check_numbers(config, dimension=(3, 10**6), num_filters=(1, 10**4), steps=(10, 10**7), seeds=(1, 1000), seed=SEEDS)
    check_numbers(config, init_std=(1e-12, 1), alpha=(0, 1))
    check_numbers(config, diffusion_rate=(1e-6, 10), classifier_rate=(1e-6, 100), autoencoder_rate=(1e-6, 10))
    for name in ("objectives", "num_samples", "signal_norms", "image_snrs"):
        if not getattr(config, name):
            raise ValueError(f"--{name.replace('_', '-')} is empty; give at least one, or leave the flag out")
    for num_samples in config.num_samples:
        check_samples(num_samples, config.dimension)
    for name in ("signal_norms", "image_snrs"):
        if not 0 < min(values := getattr(config, name)) <= max(values) < 1e6:
            raise ValueError(f"{name}={list(values)} must be above 0 and below 1,000,000: SNR must be above 0")
    if not 0 < config.noise_std < 1e6:
        raise ValueError(f"noise_std={config.noise_std:g} must be above 0 and below 1,000,000: SNR is |mu| over it")


def image_task(config: FeatureLearning, shared: dict) -> ImageTask:
    """Raises ValueError where the dataset has no two such classes, or too few images of them."""
    check_samples(config.num_images, SIDE**2)
    dataset = load_dataset(config.dataset, SIDE, config.data_root, 0, 0.2, reading_of(config), 1)
    names = class_numbers(dataset, config.classes)
    pixels = {split: two_classes(dataset, split, names) for split in ("train", "val")}
    has = {split: min(int((labels == label).sum()) for label in (1, -1)) for split, (_, labels) in pixels.items()}
    left = has["train"] - config.num_images // 2
    if min(left, has["val"]) < FEWEST:
        raise ValueError(
            f"--classes {' '.join(config.classes)} have {has['train']} train and {has['val']} val images each; "
            f"--num-images {config.num_images} takes half of its own from each, and {FEWEST} more of train and of val "
            "are looked at; give other classes, fewer images, or --no-images"
        )
    return ImageTask(
        **shared,
        relative_snrs=tuple(sorted(set(map(float, config.image_snrs)))),
        num_images=config.num_images,
        num_probe=min(MOST_LOOKED_AT, left),
        num_val=min(MOST_LOOKED_AT, has["val"]),
        fingerprint=content_key(images=dataset.images.fingerprint, classes=names),
        pixels=pixels,
    )


def class_numbers(dataset: Dataset, wanted: Sequence[str]) -> list[int]:
    classes = list(map(str, dataset.images.classes))
    for name in wanted:
        if name not in classes:
            hint = did_you_mean(name, classes)
            raise ValueError(f"class {name!r} is not in dataset={dataset.name!r}, which has {', '.join(classes)}{hint}")
    if len(set(wanted)) != 2:
        raise ValueError(f"--classes {' '.join(wanted)} must name two classes, of {', '.join(classes)}")
    return [classes.index(name) for name in wanted]


def two_classes(dataset: Dataset, split: str, classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Grey images of the first rows of both classes, [N, d] in 0 to 1, and 1 or -1."""
    labels = dataset.labels(split)
    places = np.concatenate([np.flatnonzero(labels == label)[:MOST_IMAGES] for label in classes])
    pixels = dataset.images.read(dataset.splits[split][places]).numpy().astype(np.float64) / 255
    return pixels.mean(1).reshape(len(places), -1), np.where(labels[places] == classes[0], 1, -1)


def estimate(setup: Setup) -> str:
    """What the sweep will cost at most, by some steps of the largest cells."""
    lines, seconds = [], 0.0
    for task in setup.tasks:
        cells = task.cells
        for objective in setup.patches.trained:
            own = [cell for cell in cells if cell.objective == objective]
            started = time.perf_counter()
            cast(DynamicsTask, task).course(max(own), NUM_TIMED)
            seconds += (time.perf_counter() - started) / NUM_TIMED * task.rungs[-1] * len(own)
        lines.append(f"{task.name:<26}{len(cells)} trainings of {task.rungs[-1]:,} steps at most")
    low, high = (f"{each:.2f}" for each in snr_range(setup.patches))
    lines += [
        f"{'n SNR^2':<26}{low} to {high}",
        f"{'time':<26}{duration(seconds)} of one core, where no training ends early",
    ]
    return "\n".join(lines)


def snr_range(task: PatchTask) -> tuple[float, float]:
    """The least and the largest n SNR^2."""
    snrs = [task.relative_snr(cell) for cell in task.cells]
    return min(snrs), max(snrs)


def run(setup: Setup, started_seconds: float) -> Findings:
    """Train every cell that is not in the ledger, on a running cluster, and write and log what was found."""
    config, patches = setup.config, setup.patches
    with open_run(setup.folder, "feature-learning", setup.store, patches, COLUMNS, as_flags(config), {}) as tracker:
        searches = [HalvingSearch(task, 1, "grid") for task in setup.tasks]
        runs = [Run(search, setup.store, no_needs) for search in searches]
        trials = run_searches(runs, tracker, Progress(), [], "training")
        found = Findings(
            patches=patches,
            images=setup.images,
            trials=tuple(trials[0]),
            image_trials=tuple(trials[1]) if setup.images else (),
            store=setup.store,
            folder=setup.folder,
            tracked=tracker.where,
            wall_seconds=time.time() - started_seconds,
        )
        publish(found, config, tracker)
    return found
