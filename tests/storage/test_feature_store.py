import errno
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest

from storage.feature_store import FeatureStore
from tests.commands import PATIENCE_SECONDS

COLUMN = "digits/abc/t=60/split=train/block=up.1.0"


@pytest.fixture
def rows():
    return np.random.default_rng(0).standard_normal((1000, 48)).astype(np.float16)


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path)


def shard(store):
    return next(iter(sorted((store.root / COLUMN).glob("*.arrow"))))


def test_prefixes_grow_and_read_back(store, rows):
    assert store.missing(COLUMN, 300) == [(0, 300)]
    store.write(COLUMN, 0, rows[:300])
    assert store.missing(COLUMN, 300) == []
    assert store.missing(COLUMN, 1000) == [(300, 1000)]
    store.write(COLUMN, 300, rows[300:])
    for num in (1, 300, 301, 1000):
        assert np.array_equal(np.concatenate(store.read(COLUMN, num)), rows[:num])


def test_gaps_and_overlaps(store, rows):
    store.write(COLUMN, 100, rows[100:200])
    store.write(COLUMN, 150, rows[150:400])
    assert store.missing(COLUMN, 500) == [(0, 100), (400, 500)]
    store.write(COLUMN, 0, rows[:100])
    store.write(COLUMN, 400, rows[400:])
    assert np.array_equal(np.concatenate(store.read(COLUMN, 1000)), rows)


def test_reading_what_is_not_there(store, rows):
    store.write(COLUMN, 0, rows[:300])
    with pytest.raises(LookupError, match=r"lacks row 300 .*; 301 were asked for"):
        store.read(COLUMN, 301)


def test_columns_are_read_only_views_of_the_memory_map(store, rows):
    store.write(COLUMN, 0, rows)
    before = pa.total_allocated_bytes()
    [view] = store.read(COLUMN, 1000)
    assert pa.total_allocated_bytes() == before
    assert not view.flags.owndata and not view.flags.writeable
    [again] = store.read(COLUMN, 500)
    assert again.ctypes.data == view.ctypes.data


def test_many_rows_are_several_shards(store, monkeypatch, rows):
    monkeypatch.setattr("storage.feature_store.MAX_SHARD_ROWS", 400)
    store.write(COLUMN, 0, rows)
    assert [len(view) for view in store.read(COLUMN, 1000)] == [400, 400, 200]


def test_a_failing_writer_leaves_nothing(store, rows, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        store.write(COLUMN, 0, rows)
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("bad", [np.zeros((2, 3), np.float32), np.zeros(3, np.float16), np.zeros((0, 3), np.float16)])
def test_only_float16_matrices(store, bad):
    with pytest.raises(ValueError, match="takes float16"):
        store.write(COLUMN, 0, bad)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_shard_is_named_deleted_and_missing(store, rows, damage, caplog):
    store.write(COLUMN, 0, rows)
    path = shard(store)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"flip": data, "truncate": data[: len(data) // 2], "empty": b""}[damage])
    assert FeatureStore(store.root).missing(COLUMN, 1000) == [(0, 1000)]
    assert str(path) in caplog.text
    assert not path.exists()


def test_the_machine_s_trouble_is_not_the_shard_s(store, rows, monkeypatch):
    store.write(COLUMN, 0, rows)

    def no_handles(path):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("pyarrow.memory_map", no_handles)
    with pytest.raises(OSError, match="Too many open files"):
        store.missing(COLUMN, 1000)
    assert shard(store).exists()


def test_processes_that_write_the_same_shard_leave_one(store, rows, tmp_path):
    np.save(tmp_path / "rows.npy", rows)
    code = (
        "import numpy, sys; from storage.feature_store import FeatureStore; "
        f"FeatureStore(sys.argv[1]).write({COLUMN!r}, 0, numpy.load(sys.argv[1] + '/rows.npy'))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(PATIENCE_SECONDS) for process in processes] == [0, 0, 0]
    assert [path.name for path in (store.root / COLUMN).iterdir()] == [shard(store).name]
    assert np.array_equal(store.read(COLUMN, 1000)[0], rows)


class TestOtherReaders:
    @pytest.fixture(autouse=True)
    def written(self, store, rows):
        store.write(COLUMN, 0, rows)

    def test_pyarrow_dataset(self, store, rows):
        folder = store.root / "digits" / "abc"
        store.describe("digits/abc", {"dataset": "digits"})
        store.describe_rows("digits/abc", "train", {"image": np.arange(1000), "label": np.arange(1000) % 10})
        data = pyarrow.dataset.dataset(folder, format="ipc", partitioning="hive")
        table = data.to_table(filter=pyarrow.dataset.field("block") == "up.1.0")
        assert np.array_equal(np.stack(table["features"].to_numpy()), rows)
        assert table["t"].unique().to_pylist() == [60]
        assert pyarrow.parquet.read_table(folder / "_rows-train.parquet")["label"][13].as_py() == 3

    def test_pandas(self, store, rows):
        pandas = pytest.importorskip("pandas")
        frame = pandas.read_feather(shard(store))
        assert np.array_equal(np.stack(frame["features"]), rows)

    def test_polars(self, store, rows):
        polars = pytest.importorskip("polars")
        frame = polars.read_ipc(shard(store))
        assert np.array_equal(frame["features"].to_numpy(), rows)

    def test_hugging_face_datasets(self, store, rows):
        datasets = pytest.importorskip("datasets")
        data = datasets.load_dataset("arrow", data_files=str(shard(store)), split="train", cache_dir=store.root / "hf")
        assert np.array_equal(np.array(data.with_format("numpy")["features"], dtype=np.float16), rows)

    def test_duckdb_through_parquet(self, store, rows):
        duckdb = pytest.importorskip("duckdb")
        path = store.root / "export.parquet"
        store.export_parquet(COLUMN, 500, path, {"label": np.arange(1000) % 10})
        found = duckdb.sql(f"select label, features from '{path}' where label = 3").fetchall()
        assert len(found) == 50
        assert np.array_equal(np.array([features for _, features in found], dtype=np.float16), rows[:500][3::10])
