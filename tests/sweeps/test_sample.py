"""The command: what it keeps, where it goes on, what it prints and what it refuses."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddae.generation.sampling import sample
from sweeps.sample import Sample
from sweeps.sampling import estimate, run, set_up
from tests.ddae.backbones.tiny import edm_folder

ROOT = Path(__file__).parents[2]
VIT = "timm:test_vit@random"


def samples(model, out, **flags):
    given = {"dataset": "digits", "num_samples": 12, "steps": 3, "batch_size": 5, "num_resamples": 2, **flags}
    return run(set_up(Sample(backbone=model, out=out, **given)))


def images_in(out):
    return np.load(out / "samples.npz")["images"]


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    samples(tiny_model, out)
    return out


def test_images_are_kept_with_all_that_makes_them_again(whole, tiny_model):
    images = images_in(whole)
    assert (images.shape, images.dtype) == ((12, 16, 16, 3), np.uint8)
    assert (images[..., 0] == images[..., 2]).all()  # a grey network
    assert Image.open(whole / "grid.png").size[0] > 8 * 16
    assert not (whole / "parts").exists()
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["num_samples"] == 12 and manifest["backbone"] == tiny_model
    assert manifest["recipe"].items() >= {"sampler": "ddim", "steps": 3, "seed": 0, "start": "noise"}.items()


@pytest.mark.slow
def test_the_command_in_the_manifest_makes_the_same_images(whole, tmp_path, run_command):
    script, *args = json.loads((whole / "manifest.json").read_text())["command"].split()[1:]
    args[args.index("--out") + 1] = str(tmp_path)
    assert script == "sweeps/sample.py"
    assert run_command("sample", *args, cwd=tmp_path)[0] == 0
    assert np.array_equal(images_in(tmp_path), images_in(whole))


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "heun"])
def test_neither_batches_nor_numbers_change_an_image(tiny_model, tmp_path, sampler):
    samples(tiny_model, tmp_path / "one", sampler=sampler, batch_size=12)
    samples(tiny_model, tmp_path / "two", sampler=sampler, batch_size=3, num_samples=4)
    samples(tiny_model, tmp_path / "two", sampler=sampler, batch_size=2)
    one, two = (images_in(tmp_path / name).astype(int) for name in ("one", "two"))
    assert abs(one - two).max() <= 1  # a rounding


def test_fewer_images_are_the_first_and_the_others_stay(whole, tiny_model, tmp_path):
    samples(tiny_model, tmp_path)
    samples(tiny_model, tmp_path, num_samples=4, keep="png")
    assert len(images_in(tmp_path)) == 12
    pngs = sorted((tmp_path / "png").iterdir())
    assert np.array_equal(np.array(Image.open(pngs[-1])), images_in(whole)[11])


SLOW = """
import sys, time
from ddae.backbones import Backbone
denoise = Backbone.denoise
def slowly(self, x_t, timestep):
    time.sleep(0.3)
    return denoise(self, x_t, timestep)
Backbone.denoise = slowly
from sweeps import cli, sample
cli.run(sample.main, sample.Sample, "")
"""


@pytest.mark.slow
def test_a_killed_command_goes_on_with_the_same_images(whole, tiny_model, tmp_path, monkeypatch):
    flags = ["--backbone", tiny_model, "--dataset", "digits", "--num-samples", "12", "--steps", "3"]
    flags += ["--batch-size", "5", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *flags], stderr=subprocess.PIPE, cwd=ROOT, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("parts/*.npy")):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "samples.npz").exists()
    sampled = []

    def watched(backbone, indices, *args, **options):
        sampled.extend(indices)
        return sample(backbone, indices, *args, **options)

    monkeypatch.setattr("sweeps.sampling.sample", watched)
    samples(tiny_model, tmp_path)
    assert 0 < len(sampled) < 12 and 0 not in sampled
    assert np.array_equal(images_in(tmp_path), images_in(whole))
    assert not (tmp_path / "parts").exists()


def test_what_is_kept_is_not_sampled_again(whole, tiny_model, tmp_path, monkeypatch):
    samples(tiny_model, tmp_path)
    monkeypatch.setattr("sweeps.sampling.sample", None)
    assert samples(tiny_model, tmp_path).startswith(tiny_model)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"steps": 4}, "steps"),
        ({"sampler": "heun"}, "sampler"),
        ({"start": "real"}, "start and real_images"),
    ],
)
def test_images_of_another_recipe_are_not_mixed(whole, tiny_model, changed, named):
    before = images_in(whole)
    with pytest.raises(ValueError, match=f"holds samples of other {named}"):
        samples(tiny_model, whole, **changed)
    assert np.array_equal(images_in(whole), before)


def test_damaged_samples_are_refused(tiny_model, tmp_path):
    samples(tiny_model, tmp_path)
    (tmp_path / "samples.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="are damaged"):
        samples(tiny_model, tmp_path)


def test_real_images_can_be_the_start(whole, tiny_model, tmp_path):
    samples(tiny_model, tmp_path, start="real")
    assert not np.array_equal(images_in(tmp_path), images_in(whole))


def test_every_measure_is_printed_beside_real_images_and_damage(tiny_model, tmp_path):
    text = samples(tiny_model, tmp_path, extractor=(VIT,), num_samples=40, force=True)
    for name in ("FD", "KD", "precision", "recall"):
        assert re.search(rf"^{name} +\S+ +\S+ to \S+ +\S+ +\S+ to \S+$", text, re.MULTILINE), text
    assert "FID" not in text
    assert len(re.findall(r"(pass|FAIL)$", text, re.MULTILINE)) == 5
    assert "too few for" in text
    found = json.loads((tmp_path / "measures.json").read_text())[VIT]
    assert found["num_images"] == 40
    assert [each["name"] for each in found["measures"]] == ["FD", "KD", "precision", "recall"]
    assert found["measures"][0]["floor"] < found["measures"][0]["value"]  # a random network's samples are noise


def test_edm_takes_as_many_steps_as_are_asked_for(tmp_path):
    model = edm_folder(tmp_path, "")
    samples(model, tmp_path / "out", steps=7)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["recipe"]["steps"] == 7
    assert set_up(Sample(backbone=model, dataset="digits", steps=7, num_samples=3, out=tmp_path)).sampler == "heun"


def test_more_steps_than_timesteps_take_all_of_them(tmp_path, tiny_model, caplog):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    scheduler = DDPMScheduler(num_train_timesteps=16)
    DDPMPipeline(UNet2DModel.from_pretrained(f"{tiny_model}/unet"), scheduler).save_pretrained(tmp_path / "m")
    samples(str(tmp_path / "m"), tmp_path / "out", steps=25, num_samples=2)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["recipe"]["steps"] == 16
    assert "knows 16 noisy timesteps, fewer than steps=25" in caplog.text


def test_a_dry_run_says_what_it_costs(tiny_model, tmp_path):
    setup = set_up(Sample(backbone=tiny_model, dataset="digits", num_samples=10, steps=6, sampler="heun", out=tmp_path))
    assert re.search(r"10 images by heun, 11 passes each: 110 passes of .* GFLOP, about ", estimate(setup))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"num_samples": 1}, "num_samples=1"),
        ({"steps": 0}, "steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_resamples": 1}, "num_resamples=1"),
        ({"extractor": ("resnet",)}, "extractor='resnet' is not known"),
        ({"extractor": (VIT,), "num_samples": 30}, "too few for a Fréchet distance"),
        ({"extractor": (VIT,), "num_samples": 1000}, "--num-samples 898"),
        ({"dataset": "nothing"}, "nothing"),
        ({"backbone": VIT}, "cannot be sampled from"),
        ({"device": "tpu"}, "device='tpu'"),
    ],
)
def test_mistakes_are_refused_before_anything_is_sampled(tiny_model, tmp_path, flags, said):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        set_up(Sample(**{"backbone": tiny_model, "dataset": "digits", "num_samples": 40, "out": tmp_path} | flags))
    assert "\n" not in str(error.value)


def test_the_model_may_stand_first_and_a_mistake_is_one_line(tiny_model, tmp_path, run_command):
    code, _, err = run_command("sample", tiny_model, "--dataset", "digits", "--num-samples", "1", cwd=tmp_path)
    assert code == 2 and err.splitlines()[-1].startswith("error: num_samples=1") and "Traceback" not in err
    code, out, _ = run_command("sample", "--help", cwd=tmp_path)
    assert code == 0 and "--extractor" in out


@pytest.mark.slow
def test_against_all_training_images_as_papers_do(whole, tiny_model, tmp_path):
    """The distance of the same samples, without a floor, and with few real images no more than there are."""
    shown = samples(tiny_model, tmp_path, extractor=(VIT,), against="train", force=True)
    found = json.loads((tmp_path / "measures.json").read_text())[VIT]["to_train"]
    assert found["num_real"] == 1438 and found["name"] == "FD" and found["value"] > 0
    assert f"12 images against all {found['num_real']:,} of train" in shown
