"""Many processes at one shard, and a writer that is killed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from storage.feature_store import FeatureStore
from sweeps.flags import ModelAndData
from sweeps.probing.extractor import Extractor
from sweeps.probing.plan import set_up
from sweeps.probing.source import Need
from tests.commands import PATIENCE_SECONDS, PRELOADED, wait_for

NUM_PROCESSES = 4
BLOCKS = ("mid", "up.0.0")
NEEDS = [Need(30, "train", 700, BLOCKS), Need(30, "train", 1000, BLOCKS[:1]), Need(30, "val", 50, BLOCKS)]


def extract_all(source, together, passes):
    extractor = Extractor(source)
    together.wait()
    for need in NEEDS:
        extractor.ensure(need)
    passes.put(extractor.passes)


def test_of_several_processes_one_extracts(tiny_model, tmp_path):
    flags = ModelAndData(tiny_model, "digits", blocks=BLOCKS, timesteps=(30,), store=str(tmp_path / "store"))
    task = set_up(flags, heads=("linear",)).task
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload(PRELOADED)
    together, passes = forked.Barrier(NUM_PROCESSES), forked.Queue()
    processes = [forked.Process(target=extract_all, args=(task.source, together, passes)) for _ in range(NUM_PROCESSES)]
    for process in processes:
        process.start()
    total = sum(passes.get(timeout=PATIENCE_SECONDS) for _ in processes)
    for process in processes:
        process.join(PATIENCE_SECONDS)
    assert [process.exitcode for process in processes] == [0] * NUM_PROCESSES
    assert total == pytest.approx(task.space.forward_passes(NEEDS))
    contended = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*.arrow")}

    alone = Extractor(task.source)
    for path in contended:
        path.unlink()
    for need in NEEDS:
        alone.ensure(need)
    assert {path: path.read_bytes() for path in (tmp_path / "store").rglob("*.arrow")} == contended


WRITER = """
import sys
import numpy as np
from storage.feature_store import FeatureStore
store, first = FeatureStore(sys.argv[1]), int(sys.argv[2])
rows = np.random.default_rng(0).standard_normal((512, 4096)).astype(np.float16)
for start in range(first, first + 512 * 1000, 512):
    with store.claimed("sweep", start, start + 512):
        store.write("sweep/block=mid", start, rows)
"""


def test_a_killed_writer_leaves_whole_shards_alone(tmp_path, caplog):
    store, column = FeatureStore(tmp_path), "sweep/block=mid"
    rows = np.random.default_rng(0).standard_normal((512, 4096)).astype(np.float16)
    killed_in_the_middle = 0
    for delay in np.random.default_rng(1).uniform(0, 0.02, 8):
        num_rows = 512 * len(list(tmp_path.rglob("*.arrow")))
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(num_rows)])
        assert wait_for(lambda: any(tmp_path.rglob("*.part")), writer)
        time.sleep(delay)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        num_rows = 512 * len(list(tmp_path.rglob("*.arrow")))
        assert store.missing(column, num_rows + 512) == [(num_rows, num_rows + 512)]
        assert all(np.array_equal(view, rows) for view in store.read(column, num_rows))
        parts = list(tmp_path.rglob("*.part"))
        killed_in_the_middle += len(parts)
        with store.claimed("sweep", num_rows, num_rows + 512):
            assert not any(path.exists() for path in parts)
    assert killed_in_the_middle > 0
    assert caplog.messages == []
