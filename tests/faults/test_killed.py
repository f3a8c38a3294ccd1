"""SIGKILL of the driver at several moments of one sweep, and of a trial's worker in another."""

import os
import signal

import pytest

from tests.commands import PATIENCE_SECONDS, start, wait_for
from tests.faults.sweeps import ARGS, children, finish, kill, kill_one, listens_at, progress, table

NUM_KILLS = int(os.environ.get("NUM_KILLS", 1))
"""NUM_KILLS=20 for twenty moments."""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}


def test_driver(undisturbed, fork, tiny_model, tmp_path):
    """A sweep is started from nothing, as a user does, and interrupted; what goes on is forked, which takes less
    time, and killed."""
    command = "layer_noise", "--backbone", tiny_model, *ARGS
    process = start(*command, cwd=tmp_path)
    assert wait_for(lambda: any(tmp_path.rglob("*.arrow")), process)
    assert listens_at(process) == LOOPBACK
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130 and err.splitlines()[-1].startswith("stopped; what was finished is kept")

    begun, whole, num_killed = progress(tmp_path), progress(undisturbed), 0
    for attempt in range(NUM_KILLS):
        least = max(progress(tmp_path), begun + (whole - begun) * attempt // NUM_KILLS)
        process = fork(*command, cwd=tmp_path)
        if not wait_for(lambda least=least: progress(tmp_path) > least, process):
            break
        kill(process)
        num_killed += 1
    assert num_killed > 0.8 * NUM_KILLS
    finish(fork(*command, cwd=tmp_path))
    assert table(tmp_path) == table(undisturbed)
    assert children(tmp_path) == children(undisturbed)


def test_sigterm_is_an_interrupt(fork, tiny_model, tmp_path):
    process = fork("layer_noise", "--backbone", tiny_model, *ARGS, cwd=tmp_path)
    assert wait_for(lambda: any(tmp_path.rglob("*.arrow")), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130 and "SIGTERM" not in err and "stopped; what was finished is kept" in err


@pytest.mark.slow
def test_slurms_warning_stops_nothing(undisturbed, fork, tiny_model, tmp_path):
    """At any stage; Tune takes it for a wish to stop."""
    process = fork("layer_noise", "--backbone", tiny_model, *ARGS, cwd=tmp_path)
    steps = progress(undisturbed)
    for share in (0.2, 0.6, 0.8, 0.9):
        if wait_for(lambda share=share: progress(tmp_path) > share * steps, process):
            process.send_signal(signal.SIGUSR1)
    finish(process)
    assert table(tmp_path) == table(undisturbed)
    assert children(tmp_path) == children(undisturbed)


@pytest.mark.slow
def test_a_trials_worker(undisturbed, fork, tiny_model, tmp_path):
    process = fork("layer_noise", "--backbone", tiny_model, *ARGS, cwd=tmp_path)
    assert wait_for(lambda: kill_one("ray::TaskTrial"), process)
    finish(process)
    assert table(tmp_path) == table(undisturbed)
    assert children(tmp_path) == children(undisturbed)
