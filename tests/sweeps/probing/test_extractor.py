import json
from dataclasses import replace

import numpy as np
import pytest

from ddae.features import extract
from storage.feature_store import FeatureStore
from sweeps.flags import ModelAndData
from sweeps.probing.extractor import SHARD_ROWS, Extracted, Extractor, columns_of, list_shards, num_shards
from sweeps.probing.plan import set_up
from sweeps.probing.source import Need

EVERY = ("down.0.0", "mid", "up.0.0", "up.2.1")


@pytest.fixture
def task(tiny_model, tmp_path):
    flags = ModelAndData(tiny_model, "digits", blocks=EVERY, timesteps=(30, 100), store=str(tmp_path / "store"))
    return set_up(flags, poolings=(1, 2), heads=("linear",)).task


@pytest.fixture
def source(task):
    return task.source


def test_an_image_passes_once_whatever_stands_in_the_store(task, source):
    extractor = Extractor(source)
    needs = [Need(30, "train", 100, EVERY), Need(30, "train", 600, EVERY[1:3]), Need(30, "train", 900, ("mid",))]
    for need in needs:
        extractor.ensure(need)
    assert extractor.passes == pytest.approx(task.space.forward_passes(needs))
    before = extractor.passes
    extractor.ensure(Need(30, "train", 1000, EVERY))
    assert extractor.passes - before == pytest.approx(900 * task.space.pass_share(EVERY))


def test_extractors_share_a_need_and_leave_nothing(task, source):
    extractors = [Extractor(source) for _ in range(3)]
    needs = [Need(100, "train", 1000, EVERY, draw, view) for draw, view in ((0, 0), (1, 0), (0, 1))]
    shards_of = [(need, shard) for need in needs for shard in range(num_shards(need))]
    reports = []
    for number, (need, shard) in enumerate(shards_of + shards_of):
        reports.append(extractors[number % 3].extract(need, shard))
    passes = task.space.forward_passes(needs)
    assert sum(one.passes for one in extractors) == pytest.approx(passes)
    assert sum(report.passes for report in reports) == pytest.approx(passes)
    assert reports[len(shards_of) :] == [
        Extracted(min(SHARD_ROWS, 1000 - SHARD_ROWS * shard), 0) for _, shard in shards_of
    ]
    assert min(one.passes for one in extractors) > 0
    store = FeatureStore(source.store)
    for need in needs:
        assert store.missing(source.column(need, "mid"), 1000) == []
        key = json.loads((store.root / source.folder(need.draw, need.view) / "_key.json").read_text())
        assert (key["draw"], key["view"]) == (need.draw, need.view)
    lengths = {stop - start for start, stop in shards(source, Need(100, "train", 1000, ("mid",)))}
    assert lengths == {SHARD_ROWS, 1000 - SHARD_ROWS}


def test_several_extractors_write_what_one_would(source):
    need = Need(30, "train", 1000, ("mid",))
    for shard in range(num_shards(need)):
        Extractor(source).extract(need, shard)
    column = source.column(need, "mid")
    shared = np.concatenate(FeatureStore(source.store).read(column, 1000))
    for path in (FeatureStore(source.store).root / column).glob("*.arrow"):
        path.unlink()
    Extractor(source).ensure(need)
    assert np.array_equal(np.concatenate(FeatureStore(source.store).read(column, 1000)), shared)


@pytest.fixture
def node(bucket, monkeypatch, task, tmp_path):
    """A function that makes this process one of another machine, and returns its extractor of a store in the bucket."""

    def start(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return Extractor(replace(task.source, store=bucket.address))

    return start


def listings(bucket):
    return [path for path in bucket.asked("GET") if "list-type=2" in path]


def test_columns_are_listed_once_not_once_a_shard(node, bucket):
    need = Need(30, "train", 1100, EVERY)
    node("one").ensure(need)
    assert len(listings(bucket)) == len(EVERY) + num_shards(need)
    bucket.seen.clear()
    again = node("two")
    again.ensure(need)
    assert again.passes == 0 and len(listings(bucket)) == len(EVERY)
    assert len(set(bucket.asked("GET", ".arrow"))) == len(EVERY) * num_shards(need)
    bucket.seen.clear()
    node("two").ensure(need)
    assert len(bucket.seen) == len(EVERY)


@pytest.mark.parametrize("published", [EVERY, EVERY[:2], EVERY[-1:]], ids=["all", "shallow", "deep"])
def test_what_another_machine_has_published_meanwhile_is_seen(node, task, published):
    one, need = node("one"), Need(30, "train", 600, EVERY)
    [_, listed] = list_shards(one.store, columns_of(one.source, need), need.num_images)
    other = node("two")
    other.ensure(Need(30, "train", 600, published))
    one.extract(need, 1, listed)
    left = [block for block in EVERY if block not in published]
    assert one.passes == pytest.approx(88 * (task.space.pass_share(left) if left else 0))
    assert one.store.missing(one.source.column(need, "mid"), 600, SHARD_ROWS) == []


def test_a_listing_that_is_too_old_does_no_harm(source):
    extractor, need = Extractor(source), Need(30, "train", 600, EVERY)
    columns = columns_of(source, need)
    before = list_shards(extractor.store, columns, 600)
    extractor.ensure(need)
    passes = extractor.passes
    stored = {column: np.concatenate(extractor.store.read(column, 600)) for column in columns}
    for shard, listed in enumerate(before):
        assert extractor.extract(need, shard, listed).passes == 0
    after = list_shards(extractor.store, columns, 600)
    for path in extractor.store.root.rglob("*.arrow"):
        path.unlink()
    for shard, listed in enumerate(after):
        extractor.extract(need, shard, listed)
    assert extractor.passes == pytest.approx(2 * passes)
    assert all(np.array_equal(np.concatenate(extractor.store.read(each, 600)), stored[each]) for each in columns)


def shards(source, need):
    folder = FeatureStore(source.store).root / source.column(need, need.blocks[0])
    return sorted(tuple(map(int, path.name.split(".")[0].split("-"))) for path in folder.glob("*.arrow"))


@pytest.fixture
def latent_task(tiny_stable_diffusion, tmp_path):
    flags = ModelAndData(tiny_stable_diffusion, "digits", ("b13", "b20"), (10, 500), store=str(tmp_path / "store"))
    return set_up(flags, views=2).task


def test_an_image_is_encoded_once_for_all_timesteps_and_noise(latent_task):
    extractors = [Extractor(latent_task.source) for _ in range(2)]
    blocks = latent_task.space.block_names
    needs = [
        Need(timestep, split, 60 if split == "train" else 50, blocks, draw)
        for timestep in (10, 500)
        for split, draw in (("train", 0), ("train", 1), ("val", 0))
    ]
    for method in ("encode", "extract"):
        for extractor in extractors:
            for need in needs:
                for shard in range(num_shards(need)):
                    getattr(extractor, method)(need, shard)
    assert sum(one.num_encoded for one in extractors) == 110
    augmented = Need(10, "train", 20, blocks, view=1)
    for extractor in extractors:
        extractor.ensure(augmented)
    assert sum(one.num_encoded for one in extractors) == 130


def test_features_of_kept_latents_are_those_of_the_images(latent_task):
    need, source = Need(500, "val", 30, latent_task.space.block_names), latent_task.source
    extractor = Extractor(source)
    extractor.ensure(need)
    rows = extractor.dataset.splits["val"][:30]
    fresh = extract(extractor.backbone, extractor.dataset, rows, 500, need.blocks, source.key)
    for block, expected in fresh.items():
        stored = np.concatenate(extractor.store.read(source.column(need, block), 30))
        np.testing.assert_allclose(stored.astype(float), expected.astype(float), atol=0.01, rtol=0.01)


def test_a_model_of_pixels_has_no_latents(source):
    extractor = Extractor(source)
    extractor.ensure(Need(30, "train", 10, EVERY))
    assert extractor.num_encoded == 0 and not any(extractor.store.root.rglob("*latents*"))
