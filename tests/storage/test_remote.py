"""Stores at addresses, against a real S3 server. A node is a cache folder of its own."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow.dataset
import pytest
from pyarrow import fs

from storage.feature_store import FeatureStore
from storage.ledger import Ledger
from storage.remote import Remote
from tests.commands import PATIENCE_SECONDS

COLUMN = "digits/abc/t=60/split=train/block=up.1.0"
KEY = "ab" * 16


@pytest.fixture
def rows():
    return np.random.default_rng(0).standard_normal((1000, 48)).astype(np.float16)


def write(address, rows):
    store = FeatureStore(address)
    for start in range(0, len(rows), 300):
        store.write(COLUMN, start, rows[start : start + 300])
    return store


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def shards(store):
    return sorted((store.root / COLUMN).glob("*.arrow"))


def damage(store, name):
    """A flipped bit where all machines read."""
    path = store.root / "damaged"
    path.write_bytes(store.remote.read(name))
    flip(path)
    store.remote.put(name, path)


def test_what_one_machine_wrote_another_reads(address, rows, node):
    node("one")
    Remote(address).check()
    Remote(address).check_writable()
    store, ledger = write(address, rows), Ledger(f"{address}/ledger")
    store.describe("digits/abc", {"dataset": "digits"})
    store.describe_rows("digits/abc", "train", {"image": np.arange(1000)})
    ledger.put(KEY, {"val_accuracy": 0.5})

    node("two")
    other = FeatureStore(address)
    assert other.root != store.root and not other.root.exists()
    assert np.array_equal(np.concatenate(other.read(COLUMN, 1000)), rows)
    assert other.missing(COLUMN, 1100) == [(1000, 1100)]
    assert [path.name for path in shards(other)] == [path.name for path in shards(store)]
    assert Ledger(f"{address}/ledger").get(KEY) == {"val_accuracy": 0.5}
    assert Ledger(f"{address}/ledger").get("cd" * 16) is None
    assert b"digits" in other.remote.read("digits/abc/_key.json").to_pybytes()
    assert other.remote.names("digits/abc") == {"_key.json", "_rows-train.parquet"}
    with pytest.raises(LookupError, match=r"lacks row 1000 in .*://.*; 1100 were asked for"):
        other.read(COLUMN, 1100)
    assert not any(other.root.rglob(".*"))


def test_other_programs_read_the_bucket(bucket, rows):
    write(bucket.address, rows)
    filesystem, path = fs.FileSystem.from_uri(bucket.address)
    data = pyarrow.dataset.dataset(path, filesystem=filesystem, format="ipc", partitioning="hive")
    table = data.to_table()
    assert table["block"].unique().to_pylist() == ["up.1.0"]
    assert np.array_equal(np.sort(np.stack(table["features"].to_numpy()), axis=0), np.sort(rows, axis=0))


def test_requests(bucket, rows, node):
    store = write(bucket.address, rows)
    assert Counter(method for method, _ in bucket.seen) == {"PUT": 4}
    bucket.seen.clear()
    store.read(COLUMN, 1000)
    assert bucket.seen == []

    node("two")
    other = FeatureStore(bucket.address)
    other.read(COLUMN, 700, 310)
    assert len(bucket.asked("GET", ".arrow")) == len(bucket.asked("HEAD")) == 2
    assert len(bucket.asked("GET")) == 3
    bucket.seen.clear()
    FeatureStore(bucket.address).read(COLUMN, 700, 310)
    assert bucket.seen == []
    other.missing(COLUMN, 700, 310)
    assert len(bucket.seen) == 1
    ledger = Ledger(bucket.address)
    ledger.put(KEY, {"x": 1})
    assert ledger.get(KEY) == {"x": 1}
    assert [method for method, _ in bucket.seen] == ["GET", "PUT"]


def test_of_many_processes_one_fetches(bucket, rows, node):
    write(bucket.address, rows)
    bucket.seen.clear()
    node("two")
    code = f"from storage.feature_store import FeatureStore; FeatureStore({bucket.address!r}).read({COLUMN!r}, 1000)"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [process.wait(PATIENCE_SECONDS) for process in processes] == [0] * 4
    fetched = Counter(bucket.asked("GET", ".arrow"))
    assert len(fetched) == 4 and set(fetched.values()) == {1}


def test_damage_on_this_machine_is_mended_from_the_bucket(bucket, rows, caplog):
    store, ledger = write(bucket.address, rows), Ledger(f"{bucket.address}/ledger")
    ledger.put(KEY, {"x": 1})
    [record] = ledger.root.rglob("*.json")
    for path in (shards(store)[1], record):
        flip(path)
    assert store.missing(COLUMN, 1000) == []
    assert np.array_equal(np.concatenate(store.read(COLUMN, 1000)), rows)
    assert ledger.get(KEY) == {"x": 1}
    assert ["shard" in message or "result" in message for message in caplog.messages] == [True] * 2
    assert bucket.asked("DELETE") == []


def test_damage_in_the_bucket_is_named_and_mended(bucket, rows, node, caplog):
    store, ledger = write(bucket.address, rows), Ledger(f"{bucket.address}/ledger")
    ledger.put(KEY, {"x": 1})
    name = shards(store)[1].name
    damage(store, f"{COLUMN}/{name}")
    damage(ledger, f"ab/{KEY}.json")

    node("two")
    other, other_ledger = FeatureStore(bucket.address), Ledger(f"{bucket.address}/ledger")
    assert other.missing(COLUMN, 1000) == [(300, 600)]
    assert other_ledger.get(KEY) is None
    assert [bucket.address in message for message in caplog.messages] == [True] * 2
    assert name not in other.remote.names(COLUMN) and other_ledger.remote.names("ab") == set()

    node("one")
    assert store.missing(COLUMN, 1000) == []  # and puts what it still has there
    node("two")
    assert other.missing(COLUMN, 1000) == []
    assert np.array_equal(np.concatenate(other.read(COLUMN, 1000)), rows)
    assert len(caplog.messages) == 2


def test_a_lost_answer_is_asked_for_again(bucket, rows, node):
    bucket.drop = 1
    write(bucket.address, rows)
    node("two")
    bucket.drop = 1
    assert np.array_equal(np.concatenate(FeatureStore(bucket.address).read(COLUMN, 1000)), rows)


def test_a_server_that_is_away_is_one_line_and_later_all_goes_on(bucket, rows, node):
    store, ledger = FeatureStore(bucket.address), Ledger(f"{bucket.address}/ledger")
    store.write(COLUMN, 0, rows[:300])
    bucket.close()
    away = [
        lambda: store.write(COLUMN, 300, rows[300:]),
        lambda: store.missing(COLUMN, 1000),
        lambda: store.read(COLUMN, 1000),
        lambda: ledger.put(KEY, {"x": 1}),
        lambda: ledger.get(KEY),
    ]
    for call in away:
        with pytest.raises(OSError, match=r"^store='s3://.*; what was finished is kept, and the same command goes on$"):
            call()
    assert np.array_equal(store.read(COLUMN, 300)[0], rows[:300])
    assert [path for path in store.root.parent.rglob("*") if path.suffix in (".part", ".fetched")] == []
    bucket.open()
    assert ledger.get(KEY) is None
    assert store.missing(COLUMN, 1000) == [(300, 1000)]
    for call in away:
        call()
    node("two")
    assert np.array_equal(np.concatenate(FeatureStore(bucket.address).read(COLUMN, 1000)), rows)


def test_a_move_that_fails_leaves_nothing(tmp_path, rows, node):
    node("one")
    (tmp_path / "there" / "ab" / f"{KEY}.json" / "in the way").mkdir(parents=True)
    ledger = Ledger(f"file://{tmp_path}/there")
    with pytest.raises(OSError, match=r"^store='file://.*; what was finished is kept"):
        ledger.put(KEY, {"x": 1})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["a'b", "日本", "🐈", "new\nline", "%s {} $HOME `x`", " ", "...", "a+b&c?d#e"])
def test_odd_names(bucket, rows, node, name):
    FeatureStore(bucket.address).write(f"{name}/block=mid", 0, rows)
    node("two")
    [view] = FeatureStore(bucket.address).read(f"{name}/block=mid", 1000)
    assert np.array_equal(view, rows)


def test_no_two_stores_share_a_folder(monkeypatch):
    def cache(address):
        return Remote(address).cache

    same = {cache("s3://a/b"), cache("s3://a/b/"), cache("s3://a/b?")}
    others = {cache("s3://a/c"), cache("s3://a/b/ledger"), cache("gs://a/b"), cache("s3://a/b?endpoint_override=h:1")}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert len(same) == 1 and len(others | same | {cache("s3://a/b")}) == 6
    assert cache("gs://a/b") in others


def test_what_follows_a_query_is_below_the_address(bucket, monkeypatch):
    endpoint = monkeypatch.delenv("AWS_ENDPOINT_URL") or f"http://127.0.0.1:{bucket.port}"
    Ledger(f"{bucket.address}?endpoint_override={endpoint}/ledger").put(KEY, {"x": 1})
    Ledger(f"{bucket.address}?endpoint_override=127.0.0.1:{bucket.port}&scheme=http/ledger").put(KEY, {"x": 1})
    assert bucket.asked("PUT") == [f"/{bucket.prefix}/ledger/ab/{KEY}.json"] * 2


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("s4://bucket/features", "Protocol not known: s4"),
        ("oss://bucket/features", "ossfs"),
        ("s3://nowhere/features", "there is no bucket 'nowhere'"),
        ("s3://", "there is no bucket ''"),
        ("s3://features/x?pathstyle=true", "Unexpected query parameter"),
        ("s3://features/x?endpoint_override=127.0.0.1:1&scheme=http", "Could not connect"),
        ("/dev/null://x", "Protocol not known"),
    ],
)
def test_what_cannot_be_used_is_one_line(bucket, address, reason):
    with pytest.raises(ValueError, match=rf"^[^\n]*{reason}[^\n]*give a folder, or an address as s3://"):
        Remote(address).check()


def test_who_is_not_let_in_is_told(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ValueError, match=r"SIGNATURE_DOES_NOT_MATCH.*AWS_SECRET_ACCESS_KEY"):
        Remote(bucket.address).check()
    with pytest.raises(ValueError, match=r"SIGNATURE_DOES_NOT_MATCH.*AWS_SECRET_ACCESS_KEY"):
        Remote(bucket.address).check_writable()
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"ACCESS_DENIED.*AWS_SECRET_ACCESS_KEY"):
        Remote(f"{bucket.address}/x").check()


@pytest.mark.parametrize(
    "address",
    [
        "s3://me:hush@bucket/x",
        "s3://me:hu/sh@bucket/x",
        "sftp://me:hush@host/x",
        "s3://bucket/x?secret_key=hush",
        "abfs://c@a.dfs.core.windows.net/x?sig=hush",
    ],
)
def test_no_secret_stands_in_an_address(address):
    with pytest.raises(ValueError, match=r"holds a password or a key.*leave it out") as refusal:
        FeatureStore(address)
    assert "hu" not in str(refusal.value)
