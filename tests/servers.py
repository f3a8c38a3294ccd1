"""Servers of other projects, started as their users start them, on loopback."""

import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.commands import wait_for


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
    command: Sequence[str | Path], ready: Callable[[], bool], log: Path, cwd: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen]:
    """The server of a command, from when it is ready until the block ends. log: what it prints."""
    with log.open("wb") as printed:
        server = subprocess.Popen(command, cwd=cwd, env=env, stdout=printed, stderr=printed, start_new_session=True)
    try:
        assert wait_for(ready, server, log)
        yield server
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # its helpers too
        server.wait()
