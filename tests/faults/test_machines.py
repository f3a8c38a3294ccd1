"""Workers on Ray's cluster of several nodes, of which one leaves and one joins."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from storage.feature_store import FeatureStore
from sweeps.cluster.pool import Pool
from sweeps.flags import ModelAndData
from sweeps.probing.filling import Filling
from sweeps.probing.source import Need
from sweeps.probing.sweep import set_up
from tests.commands import PATIENCE_SECONDS
from tests.faults.sweeps import kill_one
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
