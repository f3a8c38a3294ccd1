"""Workers on Ray's cluster of several nodes, of which one leaves and one joins."""

import json
import sys
import time
import uuid
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from storage.feature_store import FeatureStore
from sweeps.cluster.given import FOR_FITS
from sweeps.cluster.pool import Pool
from sweeps.cluster.tune import Run, run_trials
from sweeps.flags import ModelAndData
from sweeps.probing.filling import Filling
from sweeps.probing.plan import set_up
from sweeps.probing.source import Need
from sweeps.search.halving import HalvingSearch
from sweeps.search.task import Resources
from tests.commands import PATIENCE_SECONDS
from tests.faults.sweeps import kill_one
from tests.tasks import ToyTask
from tests.workers import forked_workers

NODE = {"num_cpus": 1, "object_store_memory": 2**27}
NEED = Need(30, "train", 1100, ("mid", "up.0.0"))


@pytest.fixture
def cluster(monkeypatch):
    with forked_workers() as python:
        monkeypatch.setattr(sys, "executable", str(python))
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
        logs = Path(cluster.head_node.get_logs_dir_path())
        yield cluster
        ray.shutdown()
        cluster.shutdown()
        for log in logs.glob("*.*"):  # shown where the test fails
            print(log.name, log.read_text(errors="replace")[-2000:], sep="\n")


@pytest.fixture
def task(tiny_model, tmp_path):
    flags = ModelAndData(tiny_model, "digits", blocks=NEED.blocks, timesteps=(30,), store=str(tmp_path / "store"))
    return set_up(flags, heads=("linear",)).task


def test_workers_follow_the_machines(cluster, task):
    leaves = cluster.add_node(**NODE)
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    heard, store, column = [], FeatureStore(task.source.store), task.source.column(NEED, "mid")
    with Pool() as pool:
        filling = Filling(task.source, pool, heard.append)
        pool.run(filling.fill([NEED])).result(PATIENCE_SECONDS)
        assert sum(extracted.passes for extracted in heard) == pytest.approx(task.space.forward_passes([NEED]))
        expected = np.concatenate(store.read(column, 1100))

        for path in store.root.rglob("*.arrow"):
            path.unlink()
        pool.run(filling.fill([NEED], lost=True))
        screened = pool.run(filling.screen([NEED], dict.fromkeys(NEED.blocks, (1,))))
        assert kill_one("ray::Worker")
        cluster.remove_node(leaves, allow_graceful=False)
        time.sleep(1)
        assert not screened.done()
        cluster.add_node(**NODE)
        right = screened.result(PATIENCE_SECONDS)
        assert [need.blocks for need in right] == [("mid",), ("up.0.0",)]
        assert np.array_equal(np.concatenate(store.read(column, 1100)), expected)


@dataclass(frozen=True)
class OnGpus(ToyTask):
    """Every cell holds a quarter of a GPU, until others are held on another machine too."""

    notes: str = ""

    def resources(self, cell, rung):
        return Resources(num_cpus=0.1, num_gpus=0.25)

    def run(self, cells, rung, checkpoints):
        for cell in cells:
            hold_a_gpu(self.notes, num_machines=2)
            yield self.result(cell, rung)


def hold_a_gpu(folder, num_machines=1, beside=None):
    """Note where and when; until so many machines are noted, there or beside."""
    held, note, began = ray.get_runtime_context(), Path(folder, uuid.uuid4().hex), time.time()
    where = {"node": held.get_node_id(), "gpus": held.get_accelerator_ids()["GPU"]}
    note.write_text(json.dumps(where))
    time.sleep(0.3)
    while (
        len({one["node"] for one in noted(beside or folder)}) < num_machines and time.time() < began + PATIENCE_SECONDS
    ):
        time.sleep(0.3)
    note.write_text(json.dumps({**where, "times": [began, time.time()]}))


def noted(folder):
    texts = [path.read_text() for path in Path(folder).iterdir()]
    return [json.loads(text) for text in texts if text]


def most_at_once(times):
    """How many of the intervals cover one moment."""
    return max(sum(start <= moment < end for start, end in times) for moment, _ in times)


@pytest.mark.slow
def test_fits_and_extraction_share_the_gpus(cluster, tmp_path):
    """On two machines with a GPU, as Ray is told, and a head that has none."""
    for _ in range(2):
        cluster.add_node(**{**NODE, "num_cpus": 2, "num_gpus": 1})
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    folders = [tmp_path / "extraction", tmp_path / "fits"]
    for folder in folders:
        folder.mkdir()
    there = Future()
    there.set_result(None)
    search = HalvingSearch(OnGpus(notes=str(folders[1])), num_trials=24, round_size=24)
    with Pool("cuda", 1.0, FOR_FITS) as pool:
        began = time.monotonic()
        while pool.num_ready < 2 and time.monotonic() < began + PATIENCE_SECONDS:
            time.sleep(0.1)
        shards = [pool.submit(hold_a_gpu, folders[0]) for _ in range(8)]
        shards += [pool.submit(hold_a_gpu, folders[0], 2, folders[1]) for _ in range(2)]  # until fits are held beside
        run_trials([Run(search, str(tmp_path / "store"), lambda fit, lost: there)], [], lambda: None)
        for shard in shards:
            shard.result(PATIENCE_SECONDS)
    extraction, fits = map(noted, folders)
    assert all(one["times"][1] - one["times"][0] < PATIENCE_SECONDS for one in (*extraction, *fits))
    assert search.ended and len(fits) >= 24 and len(extraction) == 10
    for work, most in ((extraction, 1), (fits, 2)):
        by_node = {node: [one["times"] for one in work if one["node"] == node] for node in {o["node"] for o in work}}
        assert len(by_node) == 2
        assert all(len(one["gpus"]) == 1 for one in work)
        assert all(most_at_once(times) <= most for times in by_node.values())
