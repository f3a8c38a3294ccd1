"""A user's mistake is one line that names the value and what is allowed, a non-zero exit, and nothing written."""

import io
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
from safetensors.torch import load_file, save, save_file

from ddae.backbones import load_backbone
from sweeps import cli, final_test, hand_over, label_free, layer_noise, pretrain, similarity
from sweeps.tuning.extractor import Extractor
from sweeps.tuning.space import Need

CASES = [
    (["--blocks", "up.9"], "block='up.9' is not known; allowed: down.0.0,"),
    (["--heads", "linaer"], "head='linaer' is not known; allowed: ridge, linear,"),
    (["--heads", "cnn-64"], "head='cnn-64': cnn takes exactly 2 sizes, each above 0, as in cnn-64-64"),
    (["--heads", "attention", "--poolings", "1"], "head='attention-1' wants a pooling of 2 or more"),
    (["--heads", "linear", "cnn", "--poolings", "1", "2"], "head='cnn-64-64' wants a pooling of 4 or more"),
    (["--blocks", "mid", "up.2.0", "--poolings", "8"], "block='mid' is too small for all poolings and heads"),
    (["--keep", "0"], "keep=0.0 must lie above 0 and not above 1"),
    (
        ["--search", "grid", "--start", "label-free"],
        "start='label-free' cuts timesteps, and the grid keeps all of them",
    ),
    (["--finalists", "0"], "finalists=0 must be 1 or more"),
    (["--views", "0"], "views=0 must be 1 or more"),
    (["--poolings", "0"], "pooling=0 does not follow exactly"),
    (["--poolings", "3"], "pooling=3 does not follow exactly from a coarser grid; choose among 1, 2, 4, 8"),
    (["--seed", "-1"], "seed=-1 must be 0 or more"),
    (["--store", "s4://bucket/features"], "store='s4://bucket/features': Protocol not known: s4; give a folder, or an"),
    (["--store", "s3://me:hush@bucket/features"], "the s3 address of the store holds a password or a key"),
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
    (["--seed", str(2**32)], "seed=4294967296 must be 0 or more, and 4,294,967,295 at most"),
    (["--data-seed", str(2**64)], "data_seed=18446744073709551616 must be 0 or more, and 4,294"),
    (["--views", str(10**9)], "views=1000000000 must be 1 or more, and 1000 at most"),
    (["--image-size", "100000"], "image_size=100000 must be 0 or more, and 4,096 at most"),
    (["--num-steps", "1"], "num_steps=1 must be 2 or more"),
    (["--gpus-per-extractor", "2"], "gpus_per_extractor=2.0 must be 0.01 or more, and 1 at most"),
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
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "given" not in path.parts] == []
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


AFTERWARDS = pytest.mark.parametrize(
    ("command", "config"), [(final_test, final_test.FinalTest), (hand_over, hand_over.HandOver)]
)


@AFTERWARDS
def test_without_a_sweep(monkeypatch, capsys, tmp_path, command, config):
    line = fail(monkeypatch, capsys, tmp_path, command, config, [])
    assert "run `python sweeps/layer_noise.py` first" in line


LABEL_FREE = [
    (["--num-images", "1"], "num_images=1 must be 8 or more"),
    (["--num-labels", "7"], "num_labels=7 must be 8 or more, or 0 for none"),
    (["--num-labels", "257"], "num_labels=257 must be 0 or more, and 256 at most"),
    (["--every", "100"], "every=100 fits none of the snapshots in "),
    (["--every", "100"], " (none); pretrain.py --snapshot-every makes them"),
]


@pytest.mark.parametrize(("args", "expected"), LABEL_FREE)
def test_label_free(monkeypatch, capsys, tmp_path, tiny_model, args, expected):
    given = ["--backbone", tiny_model, "--dataset", "digits", *args]
    assert expected in fail(monkeypatch, capsys, tmp_path, label_free, label_free.LabelFreeRanking, given)


AGAINST = ["--against", "timm:test_resnet@random"]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--num-images", "3"], "num_images=3 must be 4 or more"),
        (["--against-blocks", "mid"], "--against-blocks and --against-timesteps are of the networks of --against"),
        (["--blocks", "layer1.0"], "block='layer1.0' is not known; allowed: down.0.0,"),
        (
            [*AGAINST, "--against-blocks", "mid"],
            "timm:test_resnet@random: block='mid' is not known; allowed: conv1.2,",
        ),
        (
            [*AGAINST, "--against-timesteps", "1"],
            "timm:test_resnet@random: timestep=1 is outside this model's schedule;",
        ),
        (["--against", "timm:test_resent@random"], "is none of timm's"),
        (
            ["--against", "nowhere"],
            "backbone='nowhere' is neither a folder or file here nor a model that the hub gives",
        ),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, list) else "",
)
def test_similarity(monkeypatch, capsys, tmp_path, tiny_model, args, expected):
    given = ["--backbone", tiny_model, "--dataset", "digits", *args]
    assert expected in fail(monkeypatch, capsys, tmp_path, similarity, similarity.Similarity, given)


@pytest.mark.parametrize(
    ("command", "config"), [(label_free, label_free.LabelFreeRanking), (pretrain, pretrain.Pretrain)]
)
def test_other_commands_check_their_data(monkeypatch, capsys, tmp_path, command, config):
    assert "dataset='nowhere'" in fail(monkeypatch, capsys, tmp_path, command, config, ["--dataset", "nowhere"])


CONFIGS = [
    ("blokcs: [mid]", "has the unknown key 'blokcs'; keys: backbone, dataset,"),
    ("blokcs: [mid]", "did you mean 'blocks'?"),
    ("seed: 1\nsearch: grid\nseed: 2", "gives the key 'seed' more than once; give it once"),
    ("num-trials: 1\nnum_trials: 2", "gives the key 'num_trials' more than once"),
    ("- mid", "must hold `name: value` lines, not a list"),
    ("0", "must hold `name: value` lines, not a int"),
    ("a: [", "is not YAML"),
    ("[" * 3000, "is not YAML"),
    ("!!int ''", "is not YAML"),
    ("!!python/object/apply:os.system ['touch ran']", "is not YAML"),
    ("blocks: {mid: 1}", "has blocks={'mid': 1}; give numbers or words"),
    ("seed:", "has seed=None; give numbers or words"),
    ("heads: [linear, --dry-run]", "has heads='--dry-run'; give numbers or words, none with - first"),
    ("dataset: --help", "has dataset='--help'; give numbers or words, none with - first"),
    ("seed: 1.5", "Error parsing --seed"),
    ("seed: true", "Missing value for argument '--seed'"),
    ("dry_run: 1", "'1' is no flag"),
]


@pytest.mark.parametrize(("text", "expected"), CONFIGS)
def test_config_file(monkeypatch, capsys, tmp_path, text, expected):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "config.yaml").write_text(text)
    args = ["--config", "given/config.yaml"]
    assert expected in fail(monkeypatch, capsys, tmp_path, layer_noise, layer_noise.LayerNoise, args)


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
        write("*/*.png", lambda path: encoded(np.ones((9, 9), np.float32), "TIFF")),
        "its white is not known; 8 and 16 bits a channel are read, 32 are not",
    ),
    "a link to nothing": (link("cat/x.png", "/nowhere"), "cat/x.png cannot be read (No such file"),
    "a link to itself": (link("cat/x.png", "x.png"), "cannot be read (Too many levels of symbolic links)"),
    "a pipe": (lambda f: os.mkfifo(f / "cat" / "x.png"), "cat/x.png is named like an image and is no file; rename or"),
    "folders in a class": (lambda f: (f / "bird" / "photos").mkdir(parents=True), "bird has folders instead of images"),
    "a saved dataset that is none": (write("state.json", b"{"), "Hugging Face does not load it"),
    "unlabelled metadata": (
        write("metadata.csv", b"file_name\ncat/0.png\n"),
        "has no label columns among image (Image)",
    ),
    "metadata of files that are not there": (
        write("metadata.csv", b"file_name,label\ncat/0.png,1\nnope.png,2\n"),
        "nope.png cannot be read (No such file or directory); mend it, or remove it",
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
def test_data(monkeypatch, capsys, tmp_path, tiny_model, images, case):
    change, expected = DATA[case]
    change(images)
    args = ["--backbone", tiny_model, "--dataset", "given/pets", "--dry-run"]
    assert expected in fail(monkeypatch, capsys, tmp_path, layer_noise, layer_noise.LayerNoise, args)


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
    "another shape": (tensors(lambda s: {**s, TENSOR: torch.ones(2)}), "size mismatch for mid_block.resnets.0.conv1"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "look at its files, or fetch them again"),
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
def test_models(monkeypatch, capsys, tmp_path, tiny_model, case):
    change, expected = MODELS[case]
    shutil.copytree(tiny_model, tmp_path / "given" / "model")
    change(tmp_path / "given" / "model")
    [model] = (tmp_path / "given").iterdir()
    args = ["--backbone", str(model), "--dataset", "digits", "--dry-run"]
    assert expected in fail(monkeypatch, capsys, tmp_path, layer_noise, layer_noise.LayerNoise, args)
    assert not (tmp_path / "given" / "ran").exists()


def test_flags_win_over_the_config_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("timesteps: [1, 2]\nnum-trials: 5\nseed: 2\ndry_run: true\nout: elsewhere\n")
    config = cli.parse(layer_noise.LayerNoise, ["--num-trials", "7", f"--config={path}", "--seed", "3"], "")
    assert (config.timesteps, config.num_trials, config.seed) == ((1, 2), 7, 3)


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
    config = layer_noise.LayerNoise(str(model), str(images), timesteps=(5,), store=str(store))
    plan, *_ = config.plan()
    need = Need(5, "train", 4, tuple(block.name for block in plan.space.blocks))
    with pytest.raises(ValueError, match=expected):
        Extractor(plan, 1).ensure(need)
    assert [path for path in store.rglob("*") if path.suffix in (".part", ".arrow")] == []


def test_a_tensor_too_many_is_told(tmp_path, tiny_model, caplog):
    shutil.copytree(tiny_model, tmp_path / "model")
    tensors(lambda state: {**state, "x": state[TENSOR] + 0})(tmp_path / "model")
    assert load_backbone(str(tmp_path / "model")).blocks
    assert "has 1 weights that its config.json does not call for, such as x; they are left out" in caplog.text


PRETRAINING = [
    (["--steps", "0"], "steps=0 must be 1 or more"),
    (["--batch-size", "0"], "batch_size=0 must be 1 or more"),
    (["--checkpoint-every", "0"], "checkpoint_every=0 must be 1 or more"),
    (["--channels"], "--channels is empty"),
    (["--channels", "7"], "channels=7 must be a multiple of 8"),
    (["--learning-rate", "nan"], "learning_rate=nan must be 1e-09 or more"),
    (["--ema-decay", "2"], "ema_decay=2.0 must be 0 or more, and 1 at most"),
    (["--seed", "-1"], "seed=-1 must be 0 or more"),
    (["--device", "tpu"], "device='tpu' is not available"),
    (["--out", "/proc/out"], "/proc/out: no such file or directory; allow it, or name other folders"),
]


@pytest.mark.parametrize(("args", "expected"), PRETRAINING)
def test_pretrain(monkeypatch, capsys, tmp_path, args, expected):
    assert expected in fail(monkeypatch, capsys, tmp_path, pretrain, pretrain.Pretrain, ["--dataset", "digits", *args])


@AFTERWARDS
@pytest.mark.parametrize("content", ["{", "[]", '{"winner": {}}'])
def test_a_damaged_sweep(monkeypatch, capsys, tmp_path, command, config, content):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "results.json").write_text(content)
    line = fail(monkeypatch, capsys, tmp_path, command, config, ["--sweep", "given"])
    assert "given/results.json is damaged; run its sweep again" in line


@AFTERWARDS
@pytest.mark.parametrize("content", ["{", "[]", '{"cell": "mid/0/1/linear"}'])
def test_a_damaged_record_of_the_test(monkeypatch, capsys, tmp_path, command, config, content):
    (tmp_path / "given").mkdir()
    cell = {"block": "mid", "timestep": 0, "pooling": 1, "head": "linear"}
    (tmp_path / "given" / "results.json").write_text(json.dumps({"winner": {"candidate": cell}}))
    (tmp_path / "given" / "final_test.json").write_text(content)
    line = fail(monkeypatch, capsys, tmp_path, command, config, ["--sweep", "given"])
    assert "given/final_test.json, the record that the test set has been looked at, is damaged; restore it" in line
