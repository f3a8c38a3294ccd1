import re
import shlex
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ddae.backbones import Settings, load_backbone
from ddae.text_embedding import TextTraining
from sweeps import cli, layer_noise, learn_text


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    """25 bright and 25 dark pictures."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 200)):
        (folder / name).mkdir()
        for i in range(25):
            Image.fromarray(rng.integers(low, low + 56, (64, 64, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return str(folder)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path, tiny_stable_diffusion, images):
    """(flags) -> (exit code, what it printed, its errors), in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(*args: str) -> tuple[int, str, str]:
        given = ["--backbone", tiny_stable_diffusion, "--dataset", images, "--device", "cpu", "--batch-size", "8"]
        monkeypatch.setattr(sys, "argv", ["learn_text.py", *given, *args])
        try:
            cli.run(learn_text.main, learn_text.LearnText, learn_text.__doc__)
        except SystemExit as exit:
            return exit.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


def test_the_learned_text_is_what_the_next_command_takes(command, tmp_path, tiny_stable_diffusion):
    code, out, _ = command("--epochs", "2", "--text-learning-rate", "0.1", "--data-seed", "3")
    assert code == 0
    accuracies = re.findall(
        r"^(null|learned) text +val accuracy (\S+) ± 0\.\d+, best after epoch [12] of 2$", out, re.M
    )
    assert [name for name, _ in accuracies] == ["null", "learned"]
    assert all(0 <= float(accuracy) <= 1 for _, accuracy in accuracies)
    [file] = tmp_path.glob("out/learn-text-*/text.safetensors")
    [line] = re.findall(r"^next +python sweeps/layer_noise.py (.+)$", out, re.M)
    config = cli.parse(layer_noise.LayerNoise, shlex.split(line), "")
    assert (tmp_path / config.text_embedding, config.backbone, config.data_seed) == (file, tiny_stable_diffusion, 3)
    null, learned = (
        load_backbone(config.backbone, Settings(text_embedding=text)) for text in ("", config.text_embedding)
    )
    assert torch.equal(learned.inputs.text, load_file(file)["text"])
    assert null.fingerprint != learned.fingerprint and not torch.equal(null.inputs.text, learned.inputs.text)


@pytest.mark.slow
def test_it_goes_on_from_the_last_epoch(command, monkeypatch, tmp_path):
    assert command("--epochs", "2", "--out", "whole")[0] == 0
    epochs_begun = []
    loss = TextTraining.loss

    def interrupted(training, network, step):
        epoch, index = divmod(step, training.epoch_steps)
        if index == 0:
            epochs_begun.append(epoch)
        if len(epochs_begun) == 4 and index == 1:
            raise KeyboardInterrupt
        return loss(training, network, step)

    monkeypatch.setattr(TextTraining, "loss", interrupted)
    code, _, err = command("--epochs", "2", "--out", "parts")
    assert code == 130 and "the same command goes on from here" in err
    assert list(tmp_path.glob("parts/*/text.safetensors")) == []
    assert command("--epochs", "2", "--out", "parts")[0] == 0
    assert epochs_begun == [0, 1, 0, 1, 1]
    whole, parts = (load_file(next(tmp_path.glob(f"{out}/*/text.safetensors"))) for out in ("whole", "parts"))
    assert torch.equal(whole["text"], parts["text"])

    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("parts/*/*.pt")}
    assert sorted(path.name for path in written) == ["learned-text.pt", "null-text.pt"]
    assert command("--epochs", "2", "--out", "parts")[0] == 0
    assert len(epochs_begun) == 5 and written == {path: path.stat().st_mtime_ns for path in written}


@pytest.mark.slow
def test_other_settings_are_another_training(command, tmp_path):
    for args in ([], ["--timestep", "10"], ["--image-size", "128"], ["--block", "b9"], ["--data-seed", "1"]):
        assert command("--epochs", "1", *args)[0] == 0
    assert len(list(tmp_path.glob("out/learn-text-*/text.safetensors"))) == 5


def test_a_dry_run_says_what_it_costs_and_writes_nothing(command, tmp_path):
    code, out, _ = command("--dry-run")
    assert code == 0
    assert "forward passes  600 with the null text, 600 with the learned one" in out  # 15 x (32 train + 8 val)
    assert "in all          at most " in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--backbone", "ddpm-fashion-mnist"], "a UNet2DModel takes no text embedding; give a StableDiffusionPipeline"),
        (["--block", "b26"], "block='b26' is not known; allowed: in, b1,"),
        (["--block", "in"], "block='in' does not depend on the text, which enters behind it"),
        (["--timestep", "1000"], "timestep=1000 is outside this model's schedule; allowed: 0 to 999"),
        (["--pooling", "3"], "pooling=3 does not suit block='up.1.1'; allowed: 1 to 2"),
        (["--epochs", "0"], "epochs=0 must be 1 or more"),
        (["--batch-size", "1"], "batch_size=1 must be 2 or more"),
        (["--image-size", "100"], "image_size=100"),
        (["--precision", "float16"], "precision='float16' is too coarse for gradients"),
        (["--dataset", "nowhere"], "dataset='nowhere'"),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, list) else "",
)
def test_wrong_input_is_one_line(command, tmp_path, args, expected):
    code, _, err = command("--dry-run", *args)
    assert code == 2
    [line] = err.strip().splitlines()
    assert line.startswith("error: ") and expected in line
    assert list(tmp_path.iterdir()) == []


def test_it_runs_on_no_cluster(command, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    code, _, err = command()
    assert code == 2 and "unset RAY_ADDRESS" in err
