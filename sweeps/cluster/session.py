"""Ray for as long as a command needs it: the cluster at RAY_ADDRESS, or a private one on this machine."""

import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import ray
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.exceptions import RayActorError, RayTaskError

from storage.secrets import hidden
from sweeps.cluster.given import address

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}
LOCAL = {"include_dashboard": False, "object_store_memory": 256 * 2**20}
LONGEST = 35
"""Letters of a folder below which a socket's path, of 107 letters at most, has room for Ray's own names."""
SHARED = "--store must name a folder or an address that all machines see"


def check_cluster() -> None:
    """Raises ValueError where the cluster at RAY_ADDRESS does not answer; Ray itself would ask for minutes."""
    host, _, port = address().removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ValueError(
            f"RAY_ADDRESS={hidden(address())} does not answer ({error}); start the cluster, or unset it to use this "
            "machine"
        ) from error


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray, until the block ends; one that the process has started before is used, and left running. A worker's mistake
    becomes a ValueError of one line, or the OSError that it was."""
    if ray.is_initialized():
        with one_line():
            yield
        return
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it reports every process that dies
    with nullcontext() if address() else private():
        try:
            ray.init(address() or "local", log_to_driver=False, logging_level="ERROR", **({} if address() else LOCAL))
        except Exception as error:  # a raylet that is not up within 30 s is a bare one
            reason = hidden(f"RAY_ADDRESS={address()} lets nobody in: {error}")
            here = (
                f"{error}; RAY_TMPDIR must name a short path with room, `ulimit -n` be 1024 or more, and the machine "
                "not too busy to start a process within 30 s"
            )
            raise ValueError(
                f"Ray does not start, or {reason}" if address() else f"Ray does not start: {here}"
            ) from error
        try:
            with one_line(), sigterm_interrupts():
                yield
        finally:
            ray.shutdown()


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does; under Ray's own handler the process would abort with a stack trace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def private() -> Iterator[None]:
    """What is started in the block listens on loopback alone, as on macOS, and answers nobody without its token.

    Ray reads the settings when it is imported and keeps the token, so it is made to read them again, and once more when
    the block ends: the next session of this process may be on a cluster.
    """
    settings = {"RAY_TMPDIR": folder_of_sockets(), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
    settings["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    before = {name: os.environ[name] for name in settings if name in os.environ}
    listens_to_all = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(settings)
    ray_constants.ENABLE_RAY_CLUSTER = False
    read_again()
    try:
        yield
    finally:
        for name in settings:
            os.environ.pop(name, None)
        os.environ.update(before)
        ray_constants.ENABLE_RAY_CLUSTER = listens_to_all
        read_again()


def folder_of_sockets() -> str:
    """Where Ray keeps its sockets: RAY_TMPDIR, or TMPDIR where that is there, can be written and is short enough for a
    socket's path, or /tmp."""
    given, folder = os.environ.get("RAY_TMPDIR"), tempfile.gettempdir()
    return given or (folder if len(folder) <= LONGEST else "/tmp")


def read_again() -> None:
    """Have Ray read its environment."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def one_line() -> Iterator[None]:
    """Errors of workers as the command says them: an OSError as it is, any other as a ValueError."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, OSError):
            raise error.cause from error
        advice = f"; {SHARED}" if type(error.cause) is LookupError else ""
        raise ValueError(f"{error.cause}{advice}") from error
    except RayActorError as error:  # what an actor's start raised is in its text alone
        raise ValueError(str(error).strip().splitlines()[-1]) from error
