"""The training loop, in one process and in two under Ray Train."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from sweeps.cluster.session import ray_session
from sweeps.cluster.train import FileCheckpoint, run_loop, train


@dataclass
class Regression:
    """A small network learns the sum of its inputs, by Adam; every step draws its own images."""

    num_steps: int = 12
    batch_size: int = 8
    learning_rate: float = 1e-2
    seconds: float = 0.0
    """A step lasts at least."""
    pids: str = ""
    """Folder in which each worker leaves its process id."""
    fails_at: tuple[int, int] = (-1, -1)
    """The rank and the step at which a worker raises an OSError."""
    autocast = None
    max_gradient_norm = 1.0
    accumulate = 1

    @property
    def recipe(self):
        return {"learning_rate": self.learning_rate, "num_steps": self.num_steps}

    def start(self, device, rank, world_size):
        torch.manual_seed(0)
        self.rank, self.world_size = rank, world_size
        self.network = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
        self.optimizer = torch.optim.Adam(self.network.parameters(), self.learning_rate)
        if self.pids:
            Path(self.pids, f"{rank}-{os.getpid()}").touch()

    def schedule(self, step):
        return 1 - step / self.num_steps

    def loss(self, network, step):
        if self.fails_at == (self.rank, step):
            raise OSError(5, "cannot be read", "images.bin")
        time.sleep(self.seconds)
        x = torch.randn(self.batch_size, 4, generator=torch.Generator().manual_seed(step))[self.rank :: self.world_size]
        return (network(x) - x.sum(1, keepdim=True)).square().mean()

    def after_step(self, step):
        return {"step": step} if step % 5 == 4 else {}

    def state_dict(self):
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state):
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


def weights(training):
    return torch.cat([each.detach().flatten() for each in training.network.parameters()])


def in_process(training, path, **more):
    return run_loop(training, FileCheckpoint(path), torch.device("cpu"), **more)


@pytest.fixture(scope="module")
def two_cpus():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 2}')
        with ray_session():
            yield


def test_bfloat16_is_for_devices_that_compute_in_it(tmp_path, monkeypatch):
    losses = {}
    for has, dtype in [(True, None), (False, torch.bfloat16), (True, torch.bfloat16)]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {"avx512_bf16": has})
        training = Regression()
        training.autocast = dtype
        losses[has, dtype] = in_process(training, tmp_path / f"{has}-{dtype}.pt").losses
    assert losses[False, torch.bfloat16] == losses[True, None] != losses[True, torch.bfloat16]


@pytest.fixture(scope="module")
def undisturbed(two_cpus, tmp_path_factory):
    """(what two workers made of it, the training as it ended)."""
    training = Regression(num_steps=60)
    path = tmp_path_factory.mktemp("undisturbed") / "checkpoint.pt"
    return train(training, FileCheckpoint(path), num_workers=2), training
