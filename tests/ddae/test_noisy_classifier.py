"""One head for all noise levels: its levels, its training, and what is kept of it."""

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from ddae.backbones import Settings, load_backbone
from ddae.heads import Kept, kept
from ddae.noise import VE, VP, Flow
from ddae.noise_levels import DISTRIBUTIONS, all_levels, between, choose_grid, log_sigma
from ddae.noisy_classifier import HEAD, RECORD, NoisyClassifier, NoisyHead, head_size
from ddae.noisy_training import Columns, counts_of, fit, lay_out, score
from ddae.noisy_wide_resnet import NoisyWideResNet, sizes_of

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEDULES = {
    "ddpm": VP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))),
    "from 1": VP(np.cumprod(1 - np.linspace(1e-4, 0.02, 100)), first=1),
    "ends in noise alone": VP([*np.cumprod(1 - np.linspace(1e-4, 0.02, 200)), 0.0]),
    "begins clean": VP([1.0, *np.cumprod(1 - np.linspace(1e-4, 0.02, 200))]),
    "edm": VE(200),
    "flow": Flow(),
}
CLASSES, CHANNELS, SIDE = 3, 6, 4


@pytest.mark.parametrize("num_levels", [2, 32, 64])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_grid_is_evenly_spaced_as_far_as_timesteps_are(schedule, num_levels):
    levels = all_levels(schedule)
    grid = choose_grid(levels, num_levels)
    assert num_levels <= len(grid) <= 1.1 * num_levels + 1
    known, chosen = np.array(list(levels.values())), np.array(list(grid.values()))
    assert (np.diff(chosen) > 0).all() and np.isfinite(known).all()
    assert (chosen[0], chosen[-1]) == (known[0], known[-1])
    assert all(level == pytest.approx(math.log(schedule.sigma(t))) for t, level in grid.items())
    spacing, coarsest = (known[-1] - known[0]) / (len(grid) - 1), np.diff(known).max()
    assert np.diff(chosen).max() <= 1.5 * spacing + coarsest
    inside = between(levels, grid, 5)
    assert 1 <= len(inside) <= 5 and not inside.keys() & grid.keys()
    assert all(chosen[0] < level < chosen[-1] for level in inside.values())
    for distribution in DISTRIBUTIONS.values():
        shares = distribution(levels, list(grid.values()))
        assert shares.shape == chosen.shape and (shares > 0).all() and shares.sum() == pytest.approx(1)


def test_log_sigma_is_one_axis_for_all_kinds_of_noise():
    for schedule in SCHEDULES.values():
        for timestep in list(schedule.timesteps)[3::50]:
            alpha, sigma = schedule.scales(timestep)
            expected = math.log(sigma / alpha) if alpha else math.inf
            assert log_sigma(schedule, timestep) == pytest.approx(expected)
    assert log_sigma(VP([1.0]), 0) == -math.inf and log_sigma(VP([0.0]), 0) == math.inf


def test_uniform_t_sees_little_noise_rarely():
    levels = all_levels(SCHEDULES["ddpm"])
    grid = choose_grid(levels, 32)
    by_t, alike = (DISTRIBUTIONS[name](levels, list(grid.values())) for name in ("uniform-t", "log-sigma"))
    assert by_t[0] == pytest.approx(1 / 1000) and by_t.max() > 0.05
    assert np.allclose(alike, 1 / len(grid))


@pytest.mark.parametrize("schedule", [VE(18), VP([0.9, 0.5, 0.1])])
def test_too_few_timesteps_are_one_line(schedule):
    levels = all_levels(schedule)
    for num_levels in (len(levels), 32):
        with pytest.raises(
            ValueError, match=f"num_levels={num_levels} is too many: the network has {len(levels)} "
        ) as no:
            choose_grid(levels, num_levels)
        assert "\n" not in str(no.value)


def head_of(num_features=8, embedding=False, num_levels=4, seed=0):
    torch.manual_seed(seed)
    levels, mean = torch.linspace(-4, 5, num_levels), torch.randn(num_levels, num_features)
    return NoisyHead(levels, mean, torch.rand(num_levels, num_features) + 0.5, CLASSES, 2, embedding)


@pytest.mark.parametrize("embedding", [False, True])
def test_features_are_standardised_by_their_own_level_and_in_between(embedding):
    head = head_of(embedding=embedding)
    head.g = torch.nn.Identity()
    tau = (lambda level: head.tau(sinusoid(head, level))) if embedding else (lambda level: 0)
    for number, level in enumerate(head.levels):
        x = head.mean[number] + torch.randn(5, 8) / head.scale[number]
        expected = (x - head.mean[number]) * head.scale[number]
        torch.testing.assert_close(head(x, level.expand(5)), expected + tau(level.expand(5)))
    middle = (head.levels[1] + 3 * head.levels[2]) / 4
    x, mean = torch.randn(5, 8), (head.mean[1] + 3 * head.mean[2]) / 4
    expected = (x - mean) * (head.scale[1] + 3 * head.scale[2]) / 4
    torch.testing.assert_close(head(x, middle.expand(5)), expected + tau(middle.expand(5)))


@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.parametrize("num_features", [1, 8, 9])
def test_the_size_of_a_head_is_known_before_it_is_made(num_features, embedding):
    head = head_of(num_features, embedding)
    assert head_size(num_features, CLASSES, 2, embedding) == sum(each.numel() for each in head.parameters())
    assert head(torch.randn(2, num_features), torch.zeros(2)).shape == (2, CLASSES)


def sinusoid(head, level):
    from ddae.noisy_classifier import sinusoids

    return sinusoids(level, head.num_features)


@pytest.mark.parametrize("embedding", [False, True])
def test_levels_beyond_the_range_are_taken_for_its_end(embedding):
    head, x = head_of(embedding=embedding), torch.randn(3, 8)
    assert head.range == (-4, 5)
    for beyond, end in ((-math.inf, -4.0), (-7.0, -4.0), (math.inf, 5.0)):
        assert torch.equal(head(x, torch.full((3,), beyond)), head(x, torch.full((3,), end)))
    assert not torch.equal(head(x, torch.full((3,), -4.0)), head(x, torch.full((3,), 0.0)))


def test_what_does_not_vary_is_left_out_and_levels_must_grow():
    deviation = torch.ones(1, 4)
    deviation[0, 1] = 0
    head = NoisyHead(torch.tensor([0.0, 1.0]), torch.zeros(1, 4), deviation, CLASSES)
    x = torch.randn(2, 4)
    other = x.clone()
    other[:, 1] += 100
    assert torch.equal(head(x, torch.zeros(2)), head(other, torch.zeros(2)))
    with pytest.raises(ValueError, match="2 levels, which must grow, have 1 means"):
        NoisyHead(torch.tensor([1.0, 1.0]), torch.zeros(1, 4), torch.ones(1, 4), CLASSES)
    with pytest.raises(ValueError, match="3 levels, which must grow, have 2 means"):
        NoisyHead(torch.arange(3.0), torch.zeros(2, 4), torch.ones(2, 4), CLASSES)


@pytest.fixture
def classifier(tiny_model):
    backbone = load_backbone(tiny_model, Settings())
    head = head_of(4 * backbone.block("up.1.0").channels, embedding=True).eval().requires_grad_(False)
    names = tuple("abc")
    return NoisyClassifier(
        head, "up.1.0", 2, names, tiny_model, Settings(), backbone.fingerprint, "digits", {"val_accuracy": 0.5}
    )


def test_tokens_are_read_as_a_map(classifier):
    channels = classifier.head.num_features // 4
    map, level = torch.randn(2, channels, SIDE, SIDE), torch.tensor([-1.0, 2.0])
    tokens = map.flatten(2).transpose(1, 2)
    torch.testing.assert_close(classifier.logits(tokens, level), classifier.logits(map, level))
    pooled = functional.avg_pool2d(map, SIDE // 2).flatten(1)
    torch.testing.assert_close(classifier.logits(map, level), classifier.head(pooled, level))
    with pytest.raises(ValueError, match=r"gives 4 features, and the head of block='up.1.0' reads 64"):
        classifier.logits(torch.randn(2, 1, SIDE, SIDE), level)


def test_the_gradient_reaches_the_noised_image(classifier):
    """By finite differences through network and head."""
    backbone = classifier.open()
    torch.manual_seed(0)
    x_t, level = torch.randn(1, 1, 16, 16), torch.tensor([log_sigma(backbone.schedule, 100)])

    def merit(x):
        map = backbone.capture(x, 100, [classifier.block], lambda map: map)[classifier.block]
        return classifier.logits(map, level).log_softmax(1)[0, 1]

    [gradient] = torch.autograd.grad(merit(x_t.requires_grad_()), x_t)
    along = gradient / gradient.norm()
    with torch.no_grad():
        slope = (merit(x_t + 0.01 * along) - merit(x_t - 0.01 * along)) / 0.02
    assert slope == pytest.approx(gradient.norm().item(), rel=0.02) and gradient.norm() > 0
    assert all(parameter.grad is None for parameter in classifier.head.parameters())


def test_what_is_saved_is_loaded(classifier, tmp_path):
    classifier.save(tmp_path)
    loaded = NoisyClassifier.load(tmp_path)
    map, level = torch.randn(3, classifier.head.num_features // 4, 8, 8), torch.tensor([-9.0, 0.3, 2.0])
    assert torch.equal(loaded.logits(map, level), classifier.logits(map, level))
    assert loaded.log_sigma_range == (-4, 5) and loaded.measured == {"val_accuracy": 0.5}
    assert (loaded.block, loaded.pooling, loaded.class_names) == ("up.1.0", 2, ("a", "b", "c"))
    assert loaded.open().fingerprint == classifier.fingerprint
    assert not any(parameter.requires_grad for parameter in loaded.head.parameters())


def test_settings_that_name_files_are_saved_with_copies(classifier, tiny_model, tmp_path):
    from dataclasses import replace

    from safetensors.torch import save_file

    tensors = {name: each + 0.01 for name, each in load_backbone(tiny_model, Settings()).network.state_dict().items()}
    save_file(tensors, tmp_path / "tuned.safetensors")
    settings = Settings(weights=str(tmp_path / "tuned.safetensors"))
    tuned = replace(classifier, settings=settings, fingerprint=load_backbone(tiny_model, settings).fingerprint)
    tuned.save(tmp_path / "kept")
    (tmp_path / "tuned.safetensors").unlink()
    assert NoisyClassifier.load(tmp_path / "kept").open().fingerprint == tuned.fingerprint != classifier.fingerprint


def test_what_is_no_classifier_or_another_networks_is_one_line(classifier, tiny_model, tmp_path):
    def refused(match, do):
        with pytest.raises(ValueError, match=match) as error:
            do()
        assert "\n" not in str(error.value)

    refused("holds no noisy_classifier.json", lambda: NoisyClassifier.load(tmp_path))
    refused("holds no noisy_classifier.json", lambda: NoisyClassifier.load(tmp_path / "not there"))
    classifier.save(tmp_path)
    record = json.loads((tmp_path / RECORD).read_text())
    for damaged in ("", "{", "[]", json.dumps(record | {"version": 0}), json.dumps(record | {"class_names": ["a"]})):
        (tmp_path / RECORD).write_text(damaged)
        refused("is damaged .*; run sweeps/noisy_classifier.py again", lambda: NoisyClassifier.load(tmp_path))
    (tmp_path / RECORD).write_text(json.dumps(record))
    (tmp_path / HEAD).write_bytes((tmp_path / HEAD).read_bytes()[:-1])
    refused(f"is damaged .{HEAD} is not the one", lambda: NoisyClassifier.load(tmp_path))
    (tmp_path / HEAD).unlink()
    refused("is damaged", lambda: NoisyClassifier.load(tmp_path))
    other = load_backbone(tiny_model, Settings(image_size=32))
    refused("whose fingerprint was", lambda: classifier.check(other))


def planted(levels, num_images=120, num_draws=1, seed=0, signal=2.0, offset=0.0):
    """Columns whose class shows in one channel, and labels. offset: of the first class' channel at the first level."""
    rng = np.random.default_rng(seed)
    labels, parts = np.arange(num_images) % CLASSES, []
    for level in range(len(levels)):
        draws = []
        for _ in range(num_draws):
            maps = rng.standard_normal((num_images, CHANNELS, SIDE, SIDE))
            maps[np.arange(num_images), labels] += signal
            maps[:, 0] += 0 if level else offset
            rows = maps.reshape(num_images, -1).astype(np.float16)
            draws.append([rows[:50], rows[50:]])
        parts.append(draws)
    return Columns(parts, CHANNELS, 2, "cpu", 200_000), torch.from_numpy(labels)


LEVELS = (-3.0, -1.0, 0.5, 2.0)
ALIKE = np.full(4, 0.25)


@pytest.mark.parametrize(
    ("embedding", "standardise"),
    [
        (True, False),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in [(False, True), (True, True), (False, False)]),
    ],
)
def test_a_planted_signal_is_found_at_every_level_and_shuffled_labels_are_not(embedding, standardise):
    columns, labels = planted(LEVELS, num_draws=2)
    unseen, _ = planted(LEVELS, seed=1)
    assert unseen.streamed(unseen.level(0)).rows_at_once < 120  # block by block
    head = fit(columns, labels, LEVELS, ALIKE, CLASSES, 1, embedding, standardise)
    assert score(head, unseen, labels, LEVELS).mean(1).min() > 0.9
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    wrong = fit(columns, shuffled, LEVELS, ALIKE, CLASSES, 1, embedding, standardise)
    assert score(wrong, unseen, labels, LEVELS).mean() < 0.6


@pytest.mark.slow
def test_a_level_that_is_hardly_trained_on_collapses_and_its_own_statistics_mend_it():
    """Features of the first level lie elsewhere, and it is seen once in a thousand times."""
    rare = np.array([0.001, 0.333, 0.333, 0.333])
    columns, labels = planted(LEVELS, offset=6.0)
    unseen, _ = planted(LEVELS, seed=1, offset=6.0)

    def at_first(shares, standardise):
        head = fit(columns, labels, LEVELS, shares, CLASSES, 2, False, standardise)
        return score(head, unseen, labels, LEVELS)[0].mean()

    collapsed = at_first(rare, False)
    assert at_first(rare, True) > collapsed + 0.1 and at_first(ALIKE, False) > collapsed + 0.1


@pytest.mark.parametrize("shares", [ALIKE, np.array([0.001, 0.199, 0.7, 0.1])])
@pytest.mark.parametrize("num_draws", [1, 3])
def test_an_epoch_has_each_level_as_often_as_its_share_says(shares, num_draws):
    columns, _ = planted(LEVELS, num_draws=num_draws)
    num_rows, seen = 120 * num_draws * 4, {level: [] for level in range(4)}
    for epoch in range(20):
        parts, levels, images = lay_out(columns, shares, 120, epoch)
        rows = np.concatenate(parts)
        assert len(rows) == len(levels) == len(images) == num_rows
        counts = np.bincount(levels.numpy(), minlength=4)
        assert np.abs(counts - shares * num_rows).max() <= 1
        for level in range(4):
            its = rows[(levels == level).numpy()]
            stored = np.concatenate(columns.level(level))
            numbers = [int(np.flatnonzero((stored == row).all(1))[0]) for row in its[:40]]
            assert [number % 120 for number in numbers] == images[levels == level][:40].tolist()
            seen[level] += images[levels == level].tolist()
    assert all(len(set(seen[level])) == 120 for level in range(4) if shares[level] > 0.02)
    assert len(set(seen[0])) == min(120, len(seen[0]))  # no image again before all were seen


def test_whole_numbers_are_in_proportion():
    for total in (1, 7, 1000):
        counts = counts_of(np.array([0.1, 0.0, 0.6, 0.3]), total)
        assert counts.sum() == total and np.abs(counts - total * np.array([0.1, 0.0, 0.6, 0.3])).max() <= 1


class Interrupted(Exception):
    pass


class Memory:
    """Keeps what it is given, and is interrupted after so many times."""

    def __init__(self, patience):
        self.state, self.patience = b"", patience

    def load(self):
        return self.state

    def save(self, state):
        self.state, self.patience = state, self.patience - 1
        if not self.patience:
            raise Interrupted


@pytest.mark.parametrize("patience", [45, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 299))])
def test_a_training_that_goes_on_ends_as_one_that_does_not(monkeypatch, patience):
    monkeypatch.setattr(kept, "SECONDS", 0)
    columns, labels = planted(LEVELS)
    expected = fit(columns, labels, LEVELS, ALIKE, CLASSES)
    memory = Memory(patience)
    with pytest.raises(Interrupted):
        fit(columns, labels, LEVELS, ALIKE, CLASSES, kept=Kept(memory, "one"))
    again = fit(columns, labels, LEVELS, ALIKE, CLASSES, kept=Kept(memory, "one"))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_wide_resnet_is_told_the_noise_level():
    assert sizes_of("wide-resnet") == (10, 1) and sizes_of("wrn:28-10") == (28, 10)
    torch.manual_seed(0)
    network, x = NoisyWideResNet(10, 1, 3, CLASSES), torch.randn(2, 3, 16, 16)
    scores = network(x, torch.tensor([-2.0, 1.0]))
    assert scores.shape == (2, CLASSES) and not torch.equal(scores, network(x, torch.tensor([1.0, -2.0])))
    torch.testing.assert_close(network(5 * x + 3, torch.tensor([-2.0, 1.0])), scores, rtol=1e-3, atol=1e-3)
    for block in network.blocks:
        assert block.told.out_features == block.second[-1].in_channels
    parameters = sum(each.numel() for each in NoisyWideResNet(28, 10, 3, 10).parameters())
    assert 36e6 < parameters < 38e6


@pytest.mark.parametrize("name", ["resnet", "wrn:28", "wrn:11-2", "wrn:4-1", "wrn:10-0", "wrn:a-b", "timm:resnet18"])
def test_a_baseline_that_there_is_not_is_one_line(name):
    with pytest.raises(ValueError, match=r"baseline='.*' (is not known|must have a depth)") as error:
        sizes_of(name)
    assert "\n" not in str(error.value)


def test_a_picture_has_a_line_for_each_and_ticks_that_can_be_read(tmp_path):
    from ddae.report.noise_curves import noise_curves

    line = [(0.01, 0.9, 0.01), (1.0, 0.5, 0.02), (157.0, 0.1, 0.01)]
    figure = noise_curves({"one": line, "two": line}, {"one": line[1:2]}, tmp_path / "levels.png")
    [axes] = figure.axes
    low, high = axes.get_xlim()
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    assert [label.get_text() for at, label in ticks if low <= at <= high] == ["0.01", "0.1", "1", "10", "100"]
    assert axes.get_legend_handles_labels()[1] == ["one", "two"] and (tmp_path / "levels.png").exists()
