"""A full disk under the shards, images, ledger or MLflow database: small tmpfs mounts that the test makes."""

import subprocess
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from storage.ledger import Ledger
from storage.tracking import Tracker
from sweeps.cluster.pool import Worker
from sweeps.flags import ModelAndData
from sweeps.probing.extractor import Extractor
from sweeps.probing.plan import set_up
from sweeps.probing.source import Need
from tests.commands import PATIENCE_SECONDS


def mount(*args):
    return subprocess.run(["mount", *args], capture_output=True, text=True, check=False)


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a folder a disk of its own."""
    mounted = []

    def make(path, size):
        path.mkdir(parents=True)
        made = mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
        if made.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here ({made.stderr.strip()})")
        mounted.append(path)
        return path

    yield make
    for path in mounted:
        subprocess.run(["umount", "--lazy", path], check=True)


def grow(path):
    assert mount("-o", "remount,size=64m", str(path)).returncode == 0


def fill_up(path):
    filler = path / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def log(tracker, number):
    metrics = [("val_accuracy", 0.5, step, 101.0) for step in range(50)]
    tracker.log_child(f"key-{number}", str(number), {"block": "mid"}, metrics, 100.0, 101.0, stopped_early=False)


def test_a_database_that_did_not_fit_is_made_when_there_is_room(small_disk, tmp_path):
    disk = small_disk(tmp_path / "disk", "300k")
    with pytest.raises(ValueError, match=r"cannot log to MLflow at sqlite:.*No space left.*; .* the same command"):
        Tracker(f"sqlite:///{disk}/mlflow.db", "digits", "sweep", "sweep")
    assert not (disk / "mlflow.db").exists()
    grow(disk)
    assert Tracker(f"sqlite:///{disk}/mlflow.db", "digits", "sweep", "sweep").parent_id


def test_trials_that_did_not_fit_are_logged_once_when_there_is_room(small_disk, tmp_path):
    disk = small_disk(tmp_path / "disk", "3m")
    tracker = Tracker(f"sqlite:///{disk}/mlflow.db", "digits", "sweep", "sweep")
    filler = fill_up(disk)
    num_logged = 0
    with pytest.raises(ValueError, match="disk is full"):
        for num_logged in range(1000):
            log(tracker, num_logged)
    filler.unlink()
    for number in range(num_logged + 3):
        log(tracker, number)
    assert sorted(int(run.info.run_name) for run in tracker._children()) == list(range(num_logged + 3))


def test_a_result_that_does_not_fit_leaves_the_ledger_whole(small_disk, tmp_path):
    ledger = Ledger(small_disk(tmp_path / "disk", "64k"))
    ledger.put("ab", {"x": 1})
    filler = fill_up(ledger.root)
    with pytest.raises(OSError, match=r"No space left on device: .*/cd\.json"):
        ledger.put("cd", {"x": 2})
    assert (ledger.get("ab"), ledger.get("cd")) == ({"x": 1}, None)
    filler.unlink()
    ledger.put("cd", {"x": 2})
    assert ledger.get("cd") == {"x": 2}
    assert not list(ledger.root.rglob("*.part"))


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_images_that_cannot_be_kept_are_decoded_again(small_disk, tiny_model, tmp_path, trouble):
    rng = np.random.default_rng(0)
    for number in range(100):
        path = tmp_path / "images" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    flags = ModelAndData(
        tiny_model, str(tmp_path / "images"), blocks=("mid",), timesteps=(30, 100), store=str(tmp_path / "store")
    )
    source = set_up(flags).task.source
    cache = Extractor(source).images
    disk = small_disk(cache.store.root / cache.folder, "16k")
    if trouble == "read-only":
        assert mount("-o", "remount,ro", str(disk)).returncode == 0
    needs = [Need(timestep, "train", 64, ("mid",)) for timestep in (30, 100)]
    made = []
    for each in (source, replace(source, store=f"{source.store}-without", cache_images=False)):
        extractor = Extractor(each)
        *_, warnings = Worker().call(lambda extractor=extractor: [extractor.ensure(need) for need in needs])
        made.append([np.concatenate(extractor.store.read(each.column(need, "mid"), 64)) for need in needs])
        reason = "No space left on device" if trouble == "full" else "Read-only file system"
        assert [reason in warning and str(disk) in warning for warning in warnings] == [True] * each.cache_images
    assert np.array_equal(*made)
    assert not list(disk.rglob("*.arrow")) and not list(disk.rglob("*.part"))


def shards(store):
    return {path: path.stat().st_mtime_ns for path in store.rglob("*.arrow")}


@pytest.mark.slow
def test_with_room_again_the_same_command_goes_on(begin, refused, small_disk, tmp_path):
    store = small_disk(tmp_path / "out" / "store", "300k")
    message = refused(cwd=tmp_path)
    assert "split=" in message and "disk is full; make room, and the same command goes on" in message
    whole = shards(store)
    assert whole and not any(store.rglob("*.part"))

    grow(store)
    damaged, kept = sorted(whole)[0], sorted(whole)[1:]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    process = begin(cwd=tmp_path)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0 and "answer" in out, err
    assert err.replace("\n", "").count(f"damaged shard {damaged}") == 1  # though an actor found it
    assert all(shards(store)[path] == whole[path] for path in kept)
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "digits", "unused", "unused")
    children = tracker.client.search_runs([tracker.experiment_id], "tags.mlflow.parentRunId != ''")
    assert sorted(child.info.status for child in children) == ["FINISHED"] * 4
