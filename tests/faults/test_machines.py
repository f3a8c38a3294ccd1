"""Extractors on Ray's cluster of several nodes, of which one leaves and one joins."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from storage.feature_store import FeatureStore
from sweeps.cli import ModelAndData
from sweeps.tuning.extraction import Extraction
from sweeps.tuning.plan import make_plan
from sweeps.tuning.space import Need
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
def plan(tiny_model, tmp_path):
    flags = ModelAndData(tiny_model, "digits", blocks=NEED.blocks, timesteps=(30,), store=str(tmp_path / "store"))
    return make_plan(flags, heads=("linear",))[0]


def test_extractors_follow_the_machines(cluster, plan):
    leaves = cluster.add_node(**NODE)
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    heard = []
    extraction = Extraction(plan, heard.append)
    try:
        extraction.run(extraction.fill([NEED])).result(PATIENCE_SECONDS)
        assert sum(work.passes for work in heard) == pytest.approx(plan.space.forward_passes([NEED]))
        expected = np.concatenate(FeatureStore(plan.store).read(plan.column(30, "train", "mid"), 1100))

        for path in FeatureStore(plan.store).root.rglob("*.arrow"):
            path.unlink()
        extraction.forget([NEED])
        looks = extraction.run(extraction.looks([NEED]))
        assert kill_one("ray::Extractor")
        cluster.remove_node(leaves, allow_graceful=False)
        time.sleep(1)
        assert not looks.done()
        cluster.add_node(**NODE)
        right = looks.result(PATIENCE_SECONDS)
        assert [need.blocks for need in right] == [("mid",), ("up.0.0",)]
        again = np.concatenate(FeatureStore(plan.store).read(plan.column(30, "train", "mid"), 1100))
        assert np.array_equal(again, expected)
    finally:
        extraction.close()
