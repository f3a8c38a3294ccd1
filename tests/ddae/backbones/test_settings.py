"""What the ways to run a network do to its features."""

import numpy as np
import pytest
import torch

from ddae.backbones import Settings, load_backbone
from ddae.datasets import load_dataset
from ddae.features import FeatureKey, extract

KEY = FeatureKey("weights", "images", split_seed=0, val_fraction=0.2, noise_seed=0, draw=0, pooling=4)
FASTER = {
    "bfloat16": Settings(precision="bfloat16"),
    "float16": Settings(precision="float16"),
    "channels_last": Settings(channels_last=True),
}


def features(backbone, num_images=16, timestep=60):
    dataset = load_dataset("fashion-mnist-8k", backbone.image_size)
    rows = dataset.splits["train"][:num_images]
    return extract(backbone, dataset, rows, timestep, [block.name for block in backbone.blocks], KEY)


def least_cosine(first, second):
    """Over all blocks and images."""
    return min(
        torch.cosine_similarity(*(torch.from_numpy(each[name]).double() for each in (first, second))).min().item()
        for name in first
    )


@pytest.mark.parametrize("settings", FASTER.values(), ids=FASTER)
def test_faster_passes_keep_the_features(settings):
    exact, faster = (features(load_backbone("ddpm-fashion-mnist", each)) for each in (Settings(), settings))
    assert least_cosine(exact, faster) >= 0.999


@pytest.mark.slow
def test_compiled_passes_keep_the_features_and_serve_any_blocks_and_timesteps(tiny_model):
    exact, compiled = (load_backbone(tiny_model, each) for each in (Settings(), Settings(compile=True)))
    assert least_cosine(features(exact), features(compiled)) >= 0.9999
    assert least_cosine(features(exact, timestep=500), features(compiled, timestep=500)) >= 0.9999
    x0, noise = torch.randn(2, 16, 1, 16, 16)
    shallow = compiled.activations(x0, noise, 30, ["down.1.0"])
    assert list(shallow) == ["down.1.0"]
    torch.testing.assert_close(shallow, exact.activations(x0, noise, 30, ["down.1.0"]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        (Settings(channels_last=True), True),
        (Settings(precision="bfloat16"), False),
        (Settings(image_size=32), False),
    ],
)
def test_only_what_changes_features_changes_the_fingerprint(tiny_model, settings, same):
    first, second = (load_backbone(tiny_model, each).fingerprint for each in (Settings(), settings))
    assert (first == second) is same


def test_another_image_size_gives_other_maps(tiny_model):
    larger = load_backbone(tiny_model, Settings(image_size=32))
    assert larger.image_size == 32
    assert [block.size for block in larger.blocks][:3] == [32, 16, 8]
    assert np.isfinite(features(larger, num_images=2)["mid"]).all()
