from dataclasses import replace

import numpy as np
import pytest
import torch

from ddae.backbones import load_backbone
from ddae.datasets import load_dataset
from ddae.features import FeatureKey, extract, width
from ddae.noise import image_noise
from ddae.pooling import pool, stored_grid
from ddae.ridge import leave_one_out
from ddae.views import flip_and_crop
from storage.ledger import content_key

KEY = FeatureKey("weights", "images", split_seed=0, val_fraction=0.2, noise_seed=0, pooling=4)
OF_0_1 = {
    "backbone": "weights", "images": "images", "split_seed": 0, "val_fraction": 0.2, "noise_seed": 0, "draw": 0,
    "pooling": 4, "dtype": "float16", "version": 3,
}  # fmt: skip
"""What version 0.1 hashed: one number counted noise draws and, from 2 on, views."""


@pytest.fixture(scope="module")
def backbone(tiny_model):
    return load_backbone(tiny_model)


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("digits", 16)


def test_features_are_the_pooled_activations(backbone, dataset):
    rows = dataset.splits["train"][:5]
    names = [block.name for block in backbone.blocks]
    features = extract(backbone, dataset, rows, 30, names, KEY)
    x0 = backbone.encode(dataset.images.read(rows))
    maps = backbone.activations(x0, image_noise(rows, (1, 16, 16), 30, 0), 30, names)
    for block in backbone.blocks:
        assert features[block.name].shape == (5, width(block, 4))
        expected = pool(maps[block.name], stored_grid(block.size, 4)).flatten(1).half().numpy()
        assert np.array_equal(features[block.name], expected)


@pytest.mark.parametrize(("draw", "view"), [(0, 0), (1, 0), (2, 0), (0, 1), (0, 2), (2, 2)])
def test_views_alone_are_flipped_and_cropped_and_each_draw_and_view_has_noise_of_its_own(backbone, dataset, draw, view):
    rows = dataset.splits["train"][:3]
    found = extract(backbone, dataset, rows, 30, ["mid"], replace(KEY, draw=draw, view=view))["mid"]
    images = dataset.images.read(rows)
    x0 = backbone.encode(flip_and_crop(images, rows, 0, view) if view else images)
    noise = image_noise(rows, (1, 16, 16), 30, 0, draw, view)
    expected = backbone.activations(x0, noise, 30, ["mid"])["mid"]
    assert np.array_equal(found, expected.flatten(1).half().numpy())
    plain = extract(backbone, dataset, rows, 30, ["mid"], KEY)["mid"]
    assert np.array_equal(found, plain) == ((draw, view) == (0, 0))


@pytest.mark.parametrize("draw", [0, 1])
def test_images_as_they_are_keep_the_keys_of_version_0_1(draw):
    fields = replace(KEY, draw=draw).asdict()
    assert fields == OF_0_1 | {"draw": draw}
    assert content_key(**fields) == content_key(**OF_0_1 | {"draw": draw})


def test_a_later_draw_a_view_and_what_version_0_1_called_a_draw_are_three_keys():
    keys = [content_key(**replace(KEY, draw=draw, view=view).asdict()) for draw in range(4) for view in range(4)]
    of_0_1 = [content_key(**OF_0_1 | {"draw": draw}) for draw in (2, 3)]
    assert len({*keys, *of_0_1}) == 16 + 2


def test_batch_size_matters_neither_to_features_nor_to_the_probe(backbone, dataset):
    rows, names = dataset.splits["train"][:300], ["mid", "up.0.1", "up.2.1"]
    labels = torch.from_numpy(dataset.labels("train")[:300])
    one, some, many = (extract(backbone, dataset, rows, 30, names, KEY, size) for size in (1, 16, 128))
    for name in names:
        for other in (one, some):
            np.testing.assert_allclose(other[name].astype(np.float32), many[name].astype(np.float32), atol=5e-3)
        right = [
            leave_one_out(torch.from_numpy(features[name]).float()[:, :, None, None], labels, 10)
            for features in (some, many)
        ]
        assert (right[0] != right[1]).sum() <= 1


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_timestep_outside_the_schedule(backbone, dataset, timestep):
    with pytest.raises(ValueError, match=rf"timestep={timestep} is outside this model's schedule; allowed: 0 to 999"):
        extract(backbone, dataset, dataset.splits["val"][:1], timestep, ["mid"], KEY)


@pytest.mark.parametrize("factor", [1e9, float("nan")])
def test_what_float16_cannot_hold_is_an_error(tiny_model, dataset, factor):
    backbone = load_backbone(tiny_model)
    for parameter in backbone.network.mid_block.resnets[-1].conv2.parameters():
        parameter.mul_(factor)
    with pytest.raises(ValueError, match=r"block='mid' at timestep=5 reaches .* beyond float16's 65504"):
        extract(backbone, dataset, dataset.splits["val"][:2], 5, ["mid"], KEY)


@pytest.mark.parametrize("size", [4, 7, 8, 14, 16])
@pytest.mark.parametrize("pooling", [1, 2, 4])
def test_coarse_poolings_follow_exactly_from_the_stored_grid(size, pooling):
    maps = torch.rand(2, 3, size, size, dtype=torch.float64)
    stored = pool(maps, stored_grid(size, 4))
    torch.testing.assert_close(pool(stored, pooling), pool(maps, pooling), rtol=0, atol=1e-12)


def test_the_stored_grid_is_small_where_windows_nest():
    assert [stored_grid(size, 4) for size in (2, 4, 7, 8, 32)] == [2, 4, 7, 4, 4]
