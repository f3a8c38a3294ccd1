import json

import numpy as np
import pytest

from ddae.features import extract
from storage.feature_store import FeatureStore
from sweeps.cli import ModelAndData
from sweeps.tuning.extractor import SHARD_ROWS, Extractor, num_shards
from sweeps.tuning.plan import make_plan
from sweeps.tuning.space import Need

EVERY = ("down.0.0", "mid", "up.0.0", "up.2.1")


@pytest.fixture
def plan(tiny_model, tmp_path):
    flags = ModelAndData(tiny_model, "digits", blocks=EVERY, timesteps=(30, 100), store=str(tmp_path / "store"))
    return make_plan(flags, poolings=(1, 2), heads=("linear",))[0]


def test_an_image_passes_once_whatever_stands_in_the_store(plan):
    extractor = Extractor(plan, 1)
    needs = [Need(30, "train", 100, EVERY), Need(30, "train", 600, EVERY[1:3]), Need(30, "train", 900, ("mid",))]
    for need in needs:
        extractor.ensure(need)
    assert extractor.passes == pytest.approx(plan.space.forward_passes(needs))
    before = extractor.passes
    extractor.ensure(Need(30, "train", 1000, EVERY))
    assert extractor.passes - before == pytest.approx(900 * plan.space.pass_share(EVERY))


def test_extractors_share_a_need_and_leave_nothing(plan):
    extractors = [Extractor(plan, 1) for _ in range(3)]
    needs = [Need(100, "train", 1000, EVERY, draw) for draw in (0, 1)]
    shards_of = [(need, shard) for need in needs for shard in range(num_shards(need))]
    for number, (need, shard) in enumerate(shards_of + shards_of):
        extractors[number % 3].extract(need, shard)
    assert sum(one.passes for one in extractors) == pytest.approx(plan.space.forward_passes(needs))
    assert min(one.passes for one in extractors) > 0
    store = FeatureStore(plan.store)
    for draw in (0, 1):
        assert store.missing(plan.column(100, "train", "mid", draw), 1000) == []
        key = json.loads((store.root / plan.folder(draw) / "_key.json").read_text())
        assert key["draw"] == draw
    lengths = {stop - start for start, stop in shards(plan, Need(100, "train", 1000, ("mid",)))}
    assert lengths == {SHARD_ROWS, 1000 - SHARD_ROWS}


def test_several_extractors_write_what_one_would(plan):
    need = Need(30, "train", 1000, ("mid",))
    for shard in range(num_shards(need)):
        Extractor(plan, 1).extract(need, shard)
    column = plan.column(30, "train", "mid")
    shared = np.concatenate(FeatureStore(plan.store).read(column, 1000))
    for path in (FeatureStore(plan.store).root / column).glob("*.arrow"):
        path.unlink()
    Extractor(plan, 1).ensure(need)
    assert np.array_equal(np.concatenate(FeatureStore(plan.store).read(column, 1000)), shared)


def shards(plan, need):
    folder = FeatureStore(plan.store).root / plan.column(need.timestep, need.split, need.blocks[0])
    return sorted(tuple(map(int, path.name.split(".")[0].split("-"))) for path in folder.glob("*.arrow"))


@pytest.fixture
def latent_plan(tiny_stable_diffusion, tmp_path):
    flags = ModelAndData(tiny_stable_diffusion, "digits", ("b13", "b20"), (10, 500), store=str(tmp_path / "store"))
    return make_plan(flags, views=2)[0]


def test_an_image_is_encoded_once_for_all_timesteps_and_noise(latent_plan):
    extractors = [Extractor(latent_plan, 1) for _ in range(2)]
    blocks = tuple(block.name for block in latent_plan.space.blocks)
    needs = [
        Need(timestep, split, 600 if split == "train" else 50, blocks, draw)
        for timestep in (10, 500)
        for split, draw in (("train", 0), ("train", 1), ("val", 0))
    ]
    for method in ("encode", "extract"):
        for extractor in extractors:
            for need in needs:
                for shard in range(num_shards(need)):
                    getattr(extractor, method)(need, shard)
    assert sum(one.num_encoded for one in extractors) == 650
    augmented = Need(10, "train", 20, blocks, draw=2)
    for extractor in extractors:
        extractor.ensure(augmented)
    assert sum(one.num_encoded for one in extractors) == 670


def test_features_of_kept_latents_are_those_of_the_images(latent_plan):
    need = Need(500, "val", 30, tuple(block.name for block in latent_plan.space.blocks))
    extractor = Extractor(latent_plan, 1)
    extractor.ensure(need)
    rows = extractor.dataset.splits["val"][:30]
    fresh = extract(extractor.backbone, extractor.dataset, rows, 500, need.blocks, latent_plan.key)
    for block, expected in fresh.items():
        stored = np.concatenate(extractor.store.read(latent_plan.column(500, "val", block), 30))
        np.testing.assert_allclose(stored.astype(float), expected.astype(float), atol=0.01, rtol=0.01)


def test_a_model_of_pixels_has_no_latents(plan):
    extractor = Extractor(plan, 1)
    extractor.ensure(Need(30, "train", 10, EVERY))
    assert extractor.num_encoded == 0 and not any(extractor.store.root.rglob("*latents*"))
