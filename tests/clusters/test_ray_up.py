"""clusters/on-premises.yaml for real: `ray up` to three machines, a sweep, a machine that is lost and one more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.clusters.lab import HOME, HOST, NETWORK, SWITCH, Machine, why_not
from tests.commands import PATIENCE_SECONDS, start, wait_for
from tests.faults.sweeps import children, finish, table

ROOT = Path(__file__).parents[2]
ARGS = ["--dataset", "digits", "--timesteps", "0", "100", "--poolings", "1", "2", "--heads", "linear"]
ARGS += ["--num-trials", "6"]
NOT_COPIED = ["--exclude=.git", "--filter=dir-merge,- .gitignore"]
LACKS = why_not()
pytestmark = pytest.mark.skipif(bool(LACKS), reason=LACKS)


@pytest.fixture
def shared(tmp_path) -> Path:
    """What all machines see, with a key that opens them."""
    folder = tmp_path / "shared"
    folder.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    return folder


@pytest.fixture
def machines(shared, tiny_model):
    links = os.listdir("/sys/class/net")
    seen = {Path(sys.prefix), Path(sys.base_prefix), Path(tiny_model), shared}
    soon = "RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=3000 RAY_health_check_failure_threshold=3"
    env = {"KEY": str(shared / "key"), "SET_ENV": f"PYTHONPATH={HOME}/ddae-sweeps {soon}"}
    laptop = Machine("laptop", 1, seen, SWITCH)
    hosts = [Machine(name, number, seen, HOST, **env) for number, name in enumerate(("head", "one", "two", "new"), 10)]
    for host in hosts:
        host.plug(laptop)
    yield laptop, *hosts
    for machine in (*hosts, laptop):
        machine.off()
    assert os.listdir("/sys/class/net") == links


@pytest.fixture
def alone(tiny_model, tmp_path):
    """The same command on this machine alone, in tmp_path, meanwhile."""
    process = start("layer_noise", "--backbone", tiny_model, *ARGS, cwd=tmp_path)
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


STOP = """for pid in $(pgrep -f '[l]ayer_noise.py' | sort -n); do
kill -STOP $pid; until grep -q 'State:.T' /proc/$pid/status; do sleep 0.1; done
done"""
"""Shells first: one that runs notices that its job was stopped, and ends."""


@pytest.fixture
def config(shared) -> dict:
    """The project's own file, but for addresses, key, sizes and patience; the machines have Python already."""
    text = (ROOT / "clusters" / "on-premises.yaml").read_text()
    text = text.replace("ray start", "ray start --object-store-memory=100000000 --num-cpus=1")
    config = yaml.safe_load(text.replace("=1 --head", "=0 --head").replace("timeout_s=30", "timeout_s=5"))
    config["provider"] |= {"head_ip": f"{NETWORK}.10", "worker_ips": [f"{NETWORK}.11", f"{NETWORK}.12"]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(shared / "key")}
    subprocess.run(["rsync", "-a", *NOT_COPIED, f"{ROOT}/", shared / "house"], check=True)  # `ray up` reads every file
    config["file_mounts"]["~/ddae-sweeps"] = str(shared / "house")
    config["setup_commands"][0] = f"ln -sfn {sys.prefix} ddae-sweeps/.venv"
    return config


@pytest.mark.slow
def test_sweep_on_a_cluster(alone, machines, config, shared, tiny_model, tmp_path):
    laptop, head, one, two, new = machines
    file = str(shared / "cluster.yaml")
    Path(file).write_text(yaml.safe_dump(config))

    laptop.run("ray", "get-auth-token", "--generate")
    laptop.run("ray", "up", "-y", file)
    laptop.run("ray", "exec", file, "until ray status | grep '3 local.cluster.node'; do sleep 1; done")
    start_new = prepare(laptop, new, config)
    command = f"cd ddae-sweeps && python sweeps/layer_noise.py --backbone {tiny_model} --store {shared}/store"
    sweep = laptop.start("ray", "exec", file, f"{command} {' '.join(ARGS)}")

    assert wait_for(lambda: two.processes("ray::Worker"), sweep)
    head.run("sh", "-c", STOP)
    laptop.inside("ip", "link", "set", "two", "down")
    laptop.run(*start_new)
    assert wait_for(lambda: new.address in head.run("ss", "-Htn", "sport = :6379"), sweep)
    head.run("sh", "-c", "kill -CONT $(pgrep -f '[l]ayer_noise.py' | sort -rn)")
    assert wait_for(lambda: new.processes("ray::Worker", "ray::TaskTrial"), sweep)
    printed, _ = sweep.communicate(timeout=PATIENCE_SECONDS)
    assert sweep.returncode == 0, printed

    finish(alone)
    laptop.run("ray", "rsync-down", file, "~/ddae-sweeps/out/", f"{shared}/out/")
    head.run("cp", "ddae-sweeps/mlflow.db", str(shared))
    assert table(shared) == table(tmp_path)
    assert children(shared) == children(tmp_path)

    laptop.run("ray", "down", "-y", file)
    laptop.inside("ip", "link", "set", "two", "up")
    hosts = head, one, two, new
    assert wait_for(lambda: not any(host.processes("ray", sys.executable) for host in hosts), laptop.unshare)


def prepare(laptop: Machine, new: Machine, config: dict) -> list[str]:
    """Set up a machine more as the file tells a person to; returns the command that starts Ray there."""
    ssh = ["ssh", "-q", "-i", config["auth"]["ssh_private_key"], "-o", "StrictHostKeyChecking=no"]
    for there, here in config["file_mounts"].items():
        here = here.replace("~", HOME)
        what = f"{here}/" if Path(here).is_dir() else here
        laptop.run("rsync", "-a", "--mkpath", *NOT_COPIED, "-e", " ".join(ssh), what, f"root@{new.address}:{there}")
    login = [*ssh, f"root@{new.address}"]
    laptop.run(*login, "\n".join(config["setup_commands"]))
    start = [f"export RAY_HEAD_IP={NETWORK}.10", ". ~/.bashrc", config["worker_start_ray_commands"][1]]
    return [*login, "\n".join(start)]
