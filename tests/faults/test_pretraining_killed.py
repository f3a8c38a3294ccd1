"""SIGKILL of each process of a pre-training that two share, in the middle: the same losses as undisturbed."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ray import cloudpickle

from ddae.pretrain import Pretraining
from sweeps.cluster.session import ray_session
from sweeps.cluster.train import FileCheckpoint, train
from sweeps.flags import as_args
from sweeps.pretrain import Pretrain
from sweeps.pretraining import set_up

pytestmark = pytest.mark.slow
FLAGS = {
    "dataset": "digits", "channels": (8, 16), "network": "ddpm++", "batch_size": 8, "steps": 40, "flip": True,
    "augment": 0.5, "class_conditional": True, "dropout": 0.1, "accumulate": 2, "autocast": False,
    "checkpoint_every": 5, "sample_every": 0, "num_workers": 2,
}  # fmt: skip


cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not find this file


@dataclass
class Watched(Pretraining):
    """Leaves the process id of each rank in a folder; its steps last at least a twentieth of a second."""

    pids: str = ""

    def start(self, device, rank=0, world_size=1):
        super().start(device, rank, world_size)
        if world_size > 1:
            Path(self.pids, f"{rank}-{os.getpid()}").touch()

    def after_step(self, step):
        time.sleep(0.05)
        return super().after_step(step)


def watched(out, pids):
    training = set_up(Pretrain(**FLAGS, out=out))
    given = {name: value for name, value in vars(training).items() if name != "parts"}
    return Watched(**given, pids=str(pids))


@pytest.fixture(scope="module")
def two_cpus():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 2}')
        with ray_session():
            yield


@pytest.fixture(scope="module")
def undisturbed(two_cpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    return run(watched(out, out), out)


def run(training, out):
    return train(training, FileCheckpoint(out / "checkpoint.pt"), num_workers=2, every_steps=5).losses


def steps_kept(path):
    with suppress(FileNotFoundError):
        return len(torch.load(path, weights_only=True)["losses"])
    return 0


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_of_two_is_killed(undisturbed, tmp_path, rank):
    killed = []

    def kill():
        while steps_kept(tmp_path / "checkpoint.pt") < 10:
            time.sleep(0.05)
        [victim] = tmp_path.glob(f"{rank}-*")
        os.kill(int(victim.name.partition("-")[2]), signal.SIGKILL)
        killed.append(steps_kept(tmp_path / "checkpoint.pt"))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    losses = run(watched(tmp_path, tmp_path), tmp_path)
    killer.join()
    assert 10 <= killed[0] < 40 and len(list(tmp_path.glob(f"{rank}-*"))) == 2
    assert losses == undisturbed


def test_the_command_is_killed_and_run_again(undisturbed, tmp_path):
    args = [arg for name, value in FLAGS.items() for arg in as_args(name, list(value) if name == "channels" else value)]
    command = [sys.executable, str(Path(__file__).parents[2] / "sweeps" / "pretrain.py"), *args, "--out", "net"]
    env = {**os.environ, "RAY_OVERRIDE_RESOURCES": '{"CPU": 2}', "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/m.db"}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        while not steps_kept(tmp_path / "net" / "checkpoint.pt"):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    assert 0 < steps_kept(tmp_path / "net" / "checkpoint.pt") <= 40
    assert run(set_up(Pretrain(**FLAGS, out=tmp_path / "net")), tmp_path / "net") == undisturbed
