"""Scores of two features of the same images, scores of maps, and resampled ones, against independent computations."""

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.linear_model import Ridge
from sklearn.metrics import log_loss
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import scale

from ddae import label_free
from ddae.label_free import maps, pairs, unlabelled
from ddae.ridge import PENALTIES
from tests.ddae.test_label_free import noise, planted, sphere


@pytest.mark.parametrize(("num_images", "num_dims"), [(200, 15), (30, 60)])
def test_lidar_is_the_rank_of_the_generalised_eigenvalue_problem(num_images, num_dims):
    first, second, _ = planted(num_images, num_dims)
    x, y = np.split(scale(torch.cat([first, second]).double().numpy()), 2)
    within = ((x - y).T @ (x - y)) / 4 / num_images + pairs.RIDGE * np.eye(num_dims)
    values = eigh(np.cov((x + y) / 2, rowvar=False, bias=True), within, eigvals_only=True).clip(0)
    assert pairs.lidar(first, second) == pytest.approx(np.exp(entropy(values)), rel=1e-3)


def test_lidar_counts_the_directions_that_the_noise_leaves():
    rng = torch.Generator().manual_seed(0)
    images = torch.cat([torch.randn(400, 3, generator=rng), torch.zeros(400, 17)], 1)
    first, second = (images + 0.1 * torch.randn(400, 20, generator=rng) for _ in range(2))
    assert 2.9 < pairs.lidar(first, second) < 6
    assert pairs.lidar(first, second) < pairs.lidar(*(torch.randn(2, 400, 20, generator=rng)))


def test_both_ways_finds_the_image_at_the_noisier_and_at_the_cleaner_timestep():
    first, noisier, _ = planted()
    cleaner, _, _ = planted(seed=0)
    cleaner = cleaner + 0.3 * planted(seed=5)[0]
    right, losses = np.arange(len(first)), []
    for other in (noisier, cleaner):
        cosines = sphere(first) @ sphere(other).T
        losses += [log_loss(right, softmax(2 * each, 1)) for each in (cosines, cosines.T)]
    assert pairs.both_ways(first, noisier, cleaner) == pytest.approx(-np.mean(losses), abs=1e-5)


def test_neighbours_kept_is_what_two_graphs_share():
    first, noisier, _ = planted(120)
    near = [NearestNeighbors(n_neighbors=10).fit(sphere(x)).kneighbors(return_distance=False) for x in (first, noisier)]
    shared = [len({*a} & {*b}) for a, b in zip(*near, strict=True)]
    assert pairs.neighbours_kept(first, noisier) == pytest.approx(np.mean(shared) / 10, abs=1e-3)
    assert pairs.neighbours_kept(first, first) == 1
    assert pairs.neighbours_kept(first[:4], first[:4]) == 1


def hsic(a, b):
    """Song et al. 2012, equation 5, term by term."""
    k, m = (x @ x.T * (1 - np.eye(len(x))) for x in (a, b))
    n = len(k)
    terms = np.trace(k @ m) + k.sum() * m.sum() / (n - 1) / (n - 2) - 2 * (k @ m).sum() / (n - 2)
    return terms / n / (n - 3)


def test_next_blocks_is_the_mean_debiased_cka():
    first, second, _ = planted(60)
    others = (second[:, :7], planted(60, seed=3)[0])
    x = scale(first.double().numpy())
    found = []
    for other in others:
        y = scale(other.double().numpy())
        found.append(hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5)
    assert pairs.next_blocks(first, others) == pytest.approx(np.mean(found), abs=1e-4)
    assert pairs.next_blocks(first, (first,)) == pytest.approx(1)
    assert pairs.next_blocks(first, ()) == 0
    assert pairs.next_blocks(first, (torch.ones(60, 3),)) == 0


def test_turns_known_is_ridge_without_each_image():
    features, _, labels = planted(24, 30)
    turns, x = labels % 4, scale(features.double().numpy())
    shares = []
    for penalty in PENALTIES:
        right = 0
        for image in range(24):
            others = np.arange(24) != image
            fitted = Ridge(penalty * 24).fit(x[others], np.eye(4)[turns[others]])
            right += fitted.predict(x[[image]]).argmax() == turns[image]
        shares.append(right / 24)
    assert pairs.turns_known(features, turns) == pytest.approx(max(shares))


def waves(cycles, side=8):
    """Maps [50, 2, side, side] of one frequency along a side, of unlike height and phase."""
    rng = torch.Generator().manual_seed(0)
    phase, height = torch.rand(2, 50, 2, 1, 1, generator=rng)
    along = torch.cos(2 * torch.pi * (cycles * torch.arange(side) / side + phase))
    return (height + 0.1) * along.expand(50, 2, side, side)


def random_maps(side=4, num_images=20, channels=5):
    return torch.randn(num_images, channels, side, side, generator=torch.Generator().manual_seed(1))


def test_high_frequencies_are_a_quarter_of_a_cycle_and_more():
    shares = [maps.high_frequencies(waves(cycles)) for cycles in (1, 2, 3)]
    assert shares == pytest.approx([0, 1, 1], abs=1e-6)
    assert maps.high_frequencies(waves(3).mT) == pytest.approx(1, abs=1e-6)
    x = random_maps().double() + 1
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    all_but_the_mean = 1 - 16 * x.mean((2, 3)).square().sum() / x.square().sum()  # Parseval; 4 places have no less
    assert maps.high_frequencies(random_maps()) == pytest.approx(float(all_but_the_mean), rel=1e-5)
    assert maps.high_frequencies(random_maps(side=1)) == 0


def test_curvature_is_the_mean_angle_between_steps():
    x = random_maps(num_images=6).double().numpy()
    x = (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
    angles = []
    for image in x:
        for walked in (image, image.transpose(0, 2, 1)):
            for row in range(4):
                for place in range(1, 3):
                    a, b = (walked[:, row, place + n] - walked[:, row, place + n - 1] for n in (0, 1))
                    angles.append(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    assert maps.curvature(random_maps(num_images=6)) == pytest.approx(np.mean(angles), abs=1e-5)
    ramp = torch.arange(16.0).view(4, 4) * torch.tensor([1.0, -2.0, 3.0])[:, None, None]
    assert maps.curvature(ramp.expand(5, 3, 4, 4)) == pytest.approx(0, abs=1e-3)
    zigzag = (-1.0) ** (torch.arange(4) + torch.arange(4)[:, None])
    assert maps.curvature(zigzag.expand(5, 3, 4, 4)) == pytest.approx(np.pi, abs=1e-3)
    assert maps.curvature(random_maps(side=2)) == np.pi / 2


@pytest.mark.parametrize("channels", [5, 30])
def test_prompt_entropy_is_that_of_the_gram_matrix_of_an_image(channels):
    x = random_maps(channels=channels).double().numpy()
    x = (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
    expected = [entropy(np.linalg.svd(image.reshape(channels, 16))[1] ** 2) for image in x]
    found = maps.prompt_entropy(random_maps(channels=channels))
    assert found == pytest.approx(np.mean(expected) / np.log(min(channels, 16)), abs=1e-5)
    alike = random_maps(side=1).expand(-1, -1, 4, 4)
    assert maps.prompt_entropy(alike) == pytest.approx(0, abs=1e-6)
    assert maps.prompt_entropy(random_maps(side=1)) == 0


def test_matrix_entropy_is_that_of_the_spectrum():
    x, _, _ = planted()
    expected = entropy(np.linalg.svd(sphere(x))[1] ** 2) / np.log(40)
    assert unlabelled.matrix_entropy(x) == pytest.approx(expected, abs=1e-5)


def test_rough_maps_are_told_from_smooth_ones():
    rough, smooth = random_maps(side=8), torch.nn.functional.interpolate(random_maps(side=2), 8, mode="bilinear")
    for score in (maps.high_frequencies, maps.curvature, maps.prompt_entropy):
        assert score(rough) > score(smooth)


RESAMPLED = [name for name in label_free.SCORES if label_free.SCORES[name].resampled]


def by_index(name, drawn, x, y):
    """A score of resampled images, pair by pair; no image is paired with itself."""
    if name == "alignment":
        return np.mean([((x[i] - y[i]) ** 2).sum() for i in drawn])
    if name == "uniformity":
        distances = [((x[i] - x[j]) ** 2).sum() for i in drawn for j in drawn if i != j]
        return np.log(np.exp(-2 * np.array(distances)).mean())
    found = []
    for a, b in ((x, y), (y, x)):
        for i in drawn:
            others = sum(np.exp(2 * a[i] @ b[j]) for j in drawn if j != i)
            found.append(2 * a[i] @ b[i] - np.log(np.exp(2 * a[i] @ b[i]) + others))
    return np.mean(found)


@pytest.mark.parametrize("name", RESAMPLED)
def test_a_resample_counts_images_as_often_as_they_are_drawn(name, monkeypatch):
    monkeypatch.setattr(unlabelled, "TILE", 16)
    first, second, _ = planted(40, 10)
    weights = label_free.draw_images(40, 3)
    assert weights.sum(1).tolist() == [40] * 4 and weights[0].tolist() == [1] * 40
    together = np.split(sphere(torch.cat([first, second])), 2)
    x, y = together if name == "alignment" else (sphere(first), sphere(second))
    score = label_free.SCORES[name]
    given = (first,) if name == "uniformity" else (first, second)
    found = score.resampled(*given, weights).numpy()
    assert found[0] == pytest.approx(score(*given), abs=1e-6)
    for values, counts in zip(found, weights.int().tolist(), strict=True):
        drawn = [image for image, count in enumerate(counts) for _ in range(count)]
        assert values == pytest.approx(by_index(name, drawn, x, y), abs=1e-4)


def test_resamples_take_the_mean_over_draws_and_the_labelled_images_alone():
    first, second, labels = noise(60)
    features, weights = label_free.Features(first, second, second), label_free.draw_images(60, 5)
    members = label_free.CONSENSUS
    found = label_free.resample(features, weights, members, labels[:30], 10)
    alone = label_free.measure(features, members, labels[:30], 10)
    assert {name: values[0] for name, values in found.items()} == pytest.approx(alone, abs=1e-6)
    assert {len(values) for values in found.values()} == {6}
    assert found["ridge"].std() > 0
    assert "ridge" not in label_free.resample(features, weights, members)
    assert label_free.resample(features, weights, ["icr"]) == {}


def test_confidence_is_how_often_and_how_high_a_cell_ranks():
    steady = np.array([[3.0, 2.0], [1.0, 0.0]])
    swapped = np.array([[2.0, 3.0], [1.0, 0.0]])
    found = label_free.confidence(np.stack([steady] * 75 + [swapped] * 25))
    assert found.num_resamples == 100
    assert found.ranks_first.tolist() == [[0.75, 0.25], [0, 0]]
    assert found.best_rank.tolist() == [[1, 1], [3, 4]] and found.worst_rank.tolist() == [[2, 2], [3, 4]]
    rarely = label_free.confidence(np.stack([steady] * 97 + [swapped] * 3))
    assert rarely.worst_rank.tolist() == rarely.best_rank.tolist() == [[1, 2], [3, 4]]
