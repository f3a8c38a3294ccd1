"""Images in the place of planted signals: what a small network learns of them beside noise (Han et al., ICLR 2025,
Noisy-MNIST), by read-outs that need no known signal."""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ddae.feature_learning import CLASSIFIERS, Samples, denoising_loss, logits_of, relative_snr

VERSION = 1
"""Changes with the numbers that this file gives."""
NUM_REDRAWS = 10
"""How often the noise of a sample is drawn anew, to see what depends on it."""


@dataclass(frozen=True)
class TwoClasses:
    """Flat images of two classes, [n, d] each, as many of one class as of the other and by turns."""

    train: np.ndarray
    probe: np.ndarray
    """Others, on which a probe is fitted."""
    val: np.ndarray


def labels_of(images: np.ndarray) -> np.ndarray:
    """1, -1, 1, ..."""
    return np.where(np.arange(len(images)) % 2, -1, 1)


def pick(pixels: np.ndarray, labels: np.ndarray, num_each: int, seed: int) -> np.ndarray:
    """num_each images of each of two classes, by turns. pixels: [N, d]; labels: [N], 1 or -1. Raises ValueError where
    there are fewer."""
    rng, parts = np.random.default_rng([seed, 3]), []
    for label in (1, -1):
        rows = np.flatnonzero(labels == label)
        if len(rows) < num_each:
            raise ValueError(f"a class has {len(rows)} images where {num_each} are asked for; ask for fewer")
        parts.append(pixels[rng.permutation(rows)[:num_each]])
    return np.stack(parts, axis=1).reshape(2 * num_each, -1)


def factor_of(train: np.ndarray, wanted: float) -> float:
    """By what images [n, d] are to be multiplied beside noise of deviation 1, so that n SNR^2 is as wanted; |mu| is
    the mean norm of the class means."""
    num_images, dimension = train.shape
    norm = np.linalg.norm([train[::2].mean(0), train[1::2].mean(0)], axis=1).mean()
    if norm == 0:
        raise ValueError("the images of both classes are black on average: there is no signal; give other --classes")
    return float((wanted / relative_snr(num_images, dimension, float(norm), 1)) ** 0.5)


def beside_noise(images: np.ndarray, seed: int, draw: int = 0) -> Samples:
    """Each image as a signal patch, beside a patch of N(0, I) of its own."""
    noises = np.random.default_rng([seed, 4, draw]).standard_normal(images.shape)
    labels = labels_of(images)
    return Samples(np.stack([images, noises], axis=1), labels, images, labels)


def accuracy(weights: np.ndarray, samples: Samples) -> float:
    """The share of samples that a classifier's weights classify correctly."""
    patches = samples.patches.reshape(-1, samples.patches.shape[-1])
    return float((logits_of(weights, patches) * samples.labels > 0).mean())


def denoising_gain(weights: np.ndarray, patches: np.ndarray, alpha: float) -> float:
    """By how much a denoiser lowers the squared error of saying that there is no noise, as a share of it. patches:
    [k, d]."""
    share = np.full((len(patches), 1), 1 / len(patches))
    loss, _ = denoising_loss(patches, share, alpha)(weights, np.random.default_rng(0))
    return -loss / patches.shape[1]


def hidden(weights: np.ndarray, samples: Samples) -> np.ndarray:
    """The hidden units as a classifier sums them, sum_p <w_r, x^p>^2, [n, filters]."""
    return ((samples.patches @ weights.T) ** 2).sum(1)


def probe_accuracy(weights: np.ndarray, fitted: Samples, looked_at: Samples) -> float:
    """How well a linear classifier of the hidden units does: ridge regression whose penalty leave-one-out chooses."""
    probe = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-4, 4, 9)))
    probe.fit(hidden(weights, fitted), fitted.labels)
    return float(probe.score(hidden(weights, looked_at), looked_at.labels))


def read_outs(objective: str, weights: np.ndarray, images: TwoClasses, alpha: float, seed: int) -> dict[str, float]:
    """What trained weights know: of the images' noise and of their classes. images: multiplied by factor_of, and
    trained on as beside_noise(images.train, seed)."""
    own, others = beside_noise(images.train, seed), beside_noise(images.val, seed, draw=1)
    redrawn = [beside_noise(images.train, seed, draw) for draw in range(1, NUM_REDRAWS + 1)]
    found = {"probe_accuracy": probe_accuracy(weights, beside_noise(images.probe, seed, draw=2), others)}
    if objective in CLASSIFIERS:
        found["own_noise_accuracy"] = accuracy(weights, own)
        found["other_noise_accuracy"] = float(np.mean([accuracy(weights, each) for each in redrawn]))
        found["val_accuracy"] = accuracy(weights, others)
    elif objective == "diffusion":
        kinds = {"own_noise": own.noises, "other_noise": redrawn[0].noises, "own_image": images.train}
        kinds["other_image"] = images.val
        found |= {f"gain_{name}": denoising_gain(weights, patches, alpha) for name, patches in kinds.items()}
    return found
