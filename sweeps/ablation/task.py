"""The Task of the ablation: a cell is one configuration of pre-training after so many steps. It trains the network, or
goes on from where another cell has left it, searches its features, and measures its samples."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ddae import noise_ablation
from ddae.backbones import load_backbone
from ddae.backbones.base import Settings
from ddae.datasets import Dataset, Reading, load_dataset
from ddae.generation.extractors import load_extractor
from ddae.noise_ablation import RealImages
from ddae.pretrain import Pretraining
from ddae.pretraining.latents import Latents
from storage.files import locked
from storage.ledger import content_key
from sweeps.cluster.loop import Diverged, run_loop
from sweeps.cluster.train import FileCheckpoint
from sweeps.pretraining.latents import encode_latents
from sweeps.search.task import Axis, Checkpoint, Objective, Resources, Result, Value

log = logging.getLogger("sweeps")

STARTS = "noise", "real"
"""Where the samples begin that are measured: at noise, and at noised real images."""

AT_SIGMA = "accuracy_at_sigma_"
"""Begins the name of a metric: leave-one-out accuracy at one noise level."""


@lru_cache(maxsize=1)
def opened(
    name: str, data_root: str, reading: Reading, image_size: int, num_channels: int, sampling: "Sampling", device: str
) -> tuple[Dataset, RealImages]:
    """The dataset as a network of this size sees it, and its images that samples are compared with."""
    dataset = load_dataset(name, image_size, data_root, reading=reading, num_channels=num_channels)
    extractor = load_extractor(sampling.extractor, device)
    return dataset, noise_ablation.read_real(dataset.images, extractor, sampling.num_samples, image_size)


@dataclass(frozen=True, order=True)
class Cell:
    configuration: str
    steps: int


@dataclass(frozen=True)
class Probing:
    """How the features of a network are searched."""

    sigmas: tuple[float, ...]
    num_images: int
    num_val: int
    pooling: int
    num_seeds: int


@dataclass(frozen=True)
class Sampling:
    """How a network is sampled from, and under what its samples are compared."""

    extractor: str
    extractor_fingerprint: str
    num_samples: int
    num_steps: int


@dataclass(frozen=True)
class AblationTask:
    trainings: Mapping[str, Pretraining]
    """By the names of their configurations."""
    snapshots: tuple[int, ...]
    """Steps after which a network is looked at, growing."""
    probing: Probing
    sampling: Sampling
    dataset: str
    data_root: str
    reading: Reading
    images: str
    """Their fingerprint."""
    device: str
    name: str = "noise-ablation"
    objectives: tuple[Objective, ...] = (Objective("val_accuracy"), Objective("fd", "minimize"))
    resource: str = "cells"
    rungs: tuple[int, ...] = (1,)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every configuration after few steps, then after more: a trial seldom waits for another one's training."""
        return tuple(Cell(name, steps) for steps in self.snapshots for name in self.trainings)

    @property
    def axes(self) -> Mapping[str, Axis]:
        names = tuple(self.trainings)
        return {"configuration": Axis(names, names), "steps": Axis(self.snapshots, numeric=True)}

    def resources(self, cell: Cell, rung: int) -> Resources:
        return Resources(num_gpus=float(self.device.startswith("cuda")))

    def key(self, cell: Cell, rung: int) -> str:
        sampling = asdict(self.sampling)
        del sampling["extractor"]
        return content_key(
            recipe=self.trainings[cell.configuration].recipe,
            steps=cell.steps,
            images=self.images,
            probing=asdict(self.probing),
            sampling=sampling,
            version=noise_ablation.VERSION,
        )

    def reads(self, cell: Cell, rung: int) -> Cell:
        return cell

    def needs(self, cell: Cell, rung: int) -> tuple[()]:
        return ()

    def run(self, cells: Sequence[Cell], rung: int, checkpoints: Sequence[Checkpoint]) -> Iterator[Result]:
        for cell in cells:
            started = time.time()
            try:
                folder = self.network(cell)
            except Diverged as error:
                log.warning(f"{self.label(cell)}: {error}")
                metrics = {"val_accuracy": 0.0, "val_stderr": 0.0}
                yield Result(metrics, {"trouble": str(error)}, started, time.time())
                continue
            metrics, params = self.measured(folder, self.trainings[cell.configuration].latents)
            yield Result(metrics, params, started, time.time())

    def network(self, cell: Cell) -> Path:
        """The folder of the network after so many steps, trained as far as it was not yet. Raises Diverged."""
        training = self.trainings[cell.configuration]
        folder = training.snapshots / f"step-{cell.steps}"
        with locked(training.snapshots / ".lock"):
            if not folder.exists():
                encode_latents(training, self.device)
                checkpoint = FileCheckpoint(training.snapshots / "checkpoint.pt")
                run_loop(training, checkpoint, torch.device(self.device), cell.steps)
        return folder

    def measured(self, folder: Path, latents: Latents | None) -> tuple[dict[str, float], dict[str, Value]]:
        """Metrics and params of a trained network."""
        probing, sampling = self.probing, self.sampling
        backbone = load_backbone(str(folder), Settings(self.device))
        size = backbone.image_size, 3 if latents else backbone.encoder.shape[0]
        encoded = latents.open()[0] if latents and latents.file.exists() else None
        dataset, real = opened(self.dataset, self.data_root, self.reading, *size, sampling, self.device)
        timesteps = noise_ablation.nearest_timesteps(backbone.schedule, probing.sigmas)
        sizes = probing.num_images, probing.num_val, probing.pooling
        found = [
            noise_ablation.recognise(backbone, dataset, list(timesteps.values()), *sizes, seed, encoded)
            for seed in range(probing.num_seeds)
        ]
        accuracies = np.array([each.accuracy for each in found])
        over_seeds = accuracies.std(ddof=1) / len(found) ** 0.5 if len(found) > 1 else 0.0
        metrics = {
            "val_accuracy": float(accuracies.mean()),
            "val_stderr": float(np.hypot(found[0].stderr, over_seeds)),
            "stderr_over_seeds": float(over_seeds),
        }
        for sigma, timestep in timesteps.items():
            metrics[f"{AT_SIGMA}{sigma:g}"] = float(np.mean([each.curve[timestep] for each in found]))
        for start in STARTS:
            measured = noise_ablation.distances(backbone, real, sampling.num_steps, start=start)
            suffix = "" if start == "noise" else "_from_real"
            for each in measured:
                name = {"FID": "fd", "KID": "kd"}.get(each.name, each.name.lower())
                metrics[name + suffix] = each.value
                metrics[f"{name}_floor"] = each.floor
            low, high = measured[0].interval
            metrics[f"fd{suffix}_stderr"] = (high - low) / 4
        best = max(found, key=lambda each: each.accuracy)
        params: dict[str, Value] = {"block": best.block, "timestep": best.timestep, "sigma": round(best.sigma, 4)}
        return metrics, params | noise_ablation.schedule_facts(backbone.schedule)

    def label(self, cell: Cell) -> str:
        return f"{cell.configuration}/{cell.steps}"

    def params(self, cell: Cell) -> dict[str, Value]:
        training = self.trainings[cell.configuration]
        levels = training.levels
        return {
            **asdict(cell),
            "family": training.framework,
            "network": training.network_kind,
            "num_levels": levels.num_levels,
            "beta_range": " ".join(f"{beta:g}" for beta in levels.beta_range),
        }
