"""A user's mistake is one line that names the value and what is allowed, a non-zero exit, and nothing written."""

import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sweeps import cli, final_test, label_free, layer_noise, pretrain

CASES = [
    (["--blocks", "up.9"], "block='up.9' is not known; allowed: down.0.0,"),
    (["--heads", "linaer"], "head='linaer' is not known; allowed: ridge, linear,"),
    (["--heads", "cnn-64"], "head='cnn-64': cnn takes exactly 2 sizes, each above 0, as in cnn-64-64"),
    (["--heads", "attention", "--poolings", "1"], "head='attention-1' wants a pooling of 2 or more"),
    (["--heads", "linear", "cnn", "--poolings", "1", "2"], "head='cnn-64-64' wants a pooling of 4 or more"),
    (["--blocks", "mid", "up.2.0", "--poolings", "8"], "block='mid' is too small for all poolings and heads"),
    (["--keep", "0"], "keep=0.0 must lie above 0 and not above 1"),
    (["--finalists", "0"], "finalists=0 must be 1 or more"),
    (["--views", "0"], "views=0 must be 1 or more"),
    (["--poolings", "0"], "pooling=0 does not follow exactly"),
    (["--poolings", "3"], "pooling=3 does not follow exactly from a coarser grid; choose among 1, 2, 4, 8"),
    (["--seed", "-1"], "seed=-1 must be 0 or more"),
    (["--store", "s3://bucket/features"], "store='s3://bucket/features' is an address"),
    (["--store", "/dev/null/store"], "/dev/null/store"),
    (["--poolings", "64"], "pooling=64 is larger than every chosen block's map; the largest is 16"),
    (["--timesteps", "1000"], "timestep=1000 is outside this model's schedule; allowed: 0 to 999"),
    (["--heads"], "--heads is empty"),
    (["--poolings"], "--poolings is empty"),
    (["--num-trials", "0"], "num_trials=0 must be 1 or more"),
    (["--dataset", "nowhere"], "dataset='nowhere' is neither a known name nor a folder"),
    (["--backbone", "nowhere"], "backbone='nowhere' is neither a folder or file here nor a model that the hub gives"),
    (["--config", "nowhere.yaml"], "--config nowhere.yaml cannot be read"),
    (["--device", "cuda:99"], "device='cuda:99' is not available"),
    (["--out", "/dev/null/out"], "not a directory; allow it, or name other folders with --out"),
    (["--out", "/proc/out"], "/proc/out"),
    (["--out", "/sys"], "/sys/layer-noise-"),
    (["--store", "/sys/store"], "/sys/store: "),
    (["--store", "/proc"], "allow it, or name other folders with --out and --store"),
    (["--blokcs", "mid"], "'--blokcs' is no flag, and no flag takes it; --help lists them; did you mean '--blocks'?"),
    (["stray"], "'stray' is no flag"),
    (["--seed", "1", "2"], "'2' is no flag, and no flag takes it"),
    (["--seed", "x"], "Error parsing --seed: invalid literal for int() with base 10: 'x'; --help explains every flag"),
    (
        ["--search", "bayes"],
        "invalid choice 'bayes' for argument '--search'. Expected one of ('optuna', 'random', 'grid')",
    ),
    (["--keep"], "Missing value for argument '--keep'"),
    (["--keep", "nan"], "keep=nan must lie above 0"),
    (["--blocks", "mdi"], "did you mean 'mid'?"),
    (["--heads", "mlp-0"], "head='mlp-0': mlp takes 1 or more sizes, each above 0"),
    (["--timesteps", "-1"], "timestep=-1 is outside this model's schedule; allowed: 0 to 999"),
    (["--seed", str(2**32)], "seed=4294967296 must be 0 or more, and below 2**32"),
    (["--data-seed", str(2**64)], "data_seed=18446744073709551616 must be 0 or more, and below 2**32"),
    (["--views", str(10**9)], "views=1000000000 must be 1 or more, and 1000 at most"),
    (["--image-size", "100000"], "image_size=100000 must be 0 or more, and 4096 at most"),
    (["--num-steps", "1"], "num_steps=1 must be 2 or more"),
    (["--num-trials", "-1"], "num_trials=-1 must be 1 or more"),
    (["--round-size", "0"], "round_size=0 must be 1 or more"),
    (["--device", "meta"], "device='meta' is not available"),
    (["--text-embedding", "none"], "text_embedding='none' is no file"),
    (["--dataset", "../nowhere"], "dataset='../nowhere' is neither a known name nor a folder"),
    (["--dataset", "digist"], "did you mean 'digits'?"),
    (["--dataset", "lab/../../digits"], "dataset='lab/../../digits' is neither"),
    (["--backbone", "../nowhere"], "backbone='../nowhere' is neither a folder or file here"),
    (["--backbone", "ddpm-fashion-mnits"], "did you mean 'ddpm-fashion-mnist'?"),
    (["--backbone", "a b/c@../.."], "backbone='a b/c@../..' is neither"),
    (["--config"], "--config wants a file"),
    (["--config", "/dev"], "--config /dev cannot be read (Is a directory)"),
]


def fail(monkeypatch, capsys, tmp_path, command, config, args):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sys, "argv", ["command", *args])
    with pytest.raises(SystemExit) as exit:
        cli.run(command.main, config, command.__doc__)
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.strip().splitlines()
    assert line.startswith("error: ")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    return line


@pytest.mark.parametrize(("args", "expected"), CASES, ids=lambda case: " ".join(case) if isinstance(case, list) else "")
def test_layer_noise(monkeypatch, capsys, tmp_path, tiny_model, args, expected):
    given = ["--backbone", tiny_model, "--dataset", "digits", *args]
    assert expected in fail(monkeypatch, capsys, tmp_path, layer_noise, layer_noise.LayerNoise, given)


def test_unreachable_tracking_server(monkeypatch, capsys, tmp_path, tiny_model):
    args = ["--backbone", tiny_model, "--dataset", "digits"]
    monkeypatch.setattr("storage.tracking.tracking_uri", lambda: "http://127.0.0.1:9")
    line = fail(monkeypatch, capsys, tmp_path, layer_noise, layer_noise.LayerNoise, args)
    assert "MLFLOW_TRACKING_URI=http://127.0.0.1:9 does not answer" in line


def test_unreachable_cluster(monkeypatch, capsys, tmp_path, tiny_model):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    for command, config in ((layer_noise, layer_noise.LayerNoise), (label_free, label_free.LabelFreeRanking)):
        line = fail(monkeypatch, capsys, tmp_path, command, config, ["--backbone", tiny_model, "--dataset", "digits"])
        assert "RAY_ADDRESS=127.0.0.1:9 does not answer" in line


def test_final_test_without_a_sweep(monkeypatch, capsys, tmp_path):
    line = fail(monkeypatch, capsys, tmp_path, final_test, final_test.FinalTest, [])
    assert "run `python sweeps/layer_noise.py` first" in line


def test_label_free_wants_pairs(monkeypatch, capsys, tmp_path, tiny_model):
    args = ["--backbone", tiny_model, "--dataset", "digits", "--num-images", "1"]
    line = fail(monkeypatch, capsys, tmp_path, label_free, label_free.LabelFreeRanking, args)
    assert "num_images=1 must be 2 or more" in line


@pytest.mark.parametrize(
    ("command", "config"), [(label_free, label_free.LabelFreeRanking), (pretrain, pretrain.Pretrain)]
)
def test_other_commands_check_their_data(monkeypatch, capsys, tmp_path, command, config):
    assert "dataset='nowhere'" in fail(monkeypatch, capsys, tmp_path, command, config, ["--dataset", "nowhere"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("blokcs: [mid]", "unknown key 'blokcs'"), ("- mid", "must hold `name: value` lines"), ("a: [", "is not YAML")],
)
def test_config_file(tmp_path, text, expected):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=expected):
        cli.parse(layer_noise.LayerNoise, ["--config", str(path)], "")


def test_flags_win_over_the_config_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("timesteps: [1, 2]\nnum-trials: 5\nseed: 2\ndry_run: true\nout: elsewhere\n")
    config = cli.parse(layer_noise.LayerNoise, ["--num-trials", "7", f"--config={path}", "--seed", "3"], "")
    assert (config.timesteps, config.num_trials, config.seed) == ((1, 2), 7, 3)
