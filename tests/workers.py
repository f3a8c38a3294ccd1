"""Ray's workers as forks of a process that has imported what they need, so that no actor imports it anew.

Ray starts `sys.executable` with the path of its worker; a script in that place asks for a fork here.
"""

import argparse
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PRELOADED = ["torch", "diffusers.models.unets.unet_2d", "pyarrow.dataset", "pandas", "scipy.stats", "sklearn.datasets"]
"""Not Ray, which reads the environment as it is imported."""
SCRIPT = """#!{python} -SE
import json, os, socket, sys
if not sys.argv[1].endswith(("/setup_worker.py", "/default_worker.py")):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect({address!r})
    asked.sendall(json.dumps([os.getpid(), os.getcwd(), sys.argv[1:], dict(os.environ)]).encode())
    asked.shutdown(socket.SHUT_WR)
    asked.recv(1)
"""


@contextmanager
def forked_workers() -> Iterator[Path]:
    """What is to be sys.executable while a Ray starts; that Ray has to end in the block."""
    with tempfile.TemporaryDirectory() as folder:
        address, script = Path(folder, "socket"), Path(folder, "python")
        script.write_text(SCRIPT.format(python=sys.executable, address=str(address)))
        script.chmod(0o755)
        command = [sys.executable, "-P", __file__, address, *PRELOADED]  # -P: beside this file lies a folder named ddae
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            try:
                assert server.stdout.readline()
                yield script
            finally:
                server.kill()


def serve(address: str, preloaded: list[str]) -> None:
    for module in preloaded:
        importlib.import_module(module)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        asked = listener.accept()[0]
        if os.fork() == 0:
            with asked.makefile() as file:
                work(*json.load(file))
            os._exit(0)
        asked.close()


def work(pid: int, cwd: str, args: list[str], env: dict[str, str]) -> None:
    """What that process would have done, with its output, and with Ray's setup_worker.py, where it is given, done."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number in (1, 2):
        os.dup2(os.open(f"/proc/{pid}/fd/{number}", os.O_WRONLY | os.O_APPEND), number)
    parser = argparse.ArgumentParser()
    parser.add_argument("--language")
    parser.add_argument("--serialized-runtime-env-context", type=json.loads, default={})
    known, given = parser.parse_known_args(args)
    os.environ.update(known.serialized_runtime_env_context.get("env_vars", {}))
    sys.argv = given[given[0].endswith("/setup_worker.py") :]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
