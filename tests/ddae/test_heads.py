import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from ddae.heads import HEADS
from ddae.heads.linear import PENALTIES, RIDGE_PENALTIES
from ddae.probe import Candidate, fit_probe


def planted(num_images, signal=2.0, channels=6, num_classes=3, seed=0):
    """Maps whose mean over space carries the class, in noise."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % num_classes
    maps = torch.randn(num_images, channels, 2, 2, generator=rng)
    maps[torch.arange(num_images), labels] += signal
    return maps, labels


@pytest.mark.parametrize("head", HEADS)
def test_every_head_finds_a_planted_signal(head):
    fitted, result = fit_probe(Candidate("mid", 0, 2, head), planted(300), planted(300, seed=1), 3, seed=0)
    assert result.val_accuracy > 0.9
    scores = fitted(planted(5)[0])
    assert scores.shape == (len(fitted.settings), 5, 3)
    assert result.setting in fitted.settings
    assert result.val_accuracy == result.correct.mean()


@pytest.mark.parametrize("head", HEADS)
def test_shuffled_labels_give_chance(head):
    maps, labels = planted(600)
    shuffled = labels[torch.randperm(600, generator=torch.Generator().manual_seed(0))]
    _, result = fit_probe(Candidate("mid", 0, 2, head), (maps, shuffled), planted(600, seed=1), 3, seed=0)
    assert result.val_accuracy < 1 / 3 + 0.1


@pytest.mark.parametrize("head", HEADS)
def test_the_same_seed_gives_the_same_fit(head):
    runs = [HEADS[head](*planted(100), 3, seed=0)(planted(20, seed=1)[0]) for _ in range(2)]
    assert torch.equal(*runs)


@pytest.mark.parametrize("head", HEADS)
def test_more_dimensions_than_images_and_a_dead_one(head):
    maps, labels = planted(30, signal=4, channels=40)
    maps[:, 5] = 7.0
    scores = HEADS[head](maps, labels, 3, seed=0)(maps)
    assert torch.isfinite(scores).all()
    assert (scores.argmax(-1) == labels).float().mean(1).max() > 0.9


def test_ridge_is_the_closed_form():
    maps, labels = planted(200)
    x = maps.flatten(1).numpy()
    x = (x - x.mean(0)) / x.std(0)
    scores = HEADS["ridge"](maps, labels, 3, seed=0)(maps)
    for row, penalty in zip(scores, RIDGE_PENALTIES, strict=True):
        expected = Ridge(alpha=penalty * len(x)).fit(x, np.eye(3)[labels]).predict(x)
        np.testing.assert_allclose(row.numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("channels", [6, 100])
def test_linear_reaches_the_optimum_of_logistic_regression(channels):
    maps, labels = planted(300, signal=0.7, channels=channels)
    x = maps.flatten(1).numpy()
    x = (x - x.mean(0)) / x.std(0)
    scores = HEADS["linear"](maps, labels, 3, seed=0)(maps).softmax(-1)
    for row, penalty in zip(scores[1:], PENALTIES[1:], strict=True):
        oracle = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-8, max_iter=5000).fit(x, labels)
        np.testing.assert_allclose(row.numpy(), oracle.predict_proba(x), atol=0.02)
