"""How far generated images are from real ones, each number beside what two sets of real images give."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

LEAST_PER_FEATURE = 2
"""Images for each feature below which a Fréchet distance says more of their number than of their quality."""
AT_ONCE = 4000
"""More images than this are compared in parts, so that memory does not grow with the square of their number."""
SPREAD = 1.96
"""Standard errors to each side of an interval of 95 %."""


Distance = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class Measured:
    """One measure of generated images against real ones, and its floor, that of as many real images."""

    name: str
    value: float
    interval: tuple[float, float]
    """Its interval of 95 %."""
    floor: float
    floor_interval: tuple[float, float]


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Between the normal distributions of features [N, D], float64 (Heusel et al. 2017, equation 6). It falls with N,
    so that numbers of different N cannot be compared."""
    found = fid_statistics_to_metric(*map(fid_features_to_statistics, (one, other)), verbose=False)
    return max(0.0, float(found[KEY_METRIC_FID]))


def kernel_distance(one: Tensor, other: Tensor) -> float:
    """Squared maximum mean discrepancy under KID's cubic kernel, without bias: below 0 by chance (Binkowski et al.
    2018). The mean over parts of 2,000 where there are more than 4,000."""
    whole = len(one) <= AT_ONCE
    size, number = (len(one), 1) if whole else (AT_ONCE // 2, len(one) // (AT_ONCE // 2))
    found = kid_features_to_metric(one, other, kid_subset_size=size, kid_subsets=number, verbose=False)
    return float(found[KEY_METRIC_KID_MEAN])


def precision_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Shares of generated images within the manifold of the real ones, and of real ones within that of the generated,
    from each image's third neighbour (Kynkäänniemi et al. 2019)."""
    found = prc_features_to_metric(
        generated, real, prc_neighborhood=3, prc_batch_size=1000, save_cpu_ram=len(generated) > AT_ONCE, verbose=False
    )
    return found["precision"], found["recall"]


def half_sample_stderr(
    distance: Distance,
    one: Tensor,
    other: Tensor,
    num_resamples: int,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> float:
    """The standard deviation of a distance over halves of both sets, drawn without replacement, which for means is
    that of the whole sets (Shao & Wu 1989). Sets drawn with replacement hold images twice, which moves and spreads a
    distance near its floor; halves spread it somewhat too much there."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num_resamples):
        rows = [torch.from_numpy(rng.permutation(len(each))[: len(each) // 2]) for each in (one, other)]
        found.append(distance(one[rows[0]], other[rows[1]]))
        on_step()
    return float(np.std(found, ddof=1))


def check_enough(num_images: int, width: int) -> None:
    """Raises ValueError where there are too few images for a Fréchet distance under so many features."""
    least = LEAST_PER_FEATURE * width
    if num_images < least:
        raise ValueError(
            f"{num_images:,} images are too few for a Fréchet distance under {width:,} features: their covariance has "
            f"{width:,} x {width:,} numbers, and with fewer than {least:,} images the distance is mostly the error of "
            "estimating it; give more with --num-samples, an extractor of fewer features, or --force"
        )


def measure(
    generated: Tensor,
    real: Tensor,
    others: Tensor,
    distance: str = "FD",
    num_resamples: int = 50,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> list[Measured]:
    """Compares features [N, D], float64, of generated images with those of real ones, and those of other real images
    with the same. distance: what the Fréchet distance is called. on_step: called 4 * num_resamples times.

    Precision and recall vary as shares of N images do, their manifolds being given."""
    if not len(generated) == len(real) == len(others):
        raise ValueError(f"sets of {len(generated)}, {len(real)} and {len(others)} images; give as many of each")
    measured = []
    for name, each in ((distance, frechet_distance), ("KID" if distance == "FID" else "KD", kernel_distance)):
        least = 0.0 if each is frechet_distance else -math.inf

        def spread(one: Tensor, each: Distance = each, least: float = least) -> tuple[float, tuple[float, float]]:
            value, stderr = each(one, real), half_sample_stderr(each, one, real, num_resamples, seed, on_step)
            return value, (max(least, value - SPREAD * stderr), value + SPREAD * stderr)

        measured.append(Measured(name, *spread(generated), *spread(others)))
    shares, floors = precision_recall(generated, real), precision_recall(others, real)
    for name, share, floor in zip(("precision", "recall"), shares, floors, strict=True):
        measured.append(Measured(name, share, wilson(share, len(real)), floor, wilson(floor, len(real))))
    return measured


def wilson(share: float, number: int) -> tuple[float, float]:
    """The interval of 95 % of a share of so many (Wilson 1927)."""
    middle = (share + SPREAD**2 / (2 * number)) / (1 + SPREAD**2 / number)
    half = SPREAD / (1 + SPREAD**2 / number) * (share * (1 - share) / number + (SPREAD / (2 * number)) ** 2) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


Damage = Callable[[Tensor, np.ndarray], Tensor]
"""(uint8 [N, 3, H, W], labels int64 [N]) -> as many damaged images."""


def noised(std: float) -> Damage:
    """std: of the noise, in shares of the range from black to white; one noise for the three colours."""

    def damage(images: Tensor, labels: np.ndarray) -> Tensor:
        shape = (len(images), 1, *images.shape[-2:])
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return (images + 255 * std * noise).round().clamp(0, 255).to(torch.uint8)

    return damage


def blurred(images: Tensor, labels: np.ndarray) -> Tensor:
    """The mean of each pixel and its eight neighbours."""
    return functional.avg_pool2d(images.float(), 3, 1, 1, count_include_pad=False).round().to(torch.uint8)


def without_classes(images: Tensor, labels: np.ndarray) -> Tensor:
    """The second half of the classes is missing; images of the others stand in their places."""
    classes = np.unique(labels)
    kept = np.flatnonzero(np.isin(labels, classes[: (len(classes) + 1) // 2]))
    return images[torch.from_numpy(np.resize(kept, len(images)))]


LADDER: Mapping[str, Damage] = {
    "noise of 0.05": noised(0.05),
    "noise of 0.1": noised(0.1),
    "noise of 0.2": noised(0.2),
    "blur, 3 x 3": blurred,
    "half of the classes": without_classes,
}
"""Damage of known kind; the noises in order."""


@dataclass(frozen=True)
class Rung:
    """A damage, and whether the distance shows it: it lies above the floor's interval and, of noise, above that of
    less noise."""

    name: str
    distance: float
    passed: bool


def ladder(
    read: Callable[[Tensor], Tensor], real: Tensor, images: Tensor, labels: np.ndarray, least: float
) -> list[Rung]:
    """Whether an extractor orders known damage. Where all images are of one class, none can be left out.

    real: features [N, D] of real images; images: as many others, uint8, with their labels. least: the most that
    the Fréchet distance between the two may be by chance."""
    rungs: list[Rung] = []
    for name, damage in LADDER.items():
        if damage is without_classes and len(np.unique(labels)) < 2:
            continue
        distance = frechet_distance(read(damage(images, labels)), real)
        before = [rung.distance for rung in rungs] if name.startswith("noise") else []
        rungs.append(Rung(name, distance, distance > max([least, *before])))
    return rungs
