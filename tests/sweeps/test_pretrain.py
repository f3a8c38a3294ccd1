import json
import runpy
import sys
from contextlib import chdir, redirect_stderr
from io import StringIO
from pathlib import Path
from unittest import mock

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ddae.backbones import load_backbone
from ddae.pretrain import Pretraining
from sweeps.flags import ImagesAndLabels
from sweeps.pretrain import Pretrain
from sweeps.pretraining import recipe_of, set_up

COMMAND = [str(Path(__file__).parents[2] / "sweeps" / "pretrain.py"), "--dataset", "digits"]
SMALL = ["--channels", "8", "16", "--batch-size", "8", "--steps", "6", "--checkpoint-every", "3"]

SNAPSHOT = "unet/diffusion_pytorch_model.safetensors"
WEIGHTS = f"model/{SNAPSHOT}"


def train(out, *args, interrupt_at=None):
    """The command, in this process, which has imported what it needs. interrupt_at: the step at which it is."""
    loss = Pretraining.loss

    def interrupted(training, network, step):
        if step == interrupt_at:
            raise KeyboardInterrupt
        return loss(training, network, step)

    printed, code = StringIO(), 0
    argv = mock.patch.object(sys, "argv", [*COMMAND, *SMALL, "--out", str(out), *args])
    with argv, mock.patch.object(Pretraining, "loss", interrupted), chdir(out.parent), redirect_stderr(printed):
        try:
            runpy.run_path(COMMAND[0], run_name="__main__")
        except SystemExit as exit:
            code = exit.code
    return code, printed.getvalue()


def test_training_goes_on_where_it_stopped(tmp_path):
    assert train(tmp_path / "whole", "--snapshot-every", "2")[0] == 0
    assert train(tmp_path / "parts", interrupt_at=4)[0] == 130
    assert not (tmp_path / "parts" / "model").exists()
    assert train(tmp_path / "parts", "--snapshot-every", "2")[0] == 0
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
    assert train(tmp_path)[0] == 0
    backbone = load_backbone(str(tmp_path / "model"))
    assert backbone.image_size == 8 and len(backbone.blocks) == 7
    weights = load_file(tmp_path / WEIGHTS)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| seed | 0 |" in card and "`python sweeps/pretrain.py" in card and str(tmp_path) not in card
    assert json.loads((tmp_path / "model/scheduler/scheduler_config.json").read_text())["num_train_timesteps"] == 1000
    assert (tmp_path / "loss.png").exists() and (tmp_path / "samples.png").exists()


def test_edm_learns_and_is_loaded_with_its_own_noise(tmp_path):
    assert train(tmp_path, "--family", "edm", "--steps", "60")[0] == 0
    backbone = load_backbone(str(tmp_path / "model"))
    assert backbone.sigma(1) == pytest.approx(0.002) and len(backbone.blocks) == 7
    assert "small unconditional EDM on digits" in (tmp_path / "model" / "README.md").read_text()
    losses = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["losses"]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_other_settings_do_not_go_on_from_a_checkpoint(tmp_path):
    assert train(tmp_path)[0] == 0
    code, error = train(tmp_path, "--learning-rate", "0.1")
    assert code == 2
    assert "was made with other settings (learning_rate=0.001 and not 0.1); give another --out" in error
    _, error = train(tmp_path, "--dropout", "0.1", "--steps", "9")
    assert "(steps=6 and not 9, dropout=the default and not 0.1); give another --out" in error


def write_images(folder, num=10, dtype=np.uint8, high=255):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for n in range(num):
            pixels = rng.integers(0, high + 1, (16, 16)).astype(dtype)
            Image.fromarray(pixels).save(folder / name / f"p{n // 2}-{n}.png")
    return str(folder)


def test_the_flags_of_images_do_what_they_do_elsewhere(tmp_path, caplog):
    name, out = write_images(tmp_path / "set", dtype=np.uint16, high=1000), tmp_path / "out"
    flags = {"dataset": name, "out": out, "image_size": 16, "channels": (8, 16)}
    plain = set_up(Pretrain(**flags))
    assert plain.reading.white == 1023 and not plain.reading.check
    assert "16 training images; 4 are left out, a fifth of every class, kept for test" in caplog.text
    assert "in all of them 1023 is white" in caplog.text
    caplog.clear()
    given = set_up(Pretrain(**flags, white=4095, group_by="(p[0-9]+)"))
    assert given.reading.white == 4095 and given.reading.group_by == "(p[0-9]+)"
    assert "4095 is white, as given" in caplog.text
    plain.start(torch.device("cpu"))
    seen = float(plain.images.read(np.arange(20)).float().mean())
    given.start(torch.device("cpu"))
    assert float(given.images.read(np.arange(20)).float().mean()) == pytest.approx(seen * 1023 / 4095, rel=0.02)
    assert len(np.intersect1d(given.images.groups[:16], given.images.groups[16:])) == 0


def test_an_image_that_cannot_be_read_is_named_or_left_out(tmp_path):
    name = write_images(tmp_path / "set")
    (tmp_path / "set" / "a" / "p9-9.png").write_bytes(b"no image")
    flags = {"dataset": name, "out": tmp_path / "out", "image_size": 16, "channels": (8, 16)}
    with pytest.raises(ValueError, match=r"p9-9.png cannot be read as an image .* --skip-unreadable"):
        set_up(Pretrain(**flags))
    assert set_up(Pretrain(**flags, skip_unreadable=True)).reading.left_out


def test_of_several_label_columns_one_is_named(tmp_path):
    images = [Image.fromarray(np.full((8, 8), n, np.uint8)) for n in range(20)]
    columns = {"image": images, "coarse_label": [n % 2 for n in range(20)], "fine_label": [n % 4 for n in range(20)]}
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    flags = {"dataset": str(tmp_path / "set"), "out": tmp_path / "out", "image_size": 8, "channels": (8, 16)}
    with pytest.raises(ValueError, match="label_column"):
        set_up(Pretrain(**flags))
    assert set_up(Pretrain(**flags, label_column="fine_label")).reading.label_column == "fine_label"


def test_one_class_is_enough_where_no_label_is_read(tmp_path):
    folder = Path(write_images(tmp_path / "set"))
    (folder / "b").rename(tmp_path / "b")
    set_up(Pretrain(dataset=str(folder), out=tmp_path / "out", image_size=16, channels=(8, 16)))


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from(tmp_path):
    new = {"data_root", "check_data", "label_column", "group_by", "white", "skip_unreadable"}
    assert new == ImagesAndLabels.__dataclass_fields__.keys()
    assert not new & recipe_of(Pretrain(check_data=False)).keys()
    assert recipe_of(Pretrain(white=255.0))["white"] == 255
