"""The two-patch model: losses against what they stand for, planted patches, and what theory says of growth."""

from dataclasses import replace

import numpy as np
import pytest

from ddae.feature_learning import (
    CLASSIFIERS,
    OBJECTIVES,
    ORDERS,
    Diverged,
    Samples,
    early_growth,
    initial_weights,
    relative_snr,
    train,
    two_patch_samples,
)
from ddae.noisy_images import TwoClasses, beside_noise, denoising_gain, factor_of, labels_of, pick, read_outs

ALPHA = float(np.exp(-0.2))
RATES = {"diffusion": 0.1, "classifier": 1, "noised-classifier": 1, "autoencoder": 0.02}
each_objective = pytest.mark.parametrize("objective", OBJECTIVES)


def small(num_samples=6, dimension=12, signal_norm=2.0, noise_std=0.5) -> Samples:
    return two_patch_samples(num_samples, dimension, signal_norm, noise_std, seed=3)


def course(objective, num_samples=10, dimension=400, signal_norm=5.0, noise_std=1.0, seed=0, steps=20_000):
    weights = initial_weights(objective, 6, dimension, 1e-3, seed)
    samples = two_patch_samples(num_samples, dimension, signal_norm, noise_std, seed)
    return train(objective, samples, weights, RATES[objective], steps, seed=seed)


def test_samples_are_what_the_paper_defines():
    samples = two_patch_samples(40, 500, 3.0, 2.0, seed=1)
    assert samples.labels.sum() == 0
    assert samples.signals @ samples.signals.T == pytest.approx(9 * np.eye(2))
    assert samples.noises @ samples.signals.T == pytest.approx(0)
    assert samples.noises[:, 2:].std() == pytest.approx(2, rel=0.02)
    assert (samples.patches[samples.labels == -1, 0] == samples.signals[1]).all()
    assert relative_snr(30, 1000, 5, 1) == pytest.approx(0.75) and relative_snr(30, 1000, 15, 1) == pytest.approx(6.75)


def test_the_closed_form_is_the_mean_over_sampled_noise():
    samples, rng = small(), np.random.default_rng(0)
    w, beta = initial_weights("diffusion", 3, 12, 0.4, seed=2), (1 - ALPHA**2) ** 0.5
    closed, _ = OBJECTIVES["diffusion"](samples, ALPHA)(w, rng)
    sampled = 0.0
    for patch in samples.patches.reshape(-1, 12):
        noise = rng.standard_normal((100_000, 12))
        z = (ALPHA * patch + beta * noise) @ w.T
        sampled += float(((z**2 @ w / 3**0.5 - noise) ** 2).sum(1).mean()) / 6
    assert closed + 2 * 12 == pytest.approx(sampled, rel=0.01)
    assert closed != pytest.approx(0, abs=1)  # the network matters


@each_objective
def test_gradients_are_those_of_finite_differences(objective):
    loss_of = OBJECTIVES[objective](small(), ALPHA)
    w = initial_weights(objective, 3, 12, 0.4, seed=2)

    def loss(weights):
        return loss_of(weights, np.random.default_rng(0))[0]

    _, gradient = loss_of(w, np.random.default_rng(0))
    for place in [(0, 0), (1, 5), (2, 11), (len(w) - 1, 3)]:
        step = np.zeros_like(w)
        step[place] = 1e-5
        assert gradient[place] == pytest.approx((loss(w + step) - loss(w - step)) / 2e-5, rel=1e-5, abs=1e-8)


@each_objective
def test_coordinates_of_the_span_change_nothing(objective):
    """Against plain gradient descent in the whole space; noise is sampled in the span, so here there is none."""
    samples, w = small(), initial_weights(objective, 3, 12, 0.1, seed=2)
    alpha = 1 if objective == "noised-classifier" else ALPHA
    trained = train(objective, samples, w, 0.01, 30, alpha)
    norm = np.linalg.norm(samples.patches.reshape(-1, 12), 2) ** 2 / len(samples.labels)
    loss_of, rng, expected = OBJECTIVES[objective](samples, alpha), np.random.default_rng(0), w
    for _ in range(30):
        expected = expected - 0.01 / norm * loss_of(expected, rng)[1]
    assert trained.weights == pytest.approx(expected, abs=1e-12)
    assert not trained.ended and not np.allclose(trained.weights, w, atol=1e-6)


@each_objective
def test_a_patch_that_is_not_there_is_not_learned(objective):
    alone = course(objective, noise_std=0)
    assert alone.signal[-1] > 0.5 and alone.noise[-1] == 0
    noise = course(objective, signal_norm=0)
    assert noise.noise[-1] > 0.5 and noise.signal[-1] == 0


def test_the_classifier_flips_and_the_denoiser_is_balanced():
    weak, strong = {"signal_norm": 3.0}, {"signal_norm": 14.0}  # n SNR^2 = 0.23 and 4.9
    for objective in CLASSIFIERS:
        assert course(objective, **weak).ratio < 0.1 and course(objective, **strong).ratio > 3
    for setting in (weak, strong):
        assert 0.5 < course("diffusion", **setting, steps=5000).balance <= 1
    assert course("autoencoder", **weak).ratio < 0.1


@pytest.mark.parametrize("objective", ["diffusion", "classifier", "autoencoder"])
def test_early_growth_is_as_theory_says(objective):
    growth = early_growth(objective, course(objective, dimension=3000, signal_norm=30.0, steps=4000))
    assert growth.order == pytest.approx(ORDERS[objective], abs=0.6)
    assert growth.ratio == pytest.approx(relative_snr(10, 3000, 30.0, 1) / 2, rel=0.2)


def test_growth_is_read_off_exact_curves():
    steps = np.arange(101)
    for order, curve in {"diffusion": 1 + steps / 50, "classifier": np.exp(steps / 50)}.items():
        known = course("classifier", steps=1)
        slow = 1 + (curve - 1) / 4 if order == "diffusion" else np.exp(steps / 200)
        growth = early_growth(order, replace(known, steps=steps, growing=np.array([curve, slow])))
        assert growth.order == pytest.approx(ORDERS[order], abs=0.02) and growth.ratio == pytest.approx(4, rel=1e-3)
        assert early_growth(order, replace(known, steps=steps[:9], growing=np.array([slow, slow])[:, :9])) is None


def test_what_is_trained_twice_is_the_same():
    first, again, other = (course("noised-classifier", seed=seed, steps=50) for seed in (0, 0, 1))
    assert (first.weights == again.weights).all() and not np.allclose(first.weights, other.weights)


def test_a_training_ends_where_nothing_moves_or_is_said_to_diverge():
    assert course("diffusion", 4, 100).ended and course("classifier").ended
    with pytest.raises(Diverged, match=r"autoencoder: the loss is .* at step \d+; lower the learning rate"):
        train("autoencoder", small(), initial_weights("autoencoder", 3, 12, 0.4, 0), 10, 1000)


@pytest.mark.parametrize("num_samples", [0, 1, 7])
def test_samples_that_cannot_be_halved_are_one_line(num_samples):
    with pytest.raises(ValueError, match=f"num_samples={num_samples} must be even and 2 or more"):
        two_patch_samples(num_samples, 10, 1, 1, 0)


@pytest.fixture(scope="module")
def pictures():
    """Two classes of flat images, each a bar at its place with some variation, far above the noise."""
    rng = np.random.default_rng(0)
    images = 0.1 * rng.random((80, 64))
    images[::2, :8] += 1
    images[1::2, 30:38] += 1
    return images


def test_images_are_picked_by_turns_and_scaled(pictures):
    labels = labels_of(pictures)
    picked = pick(pictures, labels, 10, seed=0)
    assert (picked[::2, :8].mean(1) > 0.9).all() and (picked[1::2, 30:38].mean(1) > 0.9).all()
    assert len(np.unique(picked, axis=0)) == 20 and not np.allclose(picked, pick(pictures, labels, 10, seed=1))
    scaled = factor_of(picked, 2.0) * picked
    norm = np.linalg.norm([scaled[::2].mean(0), scaled[1::2].mean(0)], axis=1).mean()
    assert relative_snr(20, 64, norm, 1) == pytest.approx(2)
    with pytest.raises(ValueError, match="a class has 40 images where 41 are asked for"):
        pick(pictures, labels, 41, seed=0)
    with pytest.raises(ValueError, match="there is no signal"):
        factor_of(np.zeros((4, 9)), 1)


def test_read_outs_tell_noise_that_was_learned_from_images_that_were(pictures):
    def found(objective, snr):
        factor = factor_of(pictures[:20], snr)
        images = TwoClasses(factor * pictures[:20], factor * pictures[20:40], factor * pictures[40:])
        weights = initial_weights(objective, 6, 64, 1e-2, 0)
        trained = train(objective, beside_noise(images.train, 0), weights, RATES[objective], 5000)
        return read_outs(objective, trained.weights, images, ALPHA, 0)

    weak, strong = found("classifier", 0.02), found("classifier", 30)
    assert weak["own_noise_accuracy"] == 1 and weak["other_noise_accuracy"] < 0.75
    assert strong["other_noise_accuracy"] > 0.95 and strong["val_accuracy"] > 0.95
    assert strong["probe_accuracy"] > weak["probe_accuracy"]
    denoised = found("diffusion", 4)
    assert denoised["gain_own_noise"] > 0 > denoised["gain_other_noise"]
    assert denoised["gain_own_image"] > 0 and denoised["gain_other_image"] > 0


def test_a_denoiser_that_says_nothing_gains_nothing(pictures):
    assert denoising_gain(np.zeros((3, 64)), pictures, ALPHA) == 0
