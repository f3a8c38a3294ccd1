import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from scipy.optimize import minimize
from scipy.spatial.distance import pdist
from scipy.special import softmax
from scipy.stats import multivariate_normal
from sklearn.cluster import KMeans
from sklearn.covariance import LedoitWolf
from sklearn.metrics import log_loss
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize, scale

from ddae import label_free
from ddae.label_free import LABELLED, SCORES, Features, labelled, unlabelled
from tests.ddae.golden import problem

NUM_CLASSES = 10
FOOLED_BY_NOISE = {"uniformity", "rankme", "alpha_req", "matrix_entropy", "lidar"}
"""They see only how far the features spread, and noise spreads further than ten classes."""
OF_MAPS = {"high_frequencies", "curvature", "prompt_entropy"}
"""They see how an image's places differ, of which planted() says nothing; test_label_free_maps.py has them."""


def planted(num_images=300, num_dims=40, seed=0):
    """Two noise draws and labels: classes apart, a spectrum of 1/i, and noise that differs between the draws."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % NUM_CLASSES
    spectrum = torch.arange(1, num_dims + 1) ** -0.5
    centres = 3 * torch.randn(NUM_CLASSES, num_dims, generator=rng) * spectrum
    images = centres[labels] + torch.randn(num_images, num_dims, generator=rng) * spectrum
    first, second = (images + 0.1 * torch.randn(num_images, num_dims, generator=rng) for _ in range(2))
    return first, second, labels


def noise(num_images=300, num_dims=40, seed=1):
    rng = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(num_images, num_dims, generator=rng) for _ in range(2))
    return first, second, torch.arange(num_images) % NUM_CLASSES


ALL = {**SCORES, **LABELLED}
EVERY = pytest.mark.parametrize("name", ALL)


def score(name, draws):
    first, second, labels = draws
    return label_free.measure(known(first, second, labels), [name], labels, NUM_CLASSES)[name]


def known(first, second, labels, maps=None):
    """All that a score may read: what is told of an image, as its class, is by how much it was turned."""
    if maps is None:
        maps = first[:, :, None, None] * torch.tensor([[1.0, 2.0, 0.0], [3.0, 1.0, 2.0], [0.0, 2.0, 1.0]])
    return Features(first, second, second, second, maps, (second, first[:, :2]), first, labels % 4)


@EVERY
@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_the_scale_of_the_features_changes_nothing(name, factor):
    first, second, labels = planted()
    scaled = score(name, (factor * first, factor * second, labels))
    assert scaled == pytest.approx(score(name, (first, second, labels)), rel=1e-3)


@pytest.mark.parametrize("name", [name for name in ALL if name not in OF_MAPS])
def test_planted_structure_is_preferred_to_noise_unless_the_score_is_known_to_be_fooled(name):
    structure, chance = (ALL[name].merit(np.array(score(name, draws))) for draws in (planted(), noise()))
    assert (structure > chance) == (name not in FOOLED_BY_NOISE)


def degenerate():
    first, second, labels = planted(num_images=12, num_dims=30)
    constant = torch.cat([first, torch.full((12, 1), 1000.1)], 1), torch.cat([second, torch.full((12, 1), 1000.1)], 1)
    return {
        "fewer images than dimensions": (first, second, labels),
        "constant dimensions": (*constant, labels),
        "duplicate rows": (first[labels % 3], second[labels % 3], labels),
        "equal draws": (first, first, labels),
        "all equal": (torch.ones(12, 30), torch.ones(12, 30), labels),
        "all zero": (torch.zeros(12, 30), torch.zeros(12, 30), labels),
        "one dimension": (first[:, :1], second[:, :1], labels),
        "four images": (first[:4], second[:4], labels[:4]),
    }


@EVERY
@pytest.mark.parametrize("case", degenerate())
def test_degenerate_features_have_a_finite_score(name, case):
    assert math.isfinite(score(name, degenerate()[case]))


@EVERY
def test_the_same_features_have_the_same_score(name):
    assert score(name, planted()) == score(name, planted())


@EVERY
def test_too_few_images_are_an_error_of_one_line(name):
    first, second, labels = planted()
    with pytest.raises(ValueError, match=r"^3 images are too few for a score; give 4 or more$"):
        score(name, (first[:3], second[:3], labels[:3]))


@pytest.mark.parametrize("name", LABELLED)
def test_labels_of_one_class_are_an_error(name):
    first, second, labels = planted()
    with pytest.raises(ValueError, match="300 labels are all of one class; give more labels"):
        score(name, (first, second, 0 * labels))


GOLDEN = (
    1,
    {
        "alignment": 0.6252717,
        "uniformity": -3.857962,
        "contrast": -3.9450528,
        "icr": 0.2860928,
        "cluster_learnability": 0.405,
        "rankme": 41.0763865,
        "alpha_req": 1.3344472,
        "lidar": 47.4748474,
        "both_ways": -3.9450528,
        "neighbours_kept": 0.243,
        "next_blocks": 0.408082,
        "turns_known": 0.785,
        "high_frequencies": 0.8588204,
        "curvature": 2.0990057,
        "prompt_entropy": 0.8970076,
        "matrix_entropy": 0.9445469,
        "logme": -0.7865898,
        "h_score": 0.5799298,
        "ridge": 0.785,
    },
)
"""Version of the scores and their values on a fixed problem: raise the one and renew the others together."""


def golden(name):
    maps, labels = problem(200, grid=4)
    features, spread = maps.flatten(1), torch.linspace(0.2, 2, 64)
    second = (features + problem(200, grid=4, seed=1)[0].flatten(1)) * spread
    score, [given, *_], more = label_free.inputs(
        known(features * spread, second, labels, maps), name, labels, NUM_CLASSES
    )
    return score(*given, *more)


@EVERY
def test_the_version_of_the_scores_stands_for_their_values(name):
    version, values = GOLDEN
    found = label_free.VERSION, golden(name)
    assert found == pytest.approx((version, values[name]), abs=1e-6), (
        f"results of {name} changed: raise ddae.label_free.VERSION and renew its value, to {found}"
    )


@pytest.mark.parametrize(
    ("name", "constant", "value"),
    [
        ("cluster_learnability", "ddae.label_free.unlabelled.NUM_CLUSTERINGS", 9),
        ("alpha_req", "ddae.label_free.unlabelled.FIRST_RANK", 6),
        ("lidar", "ddae.label_free.pairs.RIDGE", 1e-2),
        ("neighbours_kept", "ddae.label_free.pairs.NUM_NEIGHBOURS", 9),
        ("high_frequencies", "ddae.label_free.maps.LEAST_FREQUENCY", 0.3),
        ("logme", "ddae.label_free.labelled.RATIOS", labelled.RATIOS * 1.01),
        ("ridge", "ddae.ridge.PENALTIES", (0.1,)),
    ],
)
def test_the_values_change_with_a_number_of_the_score(name, constant, value, monkeypatch):
    monkeypatch.setattr(constant, value)
    assert golden(name) != pytest.approx(GOLDEN[1][name], abs=1e-6)


def sphere(x):
    return normalize(scale(x.double().numpy()))


def test_alignment_is_the_mean_squared_distance_of_the_draws():
    first, second, _ = planted()
    assert unlabelled.alignment(first, first) == 0
    assert unlabelled.alignment(first - first.mean(0), first.mean(0) - first) == pytest.approx(4)
    x, y = np.split(sphere(torch.cat([first, second])), 2)
    assert unlabelled.alignment(first, second) == pytest.approx(((x - y) ** 2).sum(1).mean(), rel=1e-4)


@pytest.mark.parametrize("num_images", [100, 700])
def test_uniformity_is_the_mean_over_all_pairs(num_images):
    x, _, _ = planted(num_images)
    expected = np.log(np.exp(-2 * pdist(sphere(x)) ** 2).mean())
    assert unlabelled.uniformity(x) == pytest.approx(expected, abs=1e-4)
    assert unlabelled.uniformity(torch.ones(num_images, 16)) == 0


@pytest.mark.parametrize(("num_images", "num_dims"), [(300, 20), (30, 60)])
def test_icr_is_the_generalised_eigenvalue_problem(num_images, num_dims):
    first, second, _ = planted(num_images, num_dims)
    x, y = np.split(scale(torch.cat([first, second]).double().numpy()), 2)
    residual = LedoitWolf().fit((x - y) / 2**0.5).covariance_
    ratios = eigh(np.cov((x + y) / 2, rowvar=False, bias=True), residual, eigvals_only=True)
    assert unlabelled.icr(first, second) == pytest.approx(1 / (1 + ratios.mean()), rel=1e-5)
    many = noise(5000, 10)
    assert unlabelled.icr(*many[:2]) == pytest.approx(2 / 3, abs=0.02)


def test_cluster_learnability_is_nearest_neighbours_on_k_means():
    x, _, _ = planted()
    points, right = sphere(x), []
    for seed in range(unlabelled.NUM_CLUSTERINGS):
        clusters = KMeans(17, n_init=1, random_state=seed).fit_predict(points.astype(np.float32))
        [nearest] = NearestNeighbors(n_neighbors=1).fit(points).kneighbors(return_distance=False).T
        right.append(np.mean(clusters[nearest] == clusters))
    assert 0.5 < np.mean(right) < 1
    assert unlabelled.cluster_learnability(x) == pytest.approx(np.mean(right), abs=0.02)
    far_apart = torch.eye(10).repeat(10, 2)
    assert unlabelled.cluster_learnability(far_apart) == 1


def with_spectrum(variances, num_images=500):
    """Centred features whose covariance has exactly these eigenvalues, in a random rotation."""
    rng = np.random.default_rng(0)
    columns = rng.standard_normal((num_images, len(variances)))
    directions = np.linalg.qr(columns - columns.mean(0))[0]
    rotation = np.linalg.qr(rng.standard_normal((len(variances), len(variances))))[0]
    return torch.from_numpy(directions * np.sqrt(num_images * np.asarray(variances)) @ rotation)


def test_rankme_counts_directions_of_equal_strength():
    assert unlabelled.rankme(with_spectrum([2.0] * 7 + [0.0] * 13)) == pytest.approx(7, rel=1e-3)
    shares = np.array([3, 2, 1]) / 6
    assert unlabelled.rankme(with_spectrum([9.0, 4.0, 1.0])) == pytest.approx(
        np.exp(-shares @ np.log(shares)), rel=1e-4
    )


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("num_dims", [6, 60])
def test_alpha_req_is_the_decay_of_the_spectrum(alpha, num_dims):
    assert unlabelled.alpha_req(with_spectrum(np.arange(1, num_dims + 1) ** -alpha)) == pytest.approx(alpha, abs=1e-6)


@pytest.mark.parametrize(("num_images", "num_dims"), [(60, 8), (40, 80)])
def test_logme_is_the_most_that_the_evidence_can_be(num_images, num_dims):
    features, _, labels = planted(num_images, num_dims)
    labels, x = labels % 3, features.double().numpy()

    def loss(logs, target):
        weights, error = np.exp(-logs)
        return -multivariate_normal(cov=weights * x @ x.T + error * np.eye(num_images)).logpdf(target) / num_images

    expected = [-minimize(loss, [2.0, 4.0], target, method="Nelder-Mead").fun for target in np.eye(3)[labels].T]
    assert labelled.logme(features, labels, 3) == pytest.approx(np.mean(expected), abs=1e-4)


@pytest.mark.parametrize(("num_images", "num_dims"), [(300, 20), (50, 120)])
def test_h_score_is_the_trace_in_closed_form(num_images, num_dims):
    features, _, labels = planted(num_images, num_dims)
    x = features.double().numpy()
    covariance = LedoitWolf().fit(x)
    means = np.stack([x[labels == one].mean(0) for one in range(NUM_CLASSES)])[labels]
    between = np.cov(means, rowvar=False, bias=True)
    expected = (1 - covariance.shrinkage_) * np.trace(np.linalg.inv(covariance.covariance_) @ between)
    assert labelled.h_score(features, labels, NUM_CLASSES) == pytest.approx(expected, rel=1e-6)


def test_a_class_without_an_image_counts_for_nothing():
    features, _, labels = planted()
    for name in LABELLED:
        more = LABELLED[name](features, labels, NUM_CLASSES + 5)
        assert more == pytest.approx(LABELLED[name](features, labels, NUM_CLASSES), abs=1e-9)


def test_contrast_is_the_cross_entropy_of_finding_the_other_draw():
    first, second, _ = planted()
    cosines = sphere(first) @ sphere(second).T
    right = np.arange(len(first))
    there, back = log_loss(right, softmax(2 * cosines, 1)), log_loss(right, softmax(2 * cosines.T, 1))
    assert unlabelled.contrast(first, second) == pytest.approx(-(there + back) / 2, abs=1e-5)


def test_the_contrast_and_the_consensus_see_a_noise_that_two_equal_draws_hide():
    (first, _, _), (noise_draw, _, _) = planted(), noise()
    weak, strong = first + 0.1 * noise_draw, first + 3 * noise_draw
    cells = [label_free.measure(Features(first, first, noisier)) for noisier in (strong, weak)]
    assert cells[0]["alignment"] == cells[1]["alignment"] == 0
    assert cells[0]["contrast"] < cells[1]["contrast"]
    assert label_free.rank(cells).argmax() == 1


def test_measure_takes_the_mean_over_both_draws():
    first, second, labels = planted()
    scores = label_free.measure(known(first, second, labels), SCORES)
    assert list(scores) == list(SCORES)
    assert scores["rankme"] == pytest.approx((unlabelled.rankme(first) + unlabelled.rankme(second)) / 2)
    assert scores["icr"] == unlabelled.icr(first, second)


def test_with_labels_those_of_the_first_images_are_read_and_count():
    first, second, labels = planted()
    few, num_classes = labels[:40], int(labels.max()) + 1
    scores = label_free.measure(known(first, second, labels), ALL, few, num_classes)
    assert list(scores) == list(ALL)
    assert scores["ridge"] == sum(labelled.ridge(draw[:40], few, num_classes) for draw in (first, second)) / 2
    unlike = [{**scores, "ridge": scores["ridge"] - 0.1}, scores]
    assert label_free.rank(unlike).argmax() == 1
    assert label_free.rank([{name: cell[name] for name in SCORES} for cell in unlike]).unique().numel() == 1


def test_rank_puts_the_aligned_and_uniform_cell_first():
    cells = [{"alignment": a, "uniformity": u} for a, u in [(1.0, -1.0), (0.1, -3.0), (0.1, -1.0), (1.0, -3.0)]]
    ranking = label_free.rank(cells, ("alignment", "uniformity"))
    assert ranking.argmax() == 1
    assert ranking.argmin() == 0


def test_merit_is_higher_where_a_score_is_better():
    values = np.array([0.5, 0.9, 2.0])
    assert SCORES["alpha_req"].merit(values).argmax() == 1
    assert SCORES["rankme"].merit(values).argmax() == 2
    assert SCORES["alignment"].merit(values).argmax() == 0


ACCURACY = np.array([[0.50, 0.30], [0.80, 0.60], [0.79, 0.55], [0.70, 0.50]])


def test_trust_of_the_accuracy_itself_is_complete():
    assert astuple(label_free.trust(ACCURACY, ACCURACY)) == pytest.approx((1, 1, 0, 0, 1))
    assert label_free.trust(-ACCURACY, ACCURACY).spearman == pytest.approx(-1)
    assert label_free.trust(-ACCURACY, ACCURACY).regret == pytest.approx(50)


def test_a_score_that_knows_the_timestep_alone_is_seen_through():
    by_timestep = np.array([[1.0, 0.0]] * 4)
    found = label_free.trust(by_timestep, ACCURACY, k=2)
    assert found.spearman > 0.5
    assert found.spearman_within_timestep == 0
    assert found.regret == pytest.approx(30)
    assert found.top_k_regret == pytest.approx(0)
    assert found.top_k_hit == pytest.approx(0.5)


def test_cells_without_a_number_are_left_out():
    ranking = np.where(ACCURACY == 0.80, np.nan, ACCURACY)
    found = label_free.trust(ranking, np.where(ACCURACY == 0.30, np.nan, ACCURACY))
    assert found.regret == 0 and found.spearman == pytest.approx(1)
    with pytest.raises(ValueError, match="no cell has both"):
        label_free.trust(np.full((4, 2), np.nan), ACCURACY)
