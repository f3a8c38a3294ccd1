import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from ddae import ridge
from ddae.heads import FUSIONS, HEADS, attention, cnn, expand, find_head, mlp, recipes, restore
from ddae.heads.attention import Attention
from ddae.heads.linear import COSTS, PENALTIES
from ddae.heads.training import Batches
from ddae.probe import classify, fit_probe
from tests.ddae.golden import digest, problem

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = expand(HEADS)


def planted(num_images, signal=2.0, channels=6, num_classes=3, seed=0, grid=2):
    """Maps whose mean over space carries the class, in noise."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % num_classes
    maps = torch.randn(num_images, channels, grid, grid, generator=rng)
    maps[torch.arange(num_images), labels] += signal
    return maps, labels


def fit(name, maps, labels, num_classes=3, seed=0):
    head, sizes = find_head(name)
    return head.fit(maps, labels, num_classes, seed, *sizes)


def grid_of(name):
    return max(2, find_head(name)[0].min_grid)


@pytest.mark.parametrize("name", NAMES)
def test_every_head_finds_a_planted_signal(name):
    grid = grid_of(name)
    train_images, val = planted(300, grid=grid), planted(300, seed=1, grid=grid)
    fitted = fit_probe(name, train_images, val, 3, seed=0)
    assert fitted.correct.mean() > 0.9
    scores = fitted.head(planted(5, grid=grid)[0])
    assert scores.shape == (len(fitted.head.settings), 5, 3)
    assert fitted.setting in fitted.head.settings
    [found] = classify(fitted.head.only(fitted.setting), val[0], 3)
    assert ((found == val[1]).numpy() == fitted.correct).all()


@pytest.mark.parametrize("name", NAMES)
def test_shuffled_labels_give_chance(name):
    grid = grid_of(name)
    maps, labels = planted(600, grid=grid)
    shuffled = labels[torch.randperm(600, generator=torch.Generator().manual_seed(0))]
    val = planted(600, seed=1, grid=grid)
    fitted = fit_probe(name, (maps, shuffled), val, 3, seed=0)
    assert fitted.correct.mean() < 1 / 3 + 0.1


@pytest.mark.parametrize("name", NAMES)
def test_a_fit_is_its_seed_and_leaves_the_global_random_state_alone(name):
    data, other = planted(60, grid=grid_of(name)), planted(20, seed=1, grid=grid_of(name))[0]
    before = torch.get_rng_state()
    first = fit(name, *data)(other)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(1)
    assert torch.equal(first, fit(name, *data)(other))


@pytest.mark.parametrize("name", [*NAMES, "mlp-16-8"])
def test_every_setting_survives_as_tensors(name):
    (maps, labels), (asked, _) = planted(60, grid=grid_of(name)), planted(20, seed=1, grid=grid_of(name))
    fitted, before = fit(name, maps, labels), torch.get_rng_state()
    for scores, setting in zip(fitted(asked), fitted.settings, strict=True):
        tensors = {key: value.clone().contiguous() for key, value in fitted.only(setting).state_dict().items()}
        head = restore(name, maps.shape, 3, load(save(tensors)), setting)
        torch.testing.assert_close(head(asked), scores[None], rtol=1e-5, atol=1e-5)
        assert head.settings == (setting,)
        shares = head.probabilities(scores[None])
        torch.testing.assert_close(shares.sum(-1), torch.ones(1, 20))
        assert torch.equal(shares[0].argmax(-1), scores.argmax(-1))
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match=f"head='{name}' has other tensors"):
        restore(name, maps.shape, 4, tensors, setting)


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_grid_two_classes_more_dimensions_than_images_and_a_dead_channel(name):
    maps, labels = planted(30, signal=4, channels=40, num_classes=2, grid=find_head(name)[0].min_grid)
    maps[:, 5] = 7.0
    scores = fit(name, maps, labels, num_classes=2)(maps)
    assert torch.isfinite(scores).all()
    assert (scores.argmax(-1) == labels).float().mean(1).max() > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_constant_features_tell_nothing_and_break_nothing(name):
    grid = grid_of(name)
    scores = fit(name, torch.full((24, 6, grid, grid), 7.0), torch.arange(24) % 3)(torch.ones(3, 6, grid, grid))
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize("name", ["mlp-16", "cnn-8-8", "attention-1", "bn-linear"])
def test_all_settings_at_once_are_each_alone(name, monkeypatch):
    maps, labels = planted(100, channels=8, grid=4)
    together = fit(name, maps, labels)
    module, recipe = {
        "mlp-16": (mlp, "RECIPE"),
        "cnn-8-8": (cnn, "RECIPE"),
        "attention-1": (attention, "RECIPE"),
        "bn-linear": (recipes, "BN_LINEAR"),
    }[name]
    whole = getattr(module, recipe)
    for scores, setting in zip(together(maps), whole.settings, strict=True):
        monkeypatch.setattr(module, recipe, replace(whole, settings=(setting,)))
        torch.testing.assert_close(fit(name, maps, labels)(maps)[0], scores)


GOLDEN = {
    "ridge": (1, 3.0412359),
    "linear": (1, 49.1217156),
    "logistic": (1, -165.8916691),
    "knn": (1, -1.2060468),
    "ddae": (1, -10.097191),
    "bn-linear": (1, 123.7303617),
    "mlp": (1, 23.167276),
    "cnn": (1, -60.7354376),
    "attention": (1, 0.8334914),
    "efficient": (1, 21.8415847),
    "joint": (1, 55.2782928),
    "joint-ridge": (1, 4.5403907),
    "stacked": (1, 57.8597513),
    "average": (2, 5.9550739),
    "attentive": (1, 36.2280761),
}
"""Version of the family and digest of its results: raise the one and renew the other together."""


def golden(family):
    """Digest of the class scores after a fit on few images, where the least number of steps counts, and on many, where
    the number of epochs does; in double precision."""
    head, sizes = find_head({"mlp": "mlp-16", "cnn": "cnn-8-8", "average": "average-16"}.get(family, family), (1, 3))
    grid = max(2, head.min_grid)
    asked, _ = problem(40, grid, seed=1)
    return digest(head.fit(*problem(num_images, grid), 3, 0, *sizes)(asked) for num_images in (150, 4400))


@pytest.fixture
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] * (name == "attentive")) for name in HEADS | FUSIONS]
)
def test_the_version_of_a_head_stands_for_its_results(family, double_precision):
    found = (HEADS | FUSIONS)[family].version, golden(family)
    assert found == pytest.approx(GOLDEN.get(family), abs=1e-6), (
        f"results of {family} changed: raise its version and renew the digest, to {found}"
    )


@pytest.mark.parametrize(
    ("family", "constant", "value"),
    [
        ("linear", "ddae.heads.linear.NUM_STEPS", 61),
        ("linear", "ddae.heads.linear.PENALTIES", (1e-3, 1e-2, 0.101)),
        ("ridge", "ddae.ridge.PENALTIES", (*ridge.PENALTIES[:-1], 1010.0)),
        ("knn", "ddae.heads.knn.TEMPERATURE", 0.0701),
        ("mlp", "ddae.heads.mlp.RECIPE", replace(mlp.RECIPE, num_epochs=11)),
        ("mlp", "ddae.heads.mlp.RECIPE", replace(mlp.RECIPE, min_steps=51)),
        ("mlp", "ddae.heads.mlp.RECIPE", replace(mlp.RECIPE, batch_size=257)),
        ("mlp", "ddae.heads.mlp.RECIPE", replace(mlp.RECIPE, settings=((3.03e-3, 0.1), (1e-2, 1.0)))),
        ("mlp", "ddae.heads.mlp.RECIPE", replace(mlp.RECIPE, settings=((3e-3, 0.1), (1e-2, 1.01)))),
        ("ddae", "ddae.heads.recipes.DDAE", replace(recipes.DDAE, num_epochs=16)),
        ("bn-linear", "ddae.heads.recipes.BN_LINEAR", replace(recipes.BN_LINEAR, num_epochs=29)),
    ],
)
def test_the_digest_of_a_head_changes_with_every_number_of_its_recipe(
    family, constant, value, monkeypatch, double_precision
):
    monkeypatch.setattr(constant, value)
    assert golden(family) != pytest.approx(GOLDEN[family][1], abs=1e-6)


def test_ridge_is_the_closed_form():
    maps, labels = planted(200)
    x = standardised(maps)
    scores = fit("ridge", maps, labels)(maps)
    for row, penalty in zip(scores, ridge.PENALTIES, strict=True):
        expected = Ridge(alpha=penalty * len(x)).fit(x, np.eye(3)[labels]).predict(x)
        np.testing.assert_allclose(row.numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("channels", [6, 100])
def test_linear_reaches_the_optimum_of_logistic_regression(channels):
    maps, labels = planted(300, signal=0.7, channels=channels)
    x = standardised(maps)
    scores = fit("linear", maps, labels)(maps).softmax(-1)
    for row, penalty in zip(scores[1:], PENALTIES[1:], strict=True):
        oracle = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-8, max_iter=5000).fit(x, labels)
        np.testing.assert_allclose(row.numpy(), oracle.predict_proba(x), atol=0.02)


def test_logistic_is_scikit_learns_for_every_c():
    """On features as they are: of unlike scales, and away from zero."""
    maps, labels = planted(300, signal=0.7)
    maps = maps * torch.linspace(0.3, 3, 6)[:, None, None] + 5
    x = maps.flatten(1).double().numpy()
    scores = fit("logistic", maps, labels)(maps).softmax(-1)
    for row, cost in zip(scores, COSTS, strict=True):
        oracle = LogisticRegression(C=cost, tol=1e-8, max_iter=5000).fit(x, labels)
        np.testing.assert_allclose(row.numpy(), oracle.predict_proba(x), atol=2e-3)


@pytest.mark.parametrize("name", ["ridge", "linear", "logistic", "knn"])
def test_single_and_double_precision_agree(name):
    """As a GPU's single precision agrees with a CPU's."""
    (maps, labels), (asked, _) = planted(300, signal=0.7, channels=20), planted(50, seed=1, channels=20)
    single, double = (fit(name, maps.to(dtype), labels)(asked.to(dtype)) for dtype in (torch.float32, torch.float64))
    assert double.dtype == torch.float64
    torch.testing.assert_close(single, double.float(), rtol=1e-3, atol=1e-3)


def test_neighbours_of_version_0_1_are_read():
    (maps, labels), (asked, _) = planted(60), planted(20, seed=1)
    fitted = fit("knn", maps, labels)
    old = {"known": fitted.known, "votes": nn.functional.one_hot(labels, 3).float()}
    torch.testing.assert_close(restore("knn", maps.shape, 3, old, "k=20")(asked), fitted(asked))


def test_knn_is_brute_force(monkeypatch):
    monkeypatch.setattr("ddae.heads.knn.SIMILARITIES_AT_ONCE", 1000)
    (known, labels), (asked, _) = planted(200, signal=0.7), planted(30, seed=1)
    unit = lambda maps: maps.flatten(1).numpy() / np.linalg.norm(maps.flatten(1).numpy(), axis=1, keepdims=True)  # noqa: E731
    votes = np.zeros((len(asked), 3))
    for row, similarity in enumerate(unit(asked) @ unit(known).T):
        nearest = np.argsort(-similarity)[:20]
        weights = np.exp(similarity[nearest] / 0.07)
        np.add.at(votes[row], labels[nearest].numpy(), weights / weights.sum())
    np.testing.assert_allclose(fit("knn", known, labels)(asked)[0].numpy(), votes, atol=1e-5)


def test_ddae_is_a_plain_loop_of_adam():
    maps, labels = planted(300)
    x = maps.flatten(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(x.shape[1], 3)
    optimizer, rng = torch.optim.Adam(layer.parameters(), lr=1e-3), torch.Generator().manual_seed(0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
    for step in range(500):
        if step % 2 == 0:
            order = torch.randperm(300, generator=rng)
        rows = order[:128] if step % 2 == 0 else order[128:256]
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(x[rows]), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(fit("ddae", maps, labels)(maps)[0], layer(x).detach(), atol=1e-4, rtol=0)


def test_ddae_takes_fifteen_epochs_of_128():
    features = torch.zeros(128 * 40 + 5, 1)
    assert [len(rows) for _, rows, _ in Batches(features, recipes.DDAE, seed=0)] == [128] * 15 * 40


def test_bn_linear_forgets_scale_and_shift():
    """The whole training set is one batch here, so the batch's statistics are those of the set."""
    maps, labels = planted(200)
    apart = maps * torch.linspace(0.1, 50, 6)[:, None, None] + 9
    accuracies = [(fit("bn-linear", x, labels)(x).argmax(-1) == labels).float().mean(1) for x in (maps, apart)]
    torch.testing.assert_close(*accuracies, atol=0.02, rtol=0)


def standardised(maps):
    x = maps.flatten(1).numpy()
    return (x - x.mean(0)) / x.std(0)


PARAMETERS = {
    # Table 7
    "linear 1024": (1, 1),
    "linear 4096": (4, 1),
    "linear 16384": (16, 1),
    "linear 65536": (65, 1),
    "mlp 1024-2000": (4, 1),
    "mlp 4096-2000": (10, 1),
    "mlp 4096-2000-2000": (14, 1),
    "mlp 16384-2000": (34, 1),
    # Table 8
    "cnn 256-256": (2.5, 0.5),
    "cnn 512-256": (3.5, 0.5),
    "cnn 1000-256": (6, 1),
    "cnn 1000-1000": (12, 1),
    "cnn 2000-512": (14, 1),
    "cnn 2000-2000": (32, 1),
    "cnn 4000-2500": (66, 1),
    # Table 9
    "attention 1": (13.7, 0.1),
    "attention 2": (26.2, 0.1),
    "attention 3": (38.8, 0.1),
    "attention 4": (51.4, 0.1),
    "attention 5": (64.0, 0.1),
}
"""Millions of parameters and the unit the table rounds to. All rows have ImageNet's 1000 classes, and a written 2k is
2000 hidden units (with 2048 MLP-16k-2k would have 35.6M, CNN-1k-2k-2k 33.4M), while the features are 1024 p^2 wide."""


@pytest.mark.parametrize("row", PARAMETERS)
def test_parameters_are_those_of_tables_7_to_9(row):
    millions, unit = PARAMETERS[row]
    assert abs(num_parameters(row) / 1e6 - millions) < unit


def test_one_row_of_table_8_leaves_the_linear_layer_out():
    """CNN-1k-4k-2k is printed with 48M: its convolutions. With the linear layer, as the other rows, it has 56M."""
    convolutions = num_parameters("cnn 4000-2000") - (4 * 2000 + 1) * 1000
    assert math.floor(convolutions / 1e6) == 48


def num_parameters(row):
    family, sizes = row.split()
    sizes = tuple(map(int, sizes.split("-")))
    with torch.device("meta"):
        if family in ("linear", "mlp"):
            network = mlp.mlp(sizes[0], sizes[1:], 1000)
        else:
            network = cnn.cnn(1024, *sizes, 1000) if family == "cnn" else Attention(1024, *sizes, 1000)
    return sum(parameter.numel() for parameter in network.parameters())


def test_names_are_families_and_sizes():
    assert find_head("mlp-2048-2048") == (HEADS["mlp"], (2048, 2048))
    assert find_head("cnn") == (HEADS["cnn"], (64, 64))
    assert find_head("bn-linear") == (HEADS["bn-linear"], ())
    assert expand(["attention", "mlp", "mlp-256", "mlp-32", "linear"]) == (
        *("attention-1", "attention-2", "mlp-256", "mlp-32", "linear"),
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("linaer", r"head='linaer' is not known; allowed: ridge, linear, .*did you mean 'linear'\?"),
        ("mpl-256", "did you mean 'mlp'"),
        ("mlp-256x", "head='mlp-256x' is not known.*mlp-256"),
        ("cnn-64", "head='cnn-64': cnn takes exactly 2 sizes, each from 1 to 1,048,576, as in cnn-64-64"),
        ("attention-1-2", "attention takes exactly 1 size, .*attention-1"),
        ("mlp-0", "mlp takes 1 or more sizes, each from 1 to 1,048,576, as in mlp-256"),
        ("linear-5", "linear takes no sizes"),
        ("", "head='' is not known"),
    ],
)
def test_bad_names_say_what_is_allowed(name, message):
    for look_up in (find_head, lambda name: expand([name])):
        with pytest.raises(ValueError, match=message):
            look_up(name)
