"""The command: what it keeps, where it goes on, what it prints and what it refuses."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddae.backbones import Settings, load_backbone
from ddae.datasets import load_images
from ddae.generation.sampling import sample as draw
from ddae.noisy_classifier import NoisyClassifier, NoisyHead
from ddae.winner import Winner
from sweeps import sampling
from sweeps.guide import Guide
from sweeps.guiding import estimate, run, set_up
from sweeps.sample import Sample
from tests.ddae.backbones.tiny import edm_folder

ROOT = Path(__file__).parents[2]
DIGITS = tuple("0123456789")


def classifier_of(backbone_name, folder, settings=Settings(), classes=DIGITS, dataset="digits", seed=0):  # noqa: B008
    """A head that is random, so that it wants something, on the middle block of a network."""
    torch.manual_seed(seed)
    backbone = load_backbone(backbone_name, settings)
    block = backbone.blocks[len(backbone.blocks) // 2]
    levels = torch.tensor([-4.0, 5.0])
    head = NoisyHead(levels, torch.zeros(1, block.channels), torch.full((1, block.channels), 0.1), len(classes))
    with torch.no_grad():
        for weight in head.parameters():
            weight.mul_(3)
    made = NoisyClassifier(
        head, block.name, 1, classes, backbone_name, settings, backbone.fingerprint, dataset, measured={}
    )
    made.save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def classifier(tiny_model, tmp_path_factory):
    return classifier_of(tiny_model, tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """Of another architecture, fitted on real digits."""
    images, folder = load_images("digits", 16), tmp_path_factory.mktemp("judge")
    rows = np.arange(0, images.num_train, 4)
    winner = Winner("wrn:10-1", "last", 0, 2, "ridge", noised=False)
    winner.fit(images.read(rows), np.array(images.classes)[images.labels[rows]])
    winner.save(folder)
    return str(folder)


def guided(classifier, out, **flags):
    given = {"classes": ("3", "8"), "scale": (0, 5), "num_samples": 6, "steps": 3, "batch_size": 4, **flags}
    return run(set_up(Guide(classifier=classifier, out=out, **given)))


def images_in(out, scale):
    return np.load(out / f"scale-{scale}" / "samples.npz")["images"]


def manifest(out, scale):
    return json.loads((out / f"scale-{scale}" / "manifest.json").read_text())


@pytest.fixture(scope="module")
def whole(classifier, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    guided(classifier, out)
    return out


def test_every_scale_is_kept_with_all_that_makes_it_again(whole, tiny_model):
    for scale in (0, 5):
        images, made = images_in(whole, scale), manifest(whole, scale)
        assert (images.shape, images.dtype) == ((6, 16, 16, 3), np.uint8)
        recipe = {"scale": scale, "classes": ["3", "8"], "seed": 0, "sampler": "ddim", "steps": 3}
        assert made["recipe"].items() >= recipe.items()
        assert made["recipe"]["fingerprint"] == load_backbone(tiny_model).fingerprint
        assert len(made["recipe"]["head"]) == 64
        assert made["backbone"] == tiny_model and made["num_samples"] == 6
    assert not np.array_equal(images_in(whole, 0), images_in(whole, 5))
    width, height = Image.open(whole / "grid.png").size
    assert width > 6 * 16 and height > 2 * 16


def test_scale_0_is_what_sample_py_makes(whole, tiny_model, tmp_path):
    config = Sample(tiny_model, "digits", out=tmp_path, num_samples=6, steps=3, batch_size=4)
    sampling.run(sampling.set_up(config))
    assert np.array_equal(np.load(tmp_path / "samples.npz")["images"], images_in(whole, 0))


def test_samples_are_what_the_head_takes_for_their_class(classifier, tiny_model, tmp_path):
    """The head's own opinion grows, and each image has the class of its number."""
    guided(classifier, tmp_path, scale=(0, 30), num_samples=8, steps=20)
    backbone, head = load_backbone(tiny_model), NoisyClassifier.load(classifier)
    found = {}
    for scale in (0, 30):
        x0 = backbone.encode(torch.from_numpy(images_in(tmp_path, scale)).permute(0, 3, 1, 2))
        map = backbone.activations(x0, None, 0, [head.block])[head.block]
        shares = head.logits(map.clone(), torch.full((8,), -4.0)).log_softmax(1)
        found[scale] = shares[torch.arange(8), torch.tensor([3, 8] * 4)]
    assert found[30].mean() > found[0].mean() + 1


@pytest.mark.slow
def test_the_command_in_the_manifest_makes_the_same_images(whole, tmp_path, run_command):
    script, *args = manifest(whole, 5)["command"].split()[1:]
    args[args.index("--out") + 1] = str(tmp_path)
    assert script == "sweeps/guide.py"
    code, _, err = run_command("guide", *args, cwd=tmp_path)
    assert code == 0, err
    for scale in (0, 5):
        assert np.array_equal(images_in(tmp_path, scale), images_in(whole, scale))


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "heun"])
def test_neither_batches_nor_numbers_change_an_image(classifier, tmp_path, sampler):
    guided(classifier, tmp_path / "one", sampler=sampler, batch_size=6, scale=(5,))
    guided(classifier, tmp_path / "two", sampler=sampler, batch_size=3, num_samples=4, scale=(5,))
    guided(classifier, tmp_path / "two", sampler=sampler, batch_size=1, scale=(5,))
    one, two = (images_in(tmp_path / name, 5).astype(int) for name in ("one", "two"))
    assert abs(one - two).max() <= 1  # a rounding


SLOW = """
import sys, time
from ddae.backbones import Backbone
denoise = Backbone.denoise
def slowly(self, x_t, timestep):
    time.sleep(0.3)
    return denoise(self, x_t, timestep)
Backbone.denoise = slowly
from sweeps import cli, guide
cli.run(guide.main, guide.Guide, "")
"""


@pytest.mark.slow
def test_a_killed_command_goes_on_with_the_same_images(whole, classifier, tmp_path, monkeypatch):
    flags = ["--classifier", classifier, "--classes", "3", "8", "--scale", "0", "5", "--num-samples", "6"]
    flags += ["--steps", "3", "--batch-size", "4", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *flags], stderr=subprocess.PIPE, cwd=ROOT, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("scale-5/parts/*.npy")):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "scale-0/samples.npz").exists() and not (tmp_path / "scale-5/samples.npz").exists()
    sampled = []

    def watched(backbone, indices, *args, **options):
        sampled.extend(indices)
        return draw(backbone, indices, *args, **options)

    monkeypatch.setattr("sweeps.sampling.sample", watched)
    guided(classifier, tmp_path)
    assert 0 < len(sampled) < 6
    for scale in (0, 5):
        assert np.array_equal(images_in(tmp_path, scale), images_in(whole, scale))


def test_another_scale_is_added_without_sampling_the_others_again(whole, classifier, tmp_path, monkeypatch):
    guided(classifier, tmp_path)
    indices = []

    def watched(backbone, numbers, *args, **options):
        indices.extend(numbers)
        return draw(backbone, numbers, *args, **options)

    monkeypatch.setattr("sweeps.sampling.sample", watched)
    guided(classifier, tmp_path, scale=(0, 5, -0.5))
    assert indices == list(range(6)) and (tmp_path / "scale--0.5").is_dir()


def test_what_was_measured_of_other_scales_stays(classifier, judge, tmp_path):
    guided(classifier, tmp_path, judge=judge, scale=(0,))
    guided(classifier, tmp_path, judge=judge, scale=(5,))
    guided(classifier, tmp_path, scale=(0, 5))
    found = json.loads((tmp_path / "guided.json").read_text())
    assert found["judge"].keys() == {"0", "5", "real", "folder"} and found["num_samples"] == 6
    guided(classifier, tmp_path, judge=judge, scale=(5,), num_samples=4)
    assert json.loads((tmp_path / "guided.json").read_text())["judge"].keys() == {"5", "real", "folder"}


@pytest.mark.parametrize(
    ("changed", "named"), [({"seed": 1}, "seed"), ({"steps": 4}, "steps"), ({"classes": ("8", "3")}, "classes")]
)
def test_images_of_another_recipe_are_not_mixed(whole, classifier, changed, named):
    with pytest.raises(ValueError, match=f"holds samples of other {named}"):
        guided(classifier, whole, **changed)


def test_images_of_another_head_are_not_mixed(whole, tiny_model, tmp_path):
    with pytest.raises(ValueError, match="holds samples of other head"):
        guided(classifier_of(tiny_model, tmp_path, seed=1), whole)


def test_a_judge_and_an_extractor_say_how_good_the_samples_are(classifier, judge, tmp_path):
    text = guided(classifier, tmp_path, judge=judge, extractor=(judge,), num_samples=40, force=True, num_resamples=2)
    rows = re.findall(r"^(0|5|real images) +(\S+) % +\S+ to \S+ +\S+ +\S+, \d+ %$", text, re.MULTILINE)
    assert [name for name, _ in rows] == ["0", "5", "real images"], text
    assert float(rows[-1][1]) > 80  # two digits of the ten, told by a fitted head among all
    assert re.search(r"^scale +FD +95 % +KD +95 % +precision +95 % +recall +95 %$", text, re.MULTILINE)
    assert len(re.findall(r"^(0|5|real images)( +\S+ +\S+ to \S+){4}$", text, re.MULTILINE)) == 3, text
    found = json.loads((tmp_path / "guided.json").read_text())
    assert found["judge"]["5"]["num_images"] == 40 and set(found["judge"]["5"]["by_class"]) == {"3", "8"}
    assert [each["name"] for each in found[judge]["0"]] == ["FD", "KD", "precision", "recall"]


def test_real_images_are_of_the_classes_and_as_many_of_each(classifier, judge, tmp_path):
    setup = set_up(Guide(classifier=classifier, classes=("8", "3"), judge=judge, steps=3, out=tmp_path))
    labels = setup.images.labels[setup.rows]
    assert labels[:4].tolist() == [8, 3, 8, 3] and (labels == 8).sum() == (labels == 3).sum()
    assert setup.rows[0] < setup.images.num_train <= setup.rows[-1]


def test_a_judge_on_the_same_network_is_named(classifier, tiny_model, tmp_path, caplog):
    images = load_images("digits", 16)
    winner = Winner(tiny_model, "mid", 10, 1, "ridge")
    winner.fit(images.read(np.arange(200)), np.array(images.classes)[images.labels[:200]])
    winner.save(tmp_path / "judge")
    guided(classifier, tmp_path / "out", judge=str(tmp_path / "judge"))
    assert "is not independent of it" in caplog.text


def test_edm_takes_as_many_steps_as_are_asked_for(tmp_path):
    classifier = classifier_of(edm_folder(tmp_path / "network", ""), tmp_path / "classifier")
    setup = set_up(Guide(classifier=classifier, classes=("3",), steps=7, num_samples=2, out=tmp_path / "out"))
    assert (setup.sampler, setup.num_steps) == ("heun", 7)
    run(setup)
    assert manifest(tmp_path / "out", 5)["recipe"]["steps"] == 7


def test_latent_networks_are_guided(tiny_stable_diffusion, tmp_path):
    classifier = classifier_of(tiny_stable_diffusion, tmp_path / "classifier")
    guided(classifier, tmp_path / "out", num_samples=2)
    assert images_in(tmp_path / "out", 5).shape[1:] == (64, 64, 3)
    assert not np.array_equal(images_in(tmp_path / "out", 0), images_in(tmp_path / "out", 5))


def test_a_dry_run_says_what_each_scale_costs(classifier, tmp_path):
    text = estimate(set_up(Guide(classifier=classifier, steps=6, num_samples=10, sampler="heun", out=tmp_path / "o")))
    assert "11 passes each" in text
    work = {scale: int(passes) for scale, passes in re.findall(r"^(\d) +10 +(\d+) +about ", text, re.MULTILINE)}
    share = load_backbone(NoisyClassifier.load(classifier).backbone).block(NoisyClassifier.load(classifier).block)
    assert work == {"0": 110, "1": round(110 * (1 + share.flops_share)), "5": round(110 * (1 + share.flops_share))}


def test_a_scale_that_makes_no_number_is_named_and_the_others_stay(classifier, tmp_path):
    setup = set_up(Guide(classifier=classifier, out=tmp_path, num_samples=6, steps=3, classes=("3", "8")))
    (tmp_path / "scale-1e+60").mkdir()  # set_up() makes it, of scales that it lets through
    with pytest.raises(ValueError, match=r"scale=1e\+60 makes what is no number"):
        run(replace(setup, config=replace(setup.config, scale=(0, 1e60))))
    assert len(images_in(tmp_path, 0)) == 6


def test_a_batch_that_does_not_fit_is_named(classifier, tmp_path, monkeypatch):
    def no_room(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("sweeps.sampling.sample", no_room)
    with pytest.raises(ValueError, match="batch_size=4 images at once do not fit on the cpu; lower --batch-size"):
        guided(classifier, tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"classifier": ""}, "--classifier is missing"),
        ({"classifier": "nowhere"}, "holds no noisy_classifier.json"),
        ({"classes": ("3", "coat")}, "class 'coat' is not there; the classifier knows 0, 1, 2"),
        ({"scale": ()}, "--scale is empty"),
        ({"scale": (1.0, float("nan"))}, "scale=nan must lie between -1,000 and 1,000"),
        ({"scale": (0, 1e30)}, "scale=1e+30 must lie between"),
        ({"scale": (1, 1.00000001)}, "too near each other"),
        ({"num_samples": 1}, "num_samples=1"),
        ({"classes": (), "num_samples": 9}, "num_samples=9 are fewer than the 10 classes"),
        ({"steps": 2000}, "knows 1,000 noisy timesteps; give --steps 1000 or fewer"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"dataset": "fashion-mnist-8k"}, "the classifier was trained on digits, whose classes are 0, 1"),
        ({"backbone": "ddpm-fashion-mnist"}, "the classifier was trained on"),
        ({"judge": "nowhere"}, "nowhere"),
        ({"extractor": ("resnet",)}, "extractor='resnet' is not known"),
        ({"extractor": ("timm:test_vit@random",), "num_samples": 20}, "too few for a Fréchet distance"),
        ({"device": "tpu"}, "device='tpu'"),
    ],
)
def test_mistakes_are_refused_before_anything_is_sampled(classifier, tmp_path, flags, said):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        set_up(Guide(**{"classifier": classifier, "steps": 3, "out": tmp_path} | flags))
    assert "\n" not in str(error.value)


def test_a_judge_of_other_classes_is_refused(classifier, tmp_path):
    shipped = Path(__file__).parents[2] / "benchmarks" / "networks" / "judge"
    with pytest.raises(ValueError, match="does not know the class '0', but t-shirt, trouser"):
        set_up(Guide(classifier=classifier, judge=str(shipped), steps=3, out=tmp_path))


def test_a_network_that_has_changed_is_refused(tiny_model, tmp_path):
    from diffusers import DDPMPipeline

    folder = tmp_path / "model"
    DDPMPipeline.from_pretrained(tiny_model).save_pretrained(folder)
    classifier = classifier_of(str(folder), tmp_path / "classifier")
    pipeline = DDPMPipeline.from_pretrained(folder)
    next(pipeline.unet.parameters()).data.add_(1)
    pipeline.save_pretrained(folder)
    with pytest.raises(ValueError, match="whose fingerprint was"):
        set_up(Guide(classifier=classifier, steps=3, out=tmp_path / "out"))


def test_networks_that_cannot_be_sampled_from_are_refused(tmp_path):
    classifier = classifier_of("wrn:10-1", tmp_path)
    with pytest.raises(ValueError, match="was trained without noise") as error:
        set_up(Guide(classifier=classifier, steps=3, out=tmp_path / "out"))
    assert "\n" not in str(error.value)


def test_a_mistake_is_one_line(classifier, tmp_path, run_command):
    code, _, err = run_command("guide", "--classifier", classifier, "--classes", "coat", cwd=tmp_path)
    assert code == 2 and err.splitlines()[-1].startswith("error: class 'coat' is not there") and "Traceback" not in err
    code, out, _ = run_command("guide", "--help", cwd=tmp_path)
    assert code == 0
    for flag in ("--classifier", "--scale", "--judge", "--extractor"):
        assert flag in out
