"""Heads that are trained by a paper's recipe instead of their own."""

import math
from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy

from ddae.heads import Recipe, check_recipe, find_head, fit_by, memory_by
from ddae.heads.recipes import OPTIMIZERS
from ddae.heads.training import Batches
from ddae.streaming import Streamed, between

COSINE = Recipe(((1.0, 0.0),), batch_size=4, num_epochs=10, min_steps=0)


def test_learning_rates_fall_as_papers_have_them():
    by_epoch = replace(COSINE, by_epoch=True)
    assert [by_epoch.rate(p, 10) for p in (0, 0.05, 0.51)] == [1, 1, pytest.approx(0.5)]
    steps = replace(COSINE, step_epochs=4)
    assert [steps.rate(p, 10) for p in (0, 0.39, 0.4, 0.81)] == pytest.approx([1, 1, 0.1, 0.01])
    warm = replace(COSINE, warmup_epochs=2)
    assert warm.rate(0.1, 10) == 0.5 and warm.rate(0.2, 10) == 1
    assert warm.rate(0.6, 10) == pytest.approx((1 + math.cos(math.pi / 2)) / 2)


def test_every_epoch_sees_one_view_of_every_image():
    recipe = replace(COSINE, views=2, num_epochs=4, batch_size=3)
    rows = torch.arange(12)[:, None].half().numpy()
    held = torch.arange(12.0).reshape(12, 1, 1, 1)
    for features in (held, Streamed([rows[:5], rows[5:]], 1, 1)):
        batches = list(Batches(features, recipe, seed=0))
        assert len(batches) == 8
        for epoch in range(4):
            seen = torch.cat([numbers for _, numbers, _ in batches[2 * epoch : 2 * epoch + 2]])
            assert sorted(seen.tolist()) == list(range(6 * (epoch % 2), 6 * (epoch % 2) + 6))
        assert all(torch.equal(maps.flatten(), numbers.float()) for _, numbers, maps in batches)


def test_rows_between_two_numbers():
    rows = torch.arange(10)[:, None].half().numpy()
    streamed = Streamed([rows[:3], rows[3:7], rows[7:]], 1, 1)
    assert torch.cat(list(between(streamed, 2, 8).blocks())).flatten().tolist() == [2, 3, 4, 5, 6, 7]
    assert between(streamed, 0, 10) is streamed


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lars"])
def test_heads_learn_by_a_recipe(optimizer):
    torch.manual_seed(0)
    labels = torch.arange(64) % 4
    features = torch.eye(4)[labels][:, :, None, None].repeat(1, 1, 4, 4) + 0.1 * torch.randn(64, 4, 4, 4)
    rate = {"adam": 0.02, "sgd": 0.5, "lars": 20.0}[optimizer]
    recipe = Recipe(((rate, 0.0),), 16, 20, 0, OPTIMIZERS[optimizer], warmup_epochs=2, as_they_are=True)
    for head in ("ddae", "efficient-4" if optimizer == "lars" else "attention-1"):
        fitted = fit_by(recipe, head, features, labels, 4, seed=0)
        assert (fitted(features)[0].argmax(1) == labels).float().mean() > 0.9
        assert fitted.settings == (f"lr={rate:g} weight_decay=0",)


def test_features_are_read_as_they_are():
    """Scaled features give another fit, which those that are standardised first do not."""
    torch.manual_seed(0)
    features, labels = torch.randn(32, 4, 4, 4), torch.arange(32) % 4

    def scores(recipe, scale):
        return fit_by(recipe, "mlp-8", scale * features, labels, 4, seed=0)(scale * features)

    recipe = replace(COSINE, num_epochs=2)
    torch.testing.assert_close(scores(recipe, 1), scores(recipe, 8), atol=1e-3, rtol=1e-3)
    as_they_are = replace(recipe, as_they_are=True)
    assert (scores(as_they_are, 1) - scores(as_they_are, 8)).abs().max() > 0.1


def test_a_head_without_epochs_is_refused_and_a_key_is_the_same_everywhere():
    with pytest.raises(ValueError, match="head='knn' is not trained by a recipe; those that are: ddae, bn-linear"):
        check_recipe("knn")
    keys = {replace(COSINE, optimizer=each).key for each in OPTIMIZERS.values()}
    assert len(keys) == 3 and not any(" at 0x" in key for key in keys)
    small, large = (memory_by(replace(COSINE, batch_size=n), "mlp-8", (), (100, 4, 4, 4), 4)[0] for n in (4, 64))
    assert small < large


@pytest.mark.parametrize("name", ["mlp-64", "cnn-16-16", "attention-1", "attention-5", "efficient-8", "bn-linear"])
def test_what_a_fit_takes_has_room_for_what_a_batch_leaves_for_the_backward_pass(name):
    (head, sizes), maps = find_head(name), torch.randn(32, 16, 4, 4)
    assert head.parts
    inputs, build = head.parts(maps, 10, *sizes)
    left: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        left[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        cross_entropy(build()(inputs(maps)), torch.zeros(32, dtype=torch.int64))
    recipe = replace(COSINE, batch_size=32)
    assert sum(map(len, left.values())) < memory_by(recipe, name, (), maps.shape, 10)[1]
