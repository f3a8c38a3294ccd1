"""The Ray that a command starts is private, whoever imported Ray first and with whatever settings."""

import subprocess
import sys
from contextlib import contextmanager

import pytest

from sweeps.cluster.session import check_cluster
from tests.commands import PATIENCE_SECONDS, own_environment
from tests.faults.sweeps import kill, listens_at
from tests.servers import free_port

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}
OURS = """
{first}
import os
from sweeps.cluster.session import ray_session
with ray_session():
    import ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    print(os.environ["RAY_AUTH_TOKEN"], flush=True)
    print(ray.get(ray.remote(lambda: os.environ["RAY_AUTH_MODE"]).remote()), flush=True)
    input()
print(ray.is_initialized())
"""
ASK = """
import sys
from ray._raylet import GcsClient
print("is let in,", len(GcsClient(address=sys.argv[1]).get_all_node_info()))
"""
"""The first that ray.init() does, which goes on asking for minutes."""


@contextmanager
def running(first, **env):
    """A process of ours that has started its Ray, and Ray's address and token."""
    command = [sys.executable, "-c", OURS.format(first=first)]
    env = {name: value for name, value in own_environment(**env).items() if name != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=env, text=True, start_new_session=True, **pipes)
    try:
        address, token, mode = (process.stdout.readline().strip() for _ in range(3))
        assert mode == "token", process.communicate()
        yield process, address, token
    finally:
        kill(process)


@pytest.mark.parametrize(
    ("first", "env"),
    [
        ("", {}),
        pytest.param("import ray", {}, marks=pytest.mark.slow),
        pytest.param(
            "from ray import tune, train",
            {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["ours", "without settings", "with settings that open it"],
)
def test_it_listens_on_loopback_and_lets_no_stranger_in(first, env):
    with running(first, **env) as (process, address, token):
        assert address.startswith("127.0.0.1:")
        assert listens_at(process) == LOOPBACK
        assert ask(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token).stdout == "is let in, 1\n"
        for stranger in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token[::-1]}):
            refused = ask(address, **stranger)
            assert refused.returncode and not refused.stdout
            assert "InvalidAuthToken" in refused.stderr
        out, err = process.communicate("\n", timeout=PATIENCE_SECONDS)
        assert out == "False\n" and process.returncode == 0, err


def ask(address, **env):
    command = [sys.executable, "-c", ASK, address]
    return subprocess.run(command, env=own_environment(**env), capture_output=True, text=True, timeout=PATIENCE_SECONDS)


def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_cluster()
    for prefix in ("", "ray://"):
        address = f"{prefix}127.0.0.1:{free_port()}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ValueError, match=f"^RAY_ADDRESS={address} does not answer .*start the cluster, or unset"):
            check_cluster()
