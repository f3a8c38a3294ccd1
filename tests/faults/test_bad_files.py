"""A user's files that are missing, damaged or hostile are one line too; nothing of them is run, nothing written."""

import io
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file

from ddae.backbones import load_backbone
from sweeps import final_test, hand_over, layer_noise
from sweeps.probing.extractor import Extractor
from sweeps.probing.plan import set_up_search
from sweeps.probing.source import Need


def keep_one_image(folder):
    for file in list(folder.rglob("*.png"))[1:]:
        file.unlink()


def write(name, content):
    """Into the file of this name, or into every file of this pattern."""

    def change(folder):
        for path in list(folder.glob(name)) if "*" in name else [folder / name]:
            path.write_bytes(content if isinstance(content, bytes) else content(path))

    return change


def link(name, target):
    return lambda folder: (folder / name).symlink_to(target)


def without(*names):
    def change(folder):
        for name in names:
            shutil.rmtree(folder / name)

    return change


DATA = {
    "an empty folder": (without("cat", "dog"), "no images in "),
    "no image": (write("*/*.png", lambda path: path.unlink() or b""), "cannot be read as an image"),
    "one class": (without("dog"), "has 1 class (cat); a probe needs at least 2"),
    "one image": (keep_one_image, "has 1 class ("),
    "one image a class": (lambda f: [p.unlink() for p in f.glob("*/[1-9].png")], "the val split is empty: 2 training"),
    "not an image": (write("*/*.png", b"not an image"), ".png cannot be read as an image (cannot identify"),
    "empty images": (write("*/*.png", b""), "repair or remove the file"),
    "cut images": (write("*/*.png", lambda path: path.read_bytes()[:60]), ".png cannot be read as an image"),
    "32-bit images": (
        write("*/*.png", lambda path: encoded(np.full((9, 9), 7, np.float32), "TIFF")),
        "reach from 7 to 7); give the value of white with --white",
    ),
    "a link to nothing": (link("cat/x.png", "/nowhere"), "cat/x.png cannot be read as an image (No such file"),
    "a link to itself": (link("cat/x.png", "x.png"), "cannot be read as an image (Too many levels of symbolic links)"),
    "a pipe": (
        lambda f: os.mkfifo(f / "cat" / "x.png"),
        "cat/x.png cannot be read as an image (it is no file); repair or remove",
    ),
    "folders in a class": (lambda f: (f / "bird" / "photos").mkdir(parents=True), "bird has folders instead of images"),
    "a saved dataset that is none": (write("state.json", b"{"), "Hugging Face does not load it"),
    "unlabelled metadata": (
        write("metadata.csv", b"file_name\ncat/0.png\n"),
        "has no label columns among image (Image)",
    ),
    "metadata of files that are not there": (
        write("metadata.csv", b"file_name,label\ncat/0.png,1\nnope.png,2\n"),
        "nope.png cannot be read as an image (No such file or directory); repair or remove the file",
    ),
}


def encoded(pixels, format, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


@pytest.fixture
def images(tmp_path):
    """given/pets/{cat,dog}/{0..9}.png"""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "given" / "pets" / name).mkdir(parents=True)
        for i in range(10):
            pixels = encoded(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), "PNG")
            (tmp_path / "given" / "pets" / name / f"{i}.png").write_bytes(pixels)
    return tmp_path / "given" / "pets"


@pytest.mark.parametrize("case", DATA)
def test_data(error_of, tiny_model, images, case):
    change, expected = DATA[case]
    change(images)
    args = ["--backbone", tiny_model, "--dataset", "given/pets", "--dry-run"]
    assert expected in error_of(layer_noise, layer_noise.LayerNoise, args)


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
TENSOR = "mid_block.resnets.0.conv1.weight"


def tensors(change):
    """change: state dict -> state dict."""

    def rewrite(folder):
        state = load_file(folder / WEIGHTS)
        save_file(change(state), folder / WEIGHTS)

    return rewrite


def option(name, **options):
    return write(name, lambda path: json.dumps({**json.loads(path.read_text()), **options}).encode())


class Hostile:
    def __reduce__(self):
        return os.system, ("touch given/ran",)


def pickled(folder):
    (folder / WEIGHTS).unlink()
    torch.save({TENSOR: Hostile()}, folder / "unet" / "diffusion_pytorch_model.bin")


def checkpoint(suffix, content):
    """Instead of the folder."""

    def change(folder):
        shutil.rmtree(folder)
        folder.with_suffix(suffix).write_bytes(content)

    return change


SCHEDULE = "scheduler/scheduler_config.json"
MODELS = {
    "NaN": (
        tensors(lambda s: {**s, TENSOR: s[TENSOR] * float("nan")}),
        f"tensor={TENSOR!r} of the UNet2DModel holds NaN",
    ),
    "infinity": (tensors(lambda s: {**s, TENSOR: s[TENSOR] / 0}), "holds NaN or infinity; its file is damaged or its"),
    "beyond float16": (
        tensors(lambda s: {**s, TENSOR: s[TENSOR] * 1e30}),
        "beyond float16's 65504; leave the block out",
    ),
    "a tensor is missing": (
        tensors(lambda s: {k: v for k, v in s.items() if k != TENSOR}),
        "lacks 1 weights that its config.json calls for",
    ),
    "another shape": (tensors(lambda s: {**s, TENSOR: torch.ones(2)}), "mid_block.resnets.0.conv1"),
    "no weights": (
        lambda f: (f / WEIGHTS).unlink(),
        "unet has no weights; looked for diffusion_pytorch_model.safetensors, ",
    ),
    "cut": (
        write(WEIGHTS, lambda path: path.read_bytes()[:999]),
        "cannot be loaded as a UNet2DModel (OSError: Unable to load",
    ),
    "no class": (write("model_index.json", b"{}"), "model_index.json does not name a diffusers class"),
    "odd options": (
        option("unet/config.json", norm_num_groups=5),
        "num_channels (8) must be divisible by num_groups (5)",
    ),
    "wrong types": (option("unet/config.json", in_channels="a"), "cannot be loaded as a UNet2DModel (TypeError"),
    "no JSON": (write(SCHEDULE, b"{"), "scheduler_config.json is not JSON (Expecting property name"),
    "no mapping": (write(SCHEDULE, b"[]"), "scheduler_config.json must be a mapping of options to values, not list"),
    "betas beyond 1": (option(SCHEDULE, beta_start=2, beta_end=3), "betas beyond 0 to 1; mend the scheduler's"),
    "NaN betas": (option(SCHEDULE, beta_start=float("nan")), "betas beyond 0 to 1; mend the scheduler's"),
    "no steps": (option(SCHEDULE, num_train_timesteps=0), "the schedule has no steps"),
    "a hostile pickle in a folder": (pickled, "Unable to load weights from checkpoint file"),
    "a hostile pickle": (
        checkpoint(".pkl", pickle.dumps(Hostile())),
        "system, which no tensor needs; nothing of it was run",
    ),
    "another family": (
        checkpoint(".safetensors", save({"layer1.0.conv1.weight": torch.ones(2)})),
        "holds no network that is known",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_models(error_of, tmp_path, tiny_model, case):
    change, expected = MODELS[case]
    shutil.copytree(tiny_model, tmp_path / "given" / "model")
    change(tmp_path / "given" / "model")
    [model] = (tmp_path / "given").iterdir()
    args = ["--backbone", str(model), "--dataset", "digits", "--dry-run"]
    assert expected in error_of(layer_noise, layer_noise.LayerNoise, args)
    assert not (tmp_path / "given" / "ran").exists()


@pytest.mark.parametrize(
    ("change_images", "change_model", "expected"),
    [
        (write("*/*.png", b"broken"), None, r"png cannot be read as an image \(cannot identify image file"),
        (
            None,
            tensors(lambda s: {**s, TENSOR: s[TENSOR] * 1e30}),
            r"block='mid' at timestep=5 reaches .* beyond float16",
        ),
    ],
    ids=["a broken image", "activations beyond float16"],
)
def test_what_an_extractor_meets(tmp_path, tiny_model, images, change_images, change_model, expected):
    """Ray hands on what it raises; the store keeps nothing of that shard."""
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    for change, folder in ((change_images, images), (change_model, model)):
        if change:
            change(folder)
    store = tmp_path / "store"
    config = layer_noise.LayerNoise(str(model), str(images), timesteps=(5,), store=str(store), check_data=False)
    task = set_up_search(config).task
    need = Need(5, "train", 4, task.space.block_names)
    with pytest.raises(ValueError, match=expected):
        Extractor(task.source).ensure(need)
    assert [path for path in store.rglob("t=*/**/*") if path.suffix in (".part", ".arrow")] == []


def test_a_tensor_too_many_is_told(tmp_path, tiny_model, caplog):
    shutil.copytree(tiny_model, tmp_path / "model")
    tensors(lambda state: {**state, "x": state[TENSOR] + 0})(tmp_path / "model")
    assert load_backbone(str(tmp_path / "model")).blocks
    assert "has 1 weights that its config.json does not call for, such as x; they are left out" in caplog.text


AFTERWARDS = pytest.mark.parametrize(
    ("command", "config"), [(final_test, final_test.FinalTest), (hand_over, hand_over.HandOver)]
)


@AFTERWARDS
def test_without_a_sweep(error_of, command, config):
    line = error_of(command, config, [])
    assert "run `python sweeps/layer_noise.py` first" in line


@AFTERWARDS
@pytest.mark.parametrize("content", ["{", "[]", '{"winner": {}}', '{"task": "layer-noise", "flags": {}, "answer": {}}'])
def test_a_damaged_sweep(error_of, tmp_path, command, config, content):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "results.json").write_text(content)
    line = error_of(command, config, ["--sweep", "given"])
    assert "given/results.json is damaged" in line and "run its sweep again" in line


@AFTERWARDS
@pytest.mark.parametrize("content", ["{", "[]", '{"cell": "mid/0/1/linear"}'])
def test_a_damaged_record_of_the_test(error_of, tmp_path, command, config, content):
    (tmp_path / "given").mkdir()
    cell = {"block": "mid", "timestep": 0, "pooling": 1, "head": "linear"}
    results = {"task": "layer-noise", "flags": {}, "answer": {"cell": cell}}
    (tmp_path / "given" / "results.json").write_text(json.dumps(results))
    (tmp_path / "given" / "final_test.json").write_text(content)
    line = error_of(command, config, ["--sweep", "given"])
    assert "given/final_test.json, the record that the test set has been looked at, is damaged; restore it" in line
