"""Servers of other projects, started as their users start them, on loopback."""

import os
import signal
import socket
import subprocess
import sysconfig
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from storage.tracking import create_database
from tests.commands import own_environment, wait_for


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return False
    return True


@contextmanager
def serving(
    command: Sequence[str], ready: Callable[[], bool], log: Path, cwd: Path, **env: str
) -> Iterator[subprocess.Popen]:
    """The server of a command, inside the environment, from when it is ready until the block ends. log: what it
    prints."""
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes fewer
    env = own_environment(PATH=path, **quiet, **env)
    with log.open("wb") as printed:
        server = subprocess.Popen(command, cwd=cwd, env=env, stdout=printed, stderr=printed, start_new_session=True)
    try:
        assert wait_for(ready, server, log)
        yield server
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # its helpers too
        server.wait()


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[subprocess.Popen]:
    """With its database and artifacts in that folder."""
    create_database(f"sqlite:///{folder}/mlflow.db")
    command = ["mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder)]
    with serving(command, partial(answers, f"http://127.0.0.1:{port}/health"), folder / "log", folder) as server:
        yield server
