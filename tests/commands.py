"""The commands as processes: from nothing, as a user starts them, or as forks of a process that has imported what they
need and on a Ray that runs already, which spares a start most of its time."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

from tests.workers import forked_workers

SWEEPS = Path(__file__).parents[1] / "sweeps"
PRELOADED = [
    "sweeps.probing.sweep",
    "diffusers.models.unets.unet_2d",
    "mlflow.store.tracking.sqlalchemy_store",
    "sklearn.datasets",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_svg",
    "contourpy",
]

PATIENCE_SECONDS = 300
"""For what a machine at rest does in seconds: a busy one that reads all libraries again takes minutes."""

ONE_CPU = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 1}'}


def own_environment(**env: str) -> dict[str, str]:
    """Without what a user may have set for Ray and MLflow."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))} | env


def start(command: str, *args: str, cwd: Path, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, SWEEPS / f"{command}.py", *args],
        cwd=cwd, env=own_environment(**env), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # jobs in the background ignore it
    )  # fmt: skip


class Fork:
    """As much of a Popen as the tests use; on a Ray of one CPU, so that one process imports what an extractor needs."""

    def __init__(self, command: str, *args: str, cwd: Path, **env: str):
        forkserver = multiprocessing.get_context("forkserver")
        forkserver.set_forkserver_preload(PRELOADED)
        self._folder = tempfile.TemporaryDirectory()
        self._printed = [Path(self._folder.name) / name for name in ("out", "err")]
        self._process = forkserver.Process(
            target=_run,
            args=(SWEEPS / f"{command}.py", args, cwd, own_environment(**(ONE_CPU | env)), self._printed),
            daemon=True,
        )
        self._process.start()
        self.pid = self._process.pid
        self.kill, self.wait = self._process.kill, self._process.join

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> list[str]:
        self.wait(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(SWEEPS), timeout or 0)
        return [path.read_text() for path in self._printed]


def wait_for(condition: Callable[[], object], process: subprocess.Popen | Fork, log: Path | None = None) -> bool:
    """False where the process ends first. log: what it writes, if it has no pipes."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log else "it takes too long"
        if process.poll() is not None:
            print(*([log.read_text()] if log else process.communicate()), sep="\n")
            return False
        time.sleep(0.05)
    return True


@contextmanager
def ray_of_one_cpu(**env: str) -> Iterator[Callable[..., Fork]]:
    """A Ray with this environment, for as long as the block lasts, and a function that starts a command on it."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 2**28}
    before = dict(os.environ)
    os.environ.update(env)
    with forked_workers() as python:
        with mock.patch.object(sys, "executable", str(python)):
            cluster = Cluster(initialize_head=True, head_node_args=node)
        os.environ.clear()
        os.environ.update(before)
        try:
            yield partial(Fork, RAY_ADDRESS=cluster.address, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", **env)
        finally:
            cluster.shutdown()


def _run(script: Path, args: Sequence[str], cwd: Path, env: dict[str, str], printed: Sequence[Path]) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in enumerate(printed, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.argv = [str(script), *args]
    runpy.run_path(str(script), run_name="__main__")
