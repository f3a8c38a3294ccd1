"""Damaged shards and results are found, named in one warning, made again, and never read."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from storage.feature_store import FeatureStore
from storage.ledger import Ledger
from sweeps.cluster.pool import Worker
from sweeps.flags import ModelAndData
from sweeps.probing.extractor import SHARD_ROWS, Extractor
from sweeps.probing.plan import set_up
from sweeps.probing.source import Need

COLUMN = "digits/abc/t=60/split=train/block=mid"


@pytest.fixture
def rows():
    return np.random.default_rng(0).standard_normal((40, 16)).astype(np.float16)


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path)


def only_shard(store, column=COLUMN):
    [path] = (store.root / column).glob("*.arrow")
    return path


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_a_flipped_bit_of_a_shard_is_found_wherever_it_is(store, rows, caplog):
    store.write(COLUMN, 0, rows)
    path = only_shard(store)
    places = np.random.default_rng(1).choice(8 * path.stat().st_size, 200, replace=False)
    for bit in places:
        flip(path, bit)
        caplog.clear()
        assert store.missing(COLUMN, len(rows)) == [(0, len(rows))]
        assert [str(path) in message for message in caplog.messages] == [True]
        with pytest.raises(LookupError):
            store.read(COLUMN, len(rows))
        store.write(COLUMN, 0, rows)
    assert np.array_equal(np.concatenate(store.read(COLUMN, len(rows))), rows)


def test_a_flipped_bit_of_a_result_is_found_or_harmless(tmp_path, caplog):
    ledger, key = Ledger(tmp_path), "ab" * 16
    record = {"val_accuracy": 0.8712, "fit_seconds": 1.5e-07, "cell": {"block": "mid"}, "bits": "00ff"}
    ledger.put(key, record)
    [path] = tmp_path.rglob("*.json")
    num_found = 0
    for bit in np.random.default_rng(2).choice(8 * path.stat().st_size, 100, replace=False):
        flip(path, bit)
        caplog.clear()
        found = ledger.get(key)
        assert found in (None, record)
        assert [str(path) in message for message in caplog.messages] == [True] * (found is None)
        num_found += found is None
        ledger.put(key, record)
    assert num_found > 90


def test_a_result_of_another_key_is_not_taken(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.put("ab" * 16, {"val_accuracy": 1.0})
    [path] = tmp_path.rglob("*.json")
    path.rename(path.with_name("ab" + "cd" * 15 + ".json"))
    assert ledger.get("ab" + "cd" * 15) is None


@pytest.mark.parametrize(
    "taken", ["digits/abc/t=60/split=train/block=up.0.0", "digits/an-older-version/t=60/split=train/block=mid"]
)
def test_a_sound_shard_of_another_column_is_not_read(store, rows, taken, caplog):
    store.write(taken, 0, rows)
    (store.root / COLUMN).mkdir(parents=True)
    path = shutil.copy(only_shard(store, taken), store.root / COLUMN)
    assert store.missing(COLUMN, 40) == [(0, 40)]
    assert [str(path) in message for message in caplog.messages] == [True]


def test_a_shard_that_claims_other_rows_is_not_read(store, rows):
    store.write(COLUMN, 0, rows)
    path = only_shard(store)
    path.rename(path.with_name(path.name.replace("00000000-00000040", "00000040-00000080")))
    assert store.missing(COLUMN, 80) == [(0, 80)]


def test_what_is_no_shard_is_left_alone(store, rows):
    store.write(COLUMN, 0, rows)
    copy = shutil.copy(only_shard(store), store.root / COLUMN / "0 (copy).arrow")
    assert store.missing(COLUMN, 40) == []
    assert copy.exists()


@pytest.fixture
def task(tiny_model, tmp_path):
    flags = ModelAndData(tiny_model, "digits", blocks=("mid", "up.0.0"), timesteps=(30,), store=str(tmp_path / "store"))
    return set_up(flags, poolings=(1, 2), heads=("linear",)).task


def test_an_extractor_makes_the_damaged_rows_again_and_no_others(task):
    source, store, need = task.source, FeatureStore(task.source.store), Need(30, "train", 1100, ("mid", "up.0.0"))
    older = replace(source, key=replace(source.key, version=source.key.version - 1))
    for each in (older, source):
        Extractor(each).ensure(need)
    columns = [source.column(need, block) for block in need.blocks]
    before = [np.concatenate(store.read(column, 1100)) for column in columns]
    mid, up = (sorted((store.root / column).glob("*.arrow")) for column in columns)
    _, _, other = sorted((store.root / older.column(need, "up.0.0")).glob("*.arrow"))
    stamps = {path: path.stat().st_mtime_ns for path in mid + up}
    flip(mid[0], 12345)
    up[0].write_bytes(up[0].read_bytes()[:5000])
    mid[1].write_bytes(b"")
    unnamed = mid[2].rename(mid[2].with_name("00001024-00001100.arrow"))
    up[2].unlink()
    version = shutil.copy(other, up[2].parent)

    extractor, worker = Extractor(source), Worker()
    *_, warnings = worker.call(extractor.ensure, need)

    damaged = [mid[0], up[0], mid[1], unnamed, version]
    assert [sum(str(path) in warning for warning in warnings) for path in damaged] == [1] * len(warnings)
    assert worker.call(extractor.ensure, need)[-1] == []
    passes = 588 * task.space.pass_share(need.blocks) + SHARD_ROWS * task.space.pass_share(("mid",))
    assert extractor.passes == pytest.approx(passes)
    after = [np.concatenate(store.read(column, 1100)) for column in columns]
    assert all(np.array_equal(a, b) for a, b in zip(after, before, strict=True))
    assert [path for path in mid + up if path.stat().st_mtime_ns == stamps[path]] == [up[1]]
