from pathlib import Path

import pytest

from tests.commands import PATIENCE_SECONDS
from tests.faults.sweeps import ARGS, SMALL, finish


@pytest.fixture(scope="session")
def undisturbed(tiny_model, fork, tmp_path_factory) -> Path:
    """The folder in which the sweep has run in peace."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(fork("layer_noise", "--backbone", tiny_model, *ARGS, cwd=folder))
    return folder


@pytest.fixture
def begin(tiny_model, fork):
    """A function that starts a sweep of four cells."""
    started = []

    def begin(*args, cwd, **env):
        started.append(fork("layer_noise", "--backbone", tiny_model, *SMALL, *args, cwd=cwd, **env))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def refused(begin):
    """A function that runs a sweep which cannot go on, and gives its last line."""

    def refused(*args, cwd, **env):
        process = begin(*args, cwd=cwd, **env)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 2 and out == "" and "Traceback" not in err, err
        return err.splitlines()[-1]

    return refused
