"""Functions called by workers, on Ray's cluster of one CPU."""

import asyncio
import logging
import os
import signal
import time

import pytest

from sweeps.cluster.pool import Pool
from sweeps.cluster.session import ray_session


@pytest.fixture
def ray(fork, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", fork.keywords["RAY_ADDRESS"])
    with ray_session():
        yield


@pytest.fixture
def pool(ray):
    with Pool() as pool:
        yield pool


def warn(message):
    logging.getLogger("storage").warning(message)
    return os.getpid()


def die_once(path):
    """The process dies where the file is not there yet."""
    if not path.exists():
        path.write_text("died here")
        os.kill(os.getpid(), signal.SIGKILL)
    return path.read_text()


def refuse(message):
    raise LookupError(message)


def test_a_worker_calls_functions_and_passes_on_what_they_say(pool, caplog):
    began = time.time()
    pids = {pool.submit(warn, f"damaged shard {number}").result() for number in range(2)}
    assert len(pids) == 1 and os.getpid() not in pids
    assert caplog.messages == ["damaged shard 0", "damaged shard 1"]
    assert pool.submit(divmod, 7, 2).result() == (3, 1)
    assert len(pool.busy) == 3 and all(began < start <= end < time.time() for start, end in pool.busy)
    assert pool.num_ready == 1


def test_coroutines_wait_for_calls(pool):
    async def both():
        return await asyncio.gather(pool.call(divmod, 7, 2), pool.call(sum, [1, 2]))

    assert pool.run(both()).result() == [(3, 1), 3]


def test_a_call_whose_worker_dies_is_made_again(pool, tmp_path):
    assert pool.submit(die_once, tmp_path / "died").result() == "died here"


def test_what_a_function_raises_is_raised_and_the_worker_goes_on(ray):
    with Pool() as pool:
        with pytest.raises(LookupError, match="row 5 is gone"):
            pool.submit(refuse, "row 5 is gone").result()
        assert pool.submit(divmod, 7, 2).result() == (3, 1)


def test_an_error_of_a_worker_is_one_line_for_the_user(fork, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", fork.keywords["RAY_ADDRESS"])
    gone = r"^row 5 is gone; --store must name a folder or an address that all machines see$"
    with pytest.raises(ValueError, match=gone), ray_session(), Pool() as pool:
        pool.submit(refuse, "row 5 is gone").result()


def test_what_is_under_way_is_given_up_at_the_end(ray):
    with Pool() as pool:
        pool.submit(divmod, 7, 2).result()
        under_way = pool.submit(time.sleep, 1000)
    assert under_way.cancelled()
