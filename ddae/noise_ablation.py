"""What the noise of pre-training does (Xiang et al. 2023, sections 4.1.1 and 4.1.2): how well a network's features are
recognised at each noise level, and how near its samples are to real images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddae import ridge
from ddae.backbones import Backbone
from ddae.datasets import Dataset, Images
from ddae.features import FeatureKey, extract
from ddae.generation.extractors import Extractor, resized
from ddae.generation.measures import Measured, measure
from ddae.generation.sampling import sample, usual_sampler
from ddae.noise import Schedule
from ddae.pooling import pool, stored_grid
from ddae.probe import fit_probe, standard_error

VERSION = 1
"""Raise it when the same network would give other numbers."""
HEAD = "ridge"
BATCH = 256


@dataclass(frozen=True)
class Recognition:
    """What ridge regression makes of a network's features, of one part of the training images."""

    curve: dict[int, float]
    """timestep -> leave-one-out accuracy on the training images at the best block."""
    block: str
    """The best block, and the timestep and sigma at which it is best."""
    timestep: int
    sigma: float
    accuracy: float
    """There, on val images, which have chosen the penalty alone."""
    stderr: float


def nearest_timesteps(schedule: Schedule, sigmas: Sequence[float]) -> dict[float, int]:
    """The timestep whose noise is nearest to each sigma (noise against image, in log), each timestep once. A sigma that
    is more than twice the most, or less than half the least, that the schedule has is left out."""
    levels = np.log([max(schedule.sigma(t), 1e-12) for t in schedule.timesteps])
    nearest: dict[int, float] = {}
    for sigma in sorted(sigmas):
        if levels.min() - np.log(2) < np.log(sigma) < levels.max() + np.log(2):
            nearest.setdefault(schedule.timesteps[int(np.abs(levels - np.log(sigma)).argmin())], sigma)
    return {sigma: timestep for timestep, sigma in nearest.items()}


def recognise(
    backbone: Backbone,
    dataset: Dataset,
    timesteps: Sequence[int],
    num_images: int,
    num_val: int,
    pooling: int,
    seed: int,
    latents: np.ndarray | None = None,
) -> Recognition:
    """Search all blocks at the timesteps. seed: decides which training images are seen, and their noise. latents: those
    of the dataset's images [N, C, S, S], where they are at hand; without, a network on latents encodes the images.

    Raises ValueError where there is no timestep."""
    if not timesteps:
        raise ValueError("the schedule has none of the noise levels that were asked for; give others with --sigmas")
    key = FeatureKey(backbone.fingerprint, dataset.images.fingerprint, 0, 0, seed, pooling)
    train = np.random.default_rng(seed).permutation(dataset.splits["train"])[:num_images]
    val = dataset.splits["val"][:num_val]
    labels, val_labels = (torch.from_numpy(dataset.images.labels[rows]) for rows in (train, val))
    blocks = {block.name: block for block in backbone.blocks}

    def maps(rows: np.ndarray, timestep: int, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        encoded = None if latents is None else latents[rows]
        for name, columns in extract(backbone, dataset, rows, timestep, names, key, encoded=encoded).items():
            grid = stored_grid(size := blocks[name].size, pooling)
            whole = torch.from_numpy(columns).float().unflatten(1, (-1, grid, grid))
            yield name, pool(whole, min(pooling, size))

    curve, best = {}, (-1.0, "", 0, torch.empty(0))
    for timestep in timesteps:
        at = []
        for name, features in maps(train, timestep, list(blocks)):
            at.append(float(ridge.leave_one_out(features, labels, dataset.num_classes).mean()))
            if at[-1] > best[0]:
                best = at[-1], name, timestep, features
        curve[timestep] = max(at)
    _, name, timestep, features = best
    [(_, val_features)] = maps(val, timestep, [name])
    fitted = fit_probe(HEAD, (features, labels), (val_features, val_labels), dataset.num_classes, seed)
    accuracy = float(fitted.correct.mean())
    return Recognition(curve, name, timestep, backbone.sigma(timestep), accuracy, standard_error(accuracy, len(val)))


@dataclass(frozen=True)
class RealImages:
    """What samples are compared with, read once for all networks of one size."""

    pixels: Tensor
    """uint8 [2 N, 3, S, S]"""
    features: tuple[Tensor, Tensor]
    """Under the extractor, of the first N and of the other N, whose distance from the first is the floor."""
    extractor: Extractor


def read_real(images: Images, extractor: Extractor, num_samples: int, image_size: int) -> RealImages:
    """Raises ValueError where there are fewer than twice so many."""
    rows = np.random.default_rng(0).permutation(len(images.labels))[: 2 * num_samples]
    if len(rows) < 2 * num_samples:
        raise ValueError(
            f"num_samples={num_samples:,} needs twice as many real images and there are {len(rows):,}; give "
            f"--num-samples {len(rows) // 2} or fewer"
        )
    pixels = resized(images.read(rows).contiguous(), image_size)
    first, others = (extractor(part) for part in pixels.split(num_samples))
    return RealImages(pixels, (first, others), extractor)


def distances(
    backbone: Backbone, real: RealImages, num_steps: int, seed: int = 0, start: str = "noise"
) -> list[Measured]:
    """How far N samples are from N real images, and other real images beside them.

    start: noise, or real for samples that begin at noised real images, the other N: a schedule whose last timestep
    still holds some of the image cannot begin at noise alone, and that separates a bad network from a start that it
    never saw. Raises ValueError where samples are no numbers.
    """
    num_samples, parts = len(real.pixels) // 2, []
    for first in range(0, num_samples, BATCH):
        indices = np.arange(first, min(first + BATCH, num_samples))
        x0 = backbone.encode(real.pixels[num_samples + indices]) if start == "real" else None
        found = sample(backbone, indices, seed, num_steps, usual_sampler(backbone.schedule), x0=x0)
        if not found.isfinite().all():
            raise ValueError("the network samples what is no number")
        parts.append(backbone.encoder.decode(found).cpu())  # type: ignore[attr-defined]
    return measure(real.extractor(torch.cat(parts)), *real.features, real.extractor.distance)


def schedule_facts(schedule: Schedule) -> dict[str, float]:
    """How much of the image is left at the noisiest timestep, and the range of sigma (noise against image)."""
    steps = [t for t in schedule.timesteps if schedule.sigma(t) > 0]
    least, most = min(steps, key=schedule.sigma), max(steps, key=schedule.sigma)
    return {
        "timesteps": len(steps),
        "amplitude_left": schedule.scales(most)[0],
        "sigma_least": schedule.sigma(least),
        "sigma_most": schedule.sigma(most),
    }
