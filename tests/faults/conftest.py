import os
import subprocess
import sys
from pathlib import Path

import pytest

LAYER_NOISE = Path(__file__).parents[2] / "sweeps" / "layer_noise.py"
SMALL = ["--dataset", "digits", "--timesteps", "100", "--blocks", "mid", "up.0.0", "--heads", "ridge"]


@pytest.fixture
def start(tiny_model):
    """A function that starts a sweep of four cells as a user would."""
    started = []

    def start(*args, cwd, **env):
        own = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
        command = [sys.executable, LAYER_NOISE, "--backbone", tiny_model, *SMALL, "--poolings", "1", "2"]
        started.append(
            subprocess.Popen(
                [*command, "--search", "grid", *args], cwd=cwd, env=own | env, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def refused(start):
    """A function that runs a sweep which cannot go on, and gives its last line."""

    def refused(*args, cwd, **env):
        process = start(*args, cwd=cwd, **env)
        out, err = process.communicate(timeout=200)
        assert process.returncode == 2 and out == "" and "Traceback" not in err, err
        return err.splitlines()[-1]

    return refused
