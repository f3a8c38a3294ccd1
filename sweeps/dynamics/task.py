"""The Tasks of feature learning, which need nothing in the store: a cell is one training of a small network, on planted
signals or on images."""

import io
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from ddae import feature_learning, noisy_images
from ddae.feature_learning import (
    Course,
    Diverged,
    Samples,
    early_growth,
    initial_weights,
    relative_snr,
    train,
    two_patch_samples,
)
from ddae.noisy_images import TwoClasses, beside_noise, factor_of, pick, probe_accuracy, read_outs
from storage.ledger import content_key
from sweeps.search.task import Axis, Checkpoint, Objective, Resources, Result, Value

log = logging.getLogger("sweeps")


@dataclass(frozen=True)
class Network:
    """What all trainings have in common."""

    num_filters: int
    init_std: float
    alpha: float
    rates: tuple[tuple[str, float], ...]
    """(objective, learning rate)"""

    def train(self, objective: str, samples: Samples, num_steps: int, seed: int) -> Course:
        weights = self.first_weights(objective, samples.patches.shape[-1], seed)
        return train(objective, samples, weights, dict(self.rates)[objective], num_steps, self.alpha, seed)

    def first_weights(self, objective: str, dimension: int, seed: int) -> np.ndarray:
        return initial_weights(objective, self.num_filters, dimension, self.init_std, seed)


@dataclass(frozen=True, order=True)
class PatchCell:
    objective: str
    num_samples: int
    signal_norm: float
    seed: int


@dataclass(frozen=True, order=True)
class ImageCell:
    objective: str
    relative_snr: float
    """n SNR^2"""
    seed: int


@dataclass(frozen=True)
class DynamicsTask(ABC):
    """What both Tasks have in common."""

    network: Network
    rungs: tuple[int, ...]
    """The most steps that a training may take."""
    trained: tuple[str, ...]
    """Objectives of the network."""
    seeds: tuple[int, ...]
    objectives: tuple[Objective, ...] = (Objective("balance"),)
    resource: str = "steps"

    def resources(self, cell: Any, rung: int) -> Resources:
        return Resources(num_cpus=1)

    def needs(self, cell: Any, rung: int) -> tuple:
        return ()

    def run(self, cells: Sequence[Any], rung: int, checkpoints: Sequence[Checkpoint]) -> Iterator[Result]:
        """A training that diverges is a result, so that the sweep goes on. Courses are kept in the checkpoints."""
        for cell, checkpoint in zip(cells, checkpoints, strict=True):
            started = time.time()
            try:
                course = self.course(cell, rung)
            except Diverged as error:
                log.warning(f"{self.label(cell)}: {error}")
                yield Result({"balance": 0.0}, {"ended": "diverged"}, started, time.time())
                continue
            checkpoint.save(packed(course))
            metrics = {
                "balance": course.balance,
                "signal": float(course.signal[-1]),
                "noise": float(course.noise[-1]),
                "num_steps": float(course.steps[-1]),
                "loss": float(course.loss[-1]),
                **self.more(cell, course),
            }
            yield Result(metrics, {"ended": "early" if course.ended else "all steps"}, started, time.time())

    @abstractmethod
    def course(self, cell: Any, rung: int) -> Course:
        """The training of a cell. Raises Diverged."""

    @abstractmethod
    def more(self, cell: Any, course: Course) -> Mapping[str, float]:
        """More metrics of a training."""

    @abstractmethod
    def label(self, cell: Any) -> str:
        """Task.label"""

    def params(self, cell: Any) -> dict[str, Value]:
        return asdict(cell)


@dataclass(frozen=True)
class PatchTask(DynamicsTask):
    """On two patches, of which one has a planted signal."""

    num_samples: tuple[int, ...] = ()
    signal_norms: tuple[float, ...] = ()
    dimension: int = 0
    noise_std: float = 0
    name: str = "feature-learning"

    @property
    def cells(self) -> tuple[PatchCell, ...]:
        axes = self.num_samples, self.signal_norms, self.seeds, self.trained
        return tuple(PatchCell(objective, n, norm, seed) for n, norm, seed, objective in product(*axes))

    @property
    def axes(self) -> Mapping[str, Axis]:
        return {
            "objective": Axis(self.trained, self.trained),
            "num_samples": Axis(self.num_samples, numeric=True),
            "signal_norm": Axis(self.signal_norms, numeric=True),
            "seed": Axis(self.seeds),
        }

    def key(self, cell: PatchCell, rung: int) -> str:
        return content_key(
            task=self.name,
            cell=asdict(cell),
            network=asdict(self.network),
            data=(self.dimension, self.noise_std),
            num_steps=rung,
            version=feature_learning.VERSION,
        )

    def reads(self, cell: PatchCell, rung: int) -> tuple[int, float, int]:
        return cell.num_samples, cell.signal_norm, cell.seed

    def course(self, cell: PatchCell, rung: int) -> Course:
        samples = two_patch_samples(cell.num_samples, self.dimension, cell.signal_norm, self.noise_std, cell.seed)
        return self.network.train(cell.objective, samples, rung, cell.seed)

    def more(self, cell: PatchCell, course: Course) -> dict[str, float]:
        growth = early_growth(cell.objective, course)
        early = {} if growth is None else {"growth_order": growth.order, "growth_ratio": growth.ratio}
        return {"ratio": course.ratio, **early}

    def relative_snr(self, cell: PatchCell) -> float:
        return relative_snr(cell.num_samples, self.dimension, cell.signal_norm, self.noise_std)

    def label(self, cell: PatchCell) -> str:
        return f"{cell.objective}/n={cell.num_samples}/mu={cell.signal_norm:g}/seed={cell.seed}"

    def params(self, cell: PatchCell) -> dict[str, Value]:
        return {**super().params(cell), "relative_snr": round(self.relative_snr(cell), 4)}


@dataclass(frozen=True)
class ImageTask(DynamicsTask):
    """On images of two classes, each beside a patch of noise."""

    relative_snrs: tuple[float, ...] = ()
    num_images: int = 0
    num_probe: int = 0
    """Images of each class on which a probe is fitted."""
    num_val: int = 0
    """Images of each class on which it and the network are looked at."""
    fingerprint: str = ""
    """A hash of the images and the names of the classes."""
    pixels: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None
    """train and val -> flat images [N, d] in 0 to 1, and their labels, 1 or -1."""
    name: str = "feature-learning-images"

    @property
    def cells(self) -> tuple[ImageCell, ...]:
        return tuple(ImageCell(o, snr, seed) for snr, seed, o in product(self.relative_snrs, self.seeds, self.trained))

    @property
    def axes(self) -> Mapping[str, Axis]:
        return {
            "objective": Axis(self.trained, self.trained),
            "relative_snr": Axis(self.relative_snrs, numeric=True),
            "seed": Axis(self.seeds),
        }

    def key(self, cell: ImageCell, rung: int) -> str:
        return content_key(
            task=self.name,
            cell=asdict(cell),
            network=asdict(self.network),
            data=(self.fingerprint, self.num_images, self.num_probe, self.num_val),
            num_steps=rung,
            version=(feature_learning.VERSION, noisy_images.VERSION),
        )

    def reads(self, cell: ImageCell, rung: int) -> tuple[float, int]:
        return cell.relative_snr, cell.seed

    def images(self, cell: ImageCell) -> TwoClasses:
        assert self.pixels is not None
        half, (train, val) = self.num_images // 2, (self.pixels[split] for split in ("train", "val"))
        known, others = pick(*train, half + self.num_probe, cell.seed), pick(*val, self.num_val, cell.seed)
        own, probe = np.split(known, [2 * half])
        factor = factor_of(own, cell.relative_snr)
        return TwoClasses(factor * own, factor * probe, factor * others)

    def course(self, cell: ImageCell, rung: int) -> Course:
        samples = beside_noise(self.images(cell).train, cell.seed)
        return self.network.train(cell.objective, samples, rung, cell.seed)

    def more(self, cell: ImageCell, course: Course) -> dict[str, float]:
        images, alpha = self.images(cell), self.network.alpha
        untrained = self.network.first_weights(cell.objective, images.train.shape[1], cell.seed)
        probed = (beside_noise(each, cell.seed, draw) for each, draw in ((images.probe, 2), (images.val, 1)))
        return {
            **read_outs(cell.objective, course.weights, images, alpha, cell.seed),
            "untrained_probe_accuracy": probe_accuracy(untrained, *probed),
        }

    def label(self, cell: ImageCell) -> str:
        return f"images/{cell.objective}/{cell.relative_snr:g}/seed={cell.seed}"


def packed(course: Course) -> bytes:
    """What a figure shows of a course."""
    np.savez_compressed(
        buffer := io.BytesIO(), steps=course.steps, signal=course.signal, noise=course.noise, loss=course.loss
    )
    return buffer.getvalue()


def unpacked(state: bytes) -> dict[str, np.ndarray]:
    """What packed() was given: steps, signal, noise and loss, [T] each."""
    with np.load(io.BytesIO(state)) as arrays:
        return dict(arrays)
