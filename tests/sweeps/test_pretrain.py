import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddae.backbones import load_backbone

COMMAND = [sys.executable, str(Path(__file__).parents[2] / "sweeps" / "pretrain.py"), "--dataset", "digits"]
SMALL = ["--channels", "8", "16", "--batch-size", "8", "--steps", "6", "--checkpoint-every", "3"]

SNAPSHOT = "unet/diffusion_pytorch_model.safetensors"
WEIGHTS = f"model/{SNAPSHOT}"


def train(out, *args, interrupt_at=None):
    code = COMMAND if interrupt_at is None else [sys.executable, "-c", STOPPED.format(step=interrupt_at), *COMMAND[2:]]
    return subprocess.run([*code, *SMALL, "--out", str(out), *args], capture_output=True, text=True, check=False)


STOPPED = """
from ddae.pretrain import Pretraining
from sweeps import cli, pretrain
loss = Pretraining.loss
def interrupted(training, network, step):
    if step == {step}:
        raise KeyboardInterrupt
    return loss(training, network, step)
Pretraining.loss = interrupted
cli.run(pretrain.main, pretrain.Pretrain, "")
"""


def test_training_goes_on_where_it_stopped(tmp_path):
    assert train(tmp_path / "whole", "--snapshot-every", "2").returncode == 0
    assert train(tmp_path / "parts", interrupt_at=4).returncode == 130
    assert not (tmp_path / "parts" / "model").exists()
    assert train(tmp_path / "parts", "--snapshot-every", "2").returncode == 0
    whole, parts = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    steps = [
        {path.name: load_file(path / SNAPSHOT) for path in (tmp_path / of).glob("step-*")} for of in ("whole", "parts")
    ]
    assert [sorted(snapshots) for snapshots in steps] == [["step-2", "step-4", "step-6"], ["step-4", "step-6"]]
    assert all(torch.equal(steps[0][at][name], steps[1][at][name]) for at in steps[1] for name in whole)
    assert all(torch.equal(whole[name], steps[0]["step-6"][name]) for name in whole)
    assert not all(torch.equal(whole[name], steps[0]["step-4"][name]) for name in whole)


def test_the_result_is_a_model_with_a_card_and_pictures(tmp_path):
    assert train(tmp_path).returncode == 0
    backbone = load_backbone(str(tmp_path / "model"))
    assert backbone.image_size == 8 and len(backbone.blocks) == 7
    weights = load_file(tmp_path / WEIGHTS)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert "| seed | 0 |" in (tmp_path / "model" / "README.md").read_text()
    assert json.loads((tmp_path / "model/scheduler/scheduler_config.json").read_text())["num_train_timesteps"] == 1000
    assert (tmp_path / "loss.png").exists() and (tmp_path / "samples.png").exists()


def test_edm_learns_and_is_loaded_with_its_own_noise(tmp_path):
    assert train(tmp_path, "--family", "edm", "--steps", "60").returncode == 0
    backbone = load_backbone(str(tmp_path / "model"))
    assert backbone.sigma(1) == pytest.approx(0.002) and len(backbone.blocks) == 7
    assert "small unconditional EDM on digits" in (tmp_path / "model" / "README.md").read_text()
    losses = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["losses"]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_other_settings_do_not_go_on_from_a_checkpoint(tmp_path):
    assert train(tmp_path).returncode == 0
    again = train(tmp_path, "--learning-rate", "0.1")
    assert again.returncode == 2
    assert "was made with other settings" in again.stderr and "give another --out" in again.stderr
