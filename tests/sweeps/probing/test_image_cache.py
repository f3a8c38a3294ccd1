"""Decoded images beside the store: the same features, each file decoded once, no trouble if they do not fit."""

import multiprocessing
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ddae.units import size
from storage.feature_store import FeatureStore
from sweeps.cluster.pool import Worker
from sweeps.flags import ModelAndData
from sweeps.probing import cost, image_cache
from sweeps.probing.extractor import Extractor
from sweeps.probing.plan import set_up
from sweeps.probing.source import Need
from tests.commands import PATIENCE_SECONDS, PRELOADED

BLOCKS = ("mid", "up.0.0")
NEEDS = [
    Need(timestep, split, num_images, BLOCKS, draw, view)
    for split, num_images in (("train", 8), ("train", 24), ("val", 8))
    for timestep, draw, view in ((30, 0, 0), (100, 0, 0), (100, 1, 0), (100, 0, 1))
]
NUM_IMAGES = 24 + 8


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(100):
        path = tmp_path / "images" / f"class{number % 2}" / f"{number:03}.{('jpg', 'png')[number % 3 == 0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + number % 5, 24, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture
def open_setup(tiny_model, folder, tmp_path):
    def open_setup(dataset=str(folder), **flags):
        flags = {"store": str(tmp_path / "store"), "blocks": BLOCKS, "timesteps": (30, 100)} | flags
        return set_up(ModelAndData(tiny_model, dataset, **flags), heads=("linear",))

    return open_setup


@pytest.fixture
def source(open_setup):
    return open_setup().task.source


def features(source):
    extractor = Extractor(source)
    for need in NEEDS:
        extractor.ensure(need)
    store = FeatureStore(source.store)
    columns = [(source.column(need, block), need.num_images) for need in NEEDS for block in BLOCKS]
    return extractor, [np.concatenate(store.read(*column)) for column in columns]


def kept(root):
    return sorted(root.rglob("images-*/**/*.arrow"))


def same(ones, others):
    return all(np.array_equal(one, other) for one, other in zip(ones, others, strict=True))


@pytest.fixture
def expected(open_setup, tmp_path):
    """The features, made without the cache."""
    extractor, made = features(open_setup(store=str(tmp_path / "without"), cache_images=False).task.source)
    assert extractor.images is None and kept(tmp_path / "without") == []
    return made


def test_features_are_the_same_and_a_file_is_decoded_once(source, expected):
    one, made = features(source)
    assert same(made, expected)
    assert one.images.num_decoded == NUM_IMAGES
    for path in one.store.root.rglob("t=*/**/*.arrow"):
        path.unlink()
    other, again = features(source)
    assert same(again, expected) and other.images.num_decoded == 0


def test_rows_in_any_order_are_read(source):
    extractor = Extractor(source)
    cache, dataset = extractor.images, extractor.dataset
    cache.fill("train", 0, 30)
    train, val, test = (dataset.splits[split] for split in ("train", "val", "test"))
    for rows in (
        train[:30],
        train[5:9],
        train[25:40],
        train[30:],
        train[::-1],
        val[:3],
        test,
        np.r_[train[:2], val[:2]],
    ):
        assert np.array_equal(dataset.images.read(rows), cache.decode(rows))


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "gone", "another's"])
def test_damage_is_found_and_made_again(source, expected, damage):
    first, _ = features(source)
    for path in first.store.root.rglob("t=*/**/*.arrow"):
        path.unlink()
    [path, other, *_] = kept(first.store.root)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    whole = {"flip": data, "truncate": data[: len(data) // 2], "empty": b"", "another's": other.read_bytes()}
    path.write_bytes(whole[damage]) if damage in whole else path.unlink()
    (again, made), _, warnings = Worker().call(features, source)
    assert same(made, expected)
    assert 0 < again.images.num_decoded < NUM_IMAGES
    assert [str(path) in warning for warning in warnings] == [True] * (damage in whole)


def test_changed_pictures_are_other_pictures(open_setup, folder, expected):
    before, _ = features(open_setup().task.source)
    for path in (folder / "class0").glob("*.png"):
        Image.open(path).rotate(180).save(path)
    after, made = features(open_setup().task.source)
    assert after.images.folder != before.images.folder and after.images.num_decoded == NUM_IMAGES
    assert not same(made, expected)


def decode_all(source, together, decoded):
    extractor = Extractor(source)
    together.wait()
    for need in NEEDS:
        extractor.ensure(need)
    decoded.put(extractor.images.num_decoded)


@pytest.mark.slow
def test_of_four_processes_one_decodes(source, expected):
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload(PRELOADED)
    together, decoded = forked.Barrier(4), forked.Queue()
    sources = [replace(source, key=replace(source.key, noise_seed=seed)) for seed in range(4)]  # who wait for no passes
    processes = [forked.Process(target=decode_all, args=(each, together, decoded)) for each in sources]
    for process in processes:
        process.start()
    total = sum(decoded.get(timeout=PATIENCE_SECONDS) for _ in processes)
    for process in processes:
        process.join(PATIENCE_SECONDS)
    assert [process.exitcode for process in processes] == [0] * 4
    assert total == NUM_IMAGES
    assert same(features(source)[1], expected)


@pytest.mark.parametrize("trouble", ["in the way", "no room"])
def test_where_images_cannot_be_kept_one_line_says_so(source, expected, trouble, monkeypatch):
    cache = Extractor(source).images
    if trouble == "in the way":
        (cache.store.root / cache.folder).parent.mkdir(parents=True)
        (cache.store.root / cache.folder).touch()
    else:
        monkeypatch.setattr(image_cache, "LEFT_BYTES", shutil.disk_usage("/").total)
    (extractor, made), _, warnings = Worker().call(features, source)
    assert same(made, expected)
    assert extractor.images.num_decoded >= len(NEEDS) * 8
    [warning] = warnings
    assert "\n" not in warning and str(cache.folder) in warning and "--no-cache-images" in warning
    assert kept(cache.store.root) == []


def test_a_picture_that_went_away_is_told_as_before(source, folder):
    extractor = Extractor(source)
    shutil.rmtree(folder / "class1")
    with pytest.raises(ValueError, match=r"class1.* cannot be read as an image"):
        extractor.ensure(NEEDS[0])


def test_what_costs_nothing_to_read_is_not_kept(open_setup, tiny_stable_diffusion, folder, tmp_path):
    assert not open_setup(dataset="digits").task.source.cache_images
    flags = ModelAndData(tiny_stable_diffusion, str(folder), store=str(tmp_path / "store"))
    assert not set_up(flags).task.source.cache_images


def test_test_images_are_read_once_and_not_kept(source):
    extractor = Extractor(source)
    extractor.ensure(Need(30, "test", 10, BLOCKS))
    assert kept(extractor.store.root) == []


def test_a_store_at_an_address_has_them_on_each_machine(open_setup, bucket, expected, monkeypatch, tmp_path):
    source = open_setup(store=bucket.address).task.source
    for name in ("one", "two"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        extractor = Extractor(source)
        for need in NEEDS if name == "one" else [replace(need, draw=2 + need.draw) for need in NEEDS]:
            extractor.ensure(need)
        assert extractor.images.num_decoded == NUM_IMAGES
        assert kept(tmp_path / name)
    assert [path for path in bucket.asked("PUT") if "images-" in path] == []


def test_a_dry_run_counts_them(open_setup):
    for cached in (True, False):
        setup = open_setup(cache_images=cached)
        text = cost.estimate(*setup, 1, 2)
        assert (f"at most {size(3 * 16 * 16 * (64 + 16))} beside them; --no-cache-images" in text) is cached
