"""What a small network learns of a planted signal and of noise, by objective (Han et al., ICLR 2025).

Every sample is two patches in R^d: its class' signal, and Gaussian noise of its own. A two-layer network of quadratic
units is trained by full-batch gradient descent as a denoiser, as a classifier, as a classifier of noised samples or as
an autoencoder; how far its filters point at the signals and at the noises is read along training. NumPy, float64: a
function of the setting and the seed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

VERSION = 1
"""Changes with the numbers that this file gives."""
SPACING = 1.01
"""The filters are read at step 0, 1, 2, ... and from step 100 on at every step that is this much later."""
STATIONARY = 1e-4
"""Training ends where the gradient has fallen to this part of the largest that it had."""
LEARNED = 1e-3
"""A classifier's loss falls for ever; training ends where it is so low."""
DIVERGED = 1e3
"""Training has diverged where the loss is so many times the squared norm of a sample."""
NUM_LEVELS = 9
"""At so many values, from the first one to twice it, early growth is measured."""

Rng = np.random.Generator
Loss = Callable[[np.ndarray, Rng], tuple[float, np.ndarray]]
"""Weights [filters, d] -> the loss, and its gradient."""


@dataclass(frozen=True)
class Samples:
    patches: np.ndarray
    """[n, 2, d]: of each sample its signal patch, then its noise patch."""
    labels: np.ndarray
    """[n], 1 or -1."""
    signals: np.ndarray
    """[s, d]: the different signal patches."""
    signal_labels: np.ndarray
    """[s], 1 or -1."""

    @property
    def noises(self) -> np.ndarray:
        """[n, d]"""
        return self.patches[:, 1]


@dataclass(frozen=True)
class Course:
    """What happened along a training."""

    steps: np.ndarray
    signal: np.ndarray
    """max_r |<w_r, v>| over the filters, those of its class for a classifier; the mean over the signals v."""
    noise: np.ndarray
    """The same over the noises."""
    growing: np.ndarray
    """[2, T]: signal and noise by max_r <w_r, v>, which grows smoothly from the first step on: of two filters of one
    size and other signs a denoiser's drift enlarges one."""
    loss: np.ndarray
    weights: np.ndarray
    """[filters, d], at the end."""
    ended: bool
    """Whether it ended before its last step, because nothing moved any more or all was learned."""

    @property
    def ratio(self) -> float:
        """Signal over noise, at the end."""
        return float(self.signal[-1] / self.noise[-1])

    @property
    def balance(self) -> float:
        """The weaker over the stronger of the two at the end, at most 1."""
        return float(min(self.signal[-1], self.noise[-1]) / max(self.signal[-1], self.noise[-1]))


class Diverged(ValueError):
    """The loss grew beyond all bounds; a smaller learning rate helps."""


def two_patch_samples(num_samples: int, dimension: int, signal_norm: float, noise_std: float, seed: int) -> Samples:
    """Definition 2.1: as many samples of each class, orthogonal signals of equal norm, noise orthogonal to both."""
    check_samples(num_samples, dimension)
    if signal_norm < 0 or noise_std < 0:
        raise ValueError(f"signal_norm={signal_norm:g} and noise_std={noise_std:g} must be 0 or more")
    labels = np.where(np.arange(num_samples) % 2, -1, 1)
    signals = signal_norm * np.eye(2, dimension)
    noises = np.random.default_rng([seed, 0]).normal(0, noise_std, (num_samples, dimension))
    noises[:, :2] = 0
    return Samples(np.stack([signals[(1 - labels) // 2], noises], axis=1), labels, signals, np.array([1, -1]))


def check_samples(num_samples: int, dimension: int) -> None:
    """Raises ValueError for samples that cannot be halved into two classes, or do not fit into the space."""
    if num_samples < 2 or num_samples % 2:
        raise ValueError(f"num_samples={num_samples} must be even and 2 or more: half of them are of each class")
    if dimension < 3:
        raise ValueError(f"dimension={dimension} must be 3 or more: noise is orthogonal to both signals")


def relative_snr(num_samples: int, dimension: int, signal_norm: float, noise_std: float) -> float:
    """n SNR^2, with SNR = |mu| / (sigma_xi sqrt(d))."""
    return num_samples * signal_norm**2 / (noise_std**2 * dimension)


def initial_weights(objective: str, num_filters: int, dimension: int, std: float, seed: int) -> np.ndarray:
    """Gaussian, [num_filters, d]; for a classifier so many a class, those of class 1 first."""
    num_banks = 2 if objective in CLASSIFIERS else 1
    return np.random.default_rng([seed, 1]).normal(0, std, (num_banks * num_filters, dimension))


def train(
    objective: str,
    samples: Samples,
    weights: np.ndarray,
    learning_rate: float,
    num_steps: int,
    alpha: float = np.exp(-0.2),
    seed: int = 0,
) -> Course:
    """Full-batch gradient descent from the weights, until nothing moves. alpha: the signal's factor under noise, whose
    standard deviation is sqrt(1 - alpha^2). seed: of the noise, where the loss is sampled. Raises Diverged.

    Gradients lie in the space of patches and first weights, so that all is computed in coordinates of that; noise
    across it would reach no unit, and its gradient is 0 in expectation.
    """
    patches, share = distinct(samples)
    learning_rate /= float(np.linalg.norm(np.sqrt(share) * patches, 2)) ** 2
    basis = np.linalg.qr(np.concatenate([patches, weights]).T)[0]
    inside = replace(samples, patches=samples.patches @ basis, signals=samples.signals @ basis)
    loss_of, rng = OBJECTIVES[objective](inside, alpha), np.random.default_rng([seed, 2])
    w, largest = weights @ basis, 0.0
    points: list[tuple[float, ...]] = []
    bound = DIVERGED * max(1.0, float((samples.patches**2).sum((1, 2)).mean()))
    for step in range(num_steps + 1):
        with np.errstate(over="ignore", invalid="ignore"):
            loss, gradient = loss_of(w, rng)
            norm = float(np.linalg.norm(gradient))
        if not (np.isfinite(norm) and abs(loss) < bound):
            raise Diverged(f"{objective}: the loss is {loss:.3g} at step {step}; lower the learning rate")
        largest = max(largest, norm)
        ended = norm <= STATIONARY * largest or (objective in CLASSIFIERS and loss <= LEARNED)
        if ended or step == num_steps or step >= SPACING * (points[-1][0] if points else 0):
            points.append((step, *strengths(objective, inside, w), *strengths(objective, inside, w, signed=True), loss))
        if ended:
            break
        if step < num_steps:
            w = w - learning_rate * gradient
    steps, signal, noise, *growing, losses = np.array(points).T
    return Course(steps.astype(int), signal, noise, np.array(growing), losses, w @ basis.T, ended)


def strengths(objective: str, samples: Samples, weights: np.ndarray, signed: bool = False) -> tuple[float, float]:
    """Course.signal and Course.noise of the weights [filters, d]; signed: those of Course.growing."""

    def strength(vectors: np.ndarray, labels: np.ndarray) -> float:
        products = vectors @ weights.T
        if objective in CLASSIFIERS:
            products = np.where(labels[:, None] > 0, *np.split(products, 2, axis=1))
        return float((products if signed else np.abs(products)).max(1).mean())

    return strength(samples.signals, samples.signal_labels), strength(samples.noises, samples.labels)


@dataclass(frozen=True)
class Growth:
    """How the inner products grow while they are small, until the faster one has doubled."""

    order: float
    """p in dx/dt ~ x^p for the faster one: 0 is a straight line, 1 an exponential."""
    ratio: float
    """The growth of signal over that of noise, each as the slope of x, log x or -1/x, whichever is straight."""


def early_growth(objective: str, course: Course) -> Growth | None:
    """None where neither doubles."""
    curves = course.growing
    ends = [next((i for i, value in enumerate(curve) if value >= 2 * curve[0]), 0) for curve in curves]
    if not any(ends):
        return None
    end, faster = min((end, curve) for end, curve in zip(ends, range(2), strict=True) if end)
    curve, steps = curves[faster][: end + 1], course.steps[: end + 1]
    values = curve[0] * np.geomspace(1, 2, NUM_LEVELS)
    speeds = np.diff(values) / np.diff(np.interp(values, np.maximum.accumulate(curve), steps))
    order = np.polyfit(np.log((values[1:] * values[:-1]) ** 0.5), np.log(speeds), 1)[0]
    slopes = [np.polyfit(steps, straightened(each[: end + 1], ORDERS[objective]), 1)[0] for each in curves]
    return Growth(float(order), float(slopes[0] / slopes[1]))


def straightened(x: np.ndarray, order: int) -> np.ndarray:
    """What grows evenly where dx/dt ~ x^order: x, log x or -1/x."""
    return np.log(x) if order == 1 else x ** (1 - order) / (1 - order)


def diffusion_loss(samples: Samples, alpha: float) -> Loss:
    """denoising_loss of the patches, summed over the patches of a sample and averaged over samples."""
    return denoising_loss(*distinct(samples), alpha)


def denoising_loss(x: np.ndarray, share: np.ndarray, alpha: float) -> Loss:
    """E |s(x_t) - eps|^2 - d, the sum over patches x [q, d] weighed by share [q, 1]. The network with tied layers is
    s(x) = m^-1/2 sum_r <w_r, x>^2 w_r, x_t = alpha x + beta eps, and the expectation over eps is in closed form:

    (1/m) sum_rs G_rs [h_r h_s + 4 beta^2 a_r a_s G_rs + 2 beta^4 G_rs^2] - (4 beta / sqrt m) sum_r a_r G_rr

    with G = W W^T, a_r = alpha <w_r, x>, h_r = a_r^2 + beta^2 G_rr.
    """
    x, beta = alpha * x, float(np.sqrt(1 - alpha**2))

    def loss_of(w: np.ndarray, rng: Rng) -> tuple[float, np.ndarray]:
        m, gram, a = len(w), w @ w.T, x @ w.T
        norms, cubic = np.diag(gram), 4 * beta / len(w) ** 0.5
        h, squared, weighted = a**2 + beta**2 * norms, gram**2, share * a
        of_h, of_a, mean = (share * h).T @ h, weighted.T @ a, weighted.sum(0)
        inner = of_h + 4 * beta**2 * gram * of_a + 2 * beta**4 * share.sum() * squared
        loss = float((gram * inner).sum() / m - cubic * mean @ norms)
        through = h @ gram
        by_gram = (of_h + 8 * beta**2 * gram * of_a + 6 * beta**4 * share.sum() * squared) / m
        by_gram[np.diag_indices(m)] += 2 * beta**2 / m * (share * through).sum(0) - cubic * mean
        by_a = share * (4 / m * through * a + 8 * beta**2 / m * (a @ squared) - cubic * norms)
        return loss, 2 * by_gram @ w + by_a.T @ x

    return loss_of


def autoencoder_loss(samples: Samples, alpha: float) -> Loss:
    """|s(x) - x|^2 of the denoiser's network without noise, summed over patches and averaged over samples."""
    x, share = distinct(samples)

    def loss_of(w: np.ndarray, rng: Rng) -> tuple[float, np.ndarray]:
        z, scale = x @ w.T, len(w) ** -0.5
        left = scale * z**2 @ w - x
        outer = 2 * share * left
        gradient = scale * ((z**2).T @ outer + (2 * z * (outer @ w.T)).T @ x)
        return float((share * left**2).sum()), gradient

    return loss_of


def classifier_loss(samples: Samples, alpha: float) -> Loss:
    """Logistic loss of f = F_1 - F_-1, F_j = (1/m) sum_r sum_p <w_jr, x^p>^2; the second layer is fixed at 1 and -1."""
    num_samples, _, dimension = samples.patches.shape

    def loss_of(w: np.ndarray, rng: Rng) -> tuple[float, np.ndarray]:
        return logistic(w, samples.patches.reshape(2 * num_samples, dimension), samples.labels)

    return loss_of


def noised_classifier_loss(samples: Samples, alpha: float, num_draws: int = 2) -> Loss:
    """The classifier's on alpha x + beta eps, with fresh noise at every step, num_draws of it a sample."""
    x, beta = np.repeat(alpha * samples.patches, num_draws, axis=0), float(np.sqrt(1 - alpha**2))
    labels, dimension = np.repeat(samples.labels, num_draws), x.shape[-1]

    def loss_of(w: np.ndarray, rng: Rng) -> tuple[float, np.ndarray]:
        return logistic(w, (x + beta * rng.standard_normal(x.shape)).reshape(-1, dimension), labels)

    return loss_of


def logistic(w: np.ndarray, patches: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean of log(1 + exp(-y f)), and its gradient. patches: [2 n, d], those of a sample side by side."""
    z, m = patches @ w.T, len(w) // 2
    signs = np.repeat([1.0, -1.0], m)
    margin = labels * logits_of(w, patches)
    pull = -labels * np.exp(-np.logaddexp(0, margin)) / len(labels)
    gradient = 2 / m * (np.repeat(pull, 2)[:, None] * z * signs).T @ patches
    return float(np.logaddexp(0, -margin).mean()), gradient


def logits_of(w: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """f of each sample, [n]. patches: [2 n, d], those of a sample side by side."""
    squared = ((patches @ w.T) ** 2).reshape(-1, 2, 2, len(w) // 2).sum((1, 3))
    return (squared[:, 0] - squared[:, 1]) * 2 / len(w)


def distinct(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """The different patches [q, d], and how many of each a sample has on average, [q, 1]."""
    patches = samples.patches.reshape(-1, samples.patches.shape[-1])
    x, counts = np.unique(patches, axis=0, return_counts=True)
    return x, counts[:, None] / len(samples.labels)


OBJECTIVES: Mapping[str, Callable[[Samples, float], Loss]] = {
    "diffusion": diffusion_loss,
    "classifier": classifier_loss,
    "noised-classifier": noised_classifier_loss,
    "autoencoder": autoencoder_loss,
}
CLASSIFIERS = "classifier", "noised-classifier"
ORDERS = {"diffusion": 0, "classifier": 1, "noised-classifier": 1, "autoencoder": 2}
"""p in dx/dt ~ x^p by the gradient at small weights; the factor of each is the share of a patch in the samples times
its squared norm, so that signal grows n SNR^2 / 2 times as fast as noise."""
