"""SIGKILL of the driver at many moments of one sweep; of its workers, and of a node, in another."""

import os
import signal
import time

import pytest

NUM_START_UP = 2
NUM_LATER = int(os.environ.get("NUM_KILLS", 5)) - NUM_START_UP
"""A kill costs a start, which is ten seconds; NUM_KILLS=20 for twenty of them."""
LOOPBACK_RAY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}


def test_driver(sweep, undisturbed, tiny_model, tmp_path):
    whole, num_stopped = sweep.progress(undisturbed), 0
    for attempt in range(NUM_START_UP + NUM_LATER):
        before = sweep.progress(tmp_path)
        process = sweep.start(tiny_model, tmp_path)
        if attempt < NUM_START_UP:
            time.sleep(4 * attempt + 1)
        elif not sweep.wait_for(
            lambda least=before + whole // (2 * NUM_LATER): sweep.progress(tmp_path) >= least, process
        ):
            break
        if attempt == NUM_START_UP:
            assert sweep.listens_at(process) == LOOPBACK
        if attempt == NUM_START_UP + 1:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
            assert process.returncode == 130 and err.splitlines()[-1].startswith("stopped; what was finished is kept")
        else:
            sweep.kill(process)
        num_stopped += 1
    assert num_stopped == NUM_START_UP + NUM_LATER
    sweep.finish(sweep.start(tiny_model, tmp_path))
    assert sweep.table(tmp_path) == sweep.table(undisturbed)
    assert sweep.children(tmp_path) == sweep.children(undisturbed)


@pytest.mark.skipif("NUM_KILLS" not in os.environ, reason="three minutes; NUM_KILLS=20 runs it")
def test_workers_and_nodes(sweep, undisturbed, tiny_model, tmp_path):
    """Started with one node of one CPU and another of one, where the undisturbed sweep had two on one."""
    from ray.cluster_utils import Cluster

    def reached(share):
        assert sweep.wait_for(lambda: sweep.progress(tmp_path) >= share * sweep.progress(undisturbed), process)

    node = {"num_cpus": 1, "object_store_memory": 2**28}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        leaves = cluster.add_node(**node)
        process = sweep.start(tiny_model, tmp_path, RAY_ADDRESS=cluster.address, **LOOPBACK_RAY)
        reached(0.2)
        assert sweep.wait_for(lambda: sweep.kill_one("ray::Extractor"), process)
        reached(0.4)
        cluster.remove_node(leaves, allow_graceful=False)
        reached(0.6)
        cluster.add_node(**node)
        assert sweep.wait_for(lambda: sweep.kill_one("ray::ProbeTrial"), process)
        sweep.finish(process)
    finally:
        cluster.shutdown()
    assert sweep.table(tmp_path) == sweep.table(undisturbed)
    assert sweep.children(tmp_path) == sweep.children(undisturbed)
