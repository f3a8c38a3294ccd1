"""The hand-over in scikit-learn's conventions, of a random network and scikit-learn's digits."""

import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

import ddae
from ddae.backbones import Settings, load_backbone
from ddae.datasets import load_dataset
from ddae.features import FeatureKey, extract
from ddae.pooling import pool
from ddae.probe import to_maps
from ddae.winner import Winner, network

NUM_TRAIN = 200


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", 16)


@pytest.fixture(scope="module")
def images(digits):
    """uint8 [N, H, W, 3] of train."""
    return digits.images.read(digits.splits["train"]).permute(0, 2, 3, 1).contiguous().numpy()


@pytest.fixture
def winner(tiny_model):
    return Winner(tiny_model, "up.1.0", timestep=30, pooling=2)


@pytest.fixture(scope="module")
def saved(tiny_model, images, digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    fitted = Winner(tiny_model, "up.1.0", timestep=30, pooling=2)
    fitted.fit(images[:NUM_TRAIN], digits.labels("train")[:NUM_TRAIN])
    fitted.save(folder, measured={"val_accuracy": 0.5})
    return fitted, folder


def test_features_are_those_of_the_sweep(winner, digits, images, tiny_model):
    backbone, rows = load_backbone(tiny_model), digits.splits["train"][:70]
    key = FeatureKey(backbone.fingerprint, "", 0, 0.2, noise_seed=0, pooling=4)
    stored = extract(backbone, digits, rows, 30, ["up.1.0"], key)["up.1.0"]
    [block] = [block for block in backbone.blocks if block.name == "up.1.0"]
    expected = pool(to_maps([stored], block.channels), 2).flatten(1).numpy()
    np.testing.assert_allclose(winner.transform(images[:70], rows), expected, atol=1e-3)
    own = winner.transform(images[:70])
    assert own.dtype == np.float32 and own.shape == expected.shape
    assert np.abs(own - expected).max() > 0.01  # another noise


def test_an_image_has_its_feature_wherever_it_stands_and_however_it_comes(winner, images, tmp_path):
    some = images[:67]  # more than one batch
    expected = winner.transform(some)
    order = np.random.default_rng(0).permutation(67)
    np.testing.assert_allclose(winner.transform(some[order]), expected[order], atol=2e-3)
    pictures = [Image.fromarray(image).resize((16, 16)) for image in some[:3]]
    encoded = []
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
        encoded.append((tmp_path / f"{number}.png").read_bytes())
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    expected = winner.transform(arrays)
    for same in (
        arrays.transpose(0, 3, 1, 2),
        torch.from_numpy(arrays),
        arrays[..., 0],
        arrays[..., :1],
        pictures,
        encoded,
        [tmp_path / f"{number}.png" for number in range(3)],
        np.array([str(tmp_path / f"{number}.png") for number in range(3)]),
    ):
        np.testing.assert_allclose(winner.transform(same), expected, atol=2e-3)


def test_what_is_loaded_is_what_was_fitted(saved, images):
    fitted, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == ["head.safetensors", "winner.json"]
    loaded = ddae.load(folder)
    assert ddae.load(folder.parent).get_params().keys() == loaded.get_params().keys()  # the folder of the sweep
    held_out = images[NUM_TRAIN : NUM_TRAIN + 50]
    np.testing.assert_array_equal(loaded.predict_proba(held_out), fitted.predict_proba(held_out))
    np.testing.assert_array_equal(loaded.predict(held_out), fitted.predict(held_out))
    np.testing.assert_allclose(loaded.predict_proba(held_out).sum(1), 1, rtol=1e-5)
    assert loaded.measured_ == {"val_accuracy": 0.5}
    assert loaded.class_names_ == tuple("0123456789")


def test_it_finds_digits(saved, images, digits):
    assert saved[0].score(images[NUM_TRAIN:600], digits.labels("train")[NUM_TRAIN:600]) > 0.6


def test_another_head_for_other_classes(saved, images, digits, tmp_path):
    labels = np.where(digits.labels("train") % 2, "odd", "even")
    other = ddae.load(saved[1]).set_params(head="mlp-16", setting="").fit(images[:NUM_TRAIN], labels[:NUM_TRAIN])
    other.save(tmp_path)
    again = ddae.load(tmp_path)
    np.testing.assert_array_equal(again.predict(images[600:650]), other.predict(images[600:650]))
    assert again.score(images[600:650], labels[600:650]) > 0.6
    assert again.class_names_ == ("even", "odd")


def test_in_pipelines_and_cross_validation(winner, images, digits):
    images, labels = images[:NUM_TRAIN], digits.labels("train")[:NUM_TRAIN]
    assert cross_val_score(winner, images, labels, cv=2).min() > 0.4
    pipeline = make_pipeline(winner, LogisticRegression(max_iter=1000)).fit(images, labels)
    assert pipeline.score(images, labels) > 0.7
    np.testing.assert_allclose(clone(winner).fit_transform(images, labels), winner.transform(images))
    assert make_pipeline(clone(winner)).fit_transform(images[:5]).shape[0] == 5  # no labels: the feature alone
    assert clone(winner).get_params() == winner.get_params()


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_mixin_order,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_set_params,
        estimator_checks.check_valid_tag_types,
    ],
    ids=lambda check: check.__name__,
)
def test_scikit_learns_conventions(check):
    check("Winner", Winner())


def test_before_fit_there_are_features_and_no_classes(winner, images):
    assert len(winner.transform(images[:2])) == 2
    with pytest.raises(NotFittedError):
        winner.predict(images[:2])


def test_threads_do_not_mix_their_images(saved, images):
    loaded = ddae.load(saved[1])
    pieces = [images[start : start + 5] for start in range(0, 60, 5)]
    expected = [loaded.predict_proba(piece) for piece in pieces]
    with ThreadPoolExecutor(6) as threads:
        for found, alone in zip(threads.map(loaded.predict_proba, pieces), expected, strict=True):
            np.testing.assert_allclose(found, alone, atol=1e-5)


def test_a_changed_network_is_told(saved, tiny_model, tmp_path):
    model, folder = shutil.copytree(tiny_model, tmp_path / "network"), tmp_path / "model"
    shutil.copytree(saved[1], folder)
    record = json.loads((folder / "winner.json").read_text())
    record["parameters"]["backbone"] = str(model)
    (folder / "winner.json").write_text(json.dumps(record))
    ddae.load(folder)
    [weights] = (model / "unet").glob("*.safetensors")
    tensors = load_file(weights)
    save_file({**tensors, "conv_in.bias": tensors["conv_in.bias"] + 1}, weights, {"format": "pt"})
    network.cache_clear()
    with pytest.raises(ValueError, match=r"is not the network that .* was made with: its fingerprint was"):
        ddae.load(folder)


def test_with_its_network_it_travels(winner, images, digits, tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "network")
    fitted = winner.set_params(backbone=str(model)).fit(images[:NUM_TRAIN], digits.labels("train")[:NUM_TRAIN])
    fitted.save(tmp_path / "made", include_backbone=True)
    expected = fitted.predict_proba(images[:5])
    shutil.rmtree(model)
    (tmp_path / "made").rename(tmp_path / "moved")
    network.cache_clear()
    loaded = ddae.load(tmp_path / "moved")
    np.testing.assert_allclose(loaded.predict_proba(images[:5]), expected, atol=1e-5)
    loaded.fit(images[:NUM_TRAIN], digits.labels("train")[:NUM_TRAIN]).save(tmp_path / "moved")  # where it came from
    network.cache_clear()
    np.testing.assert_allclose(ddae.load(tmp_path / "moved").predict_proba(images[:5]), expected, atol=1e-5)


def test_a_network_of_a_library_is_named_by_what_it_was_called(images, digits, tmp_path):
    fitted = Winner("wrn:10-1", "last", timestep=0, pooling=1, noised=False)
    fitted.fit(images[:60], digits.labels("train")[:60])
    with pytest.raises(ValueError, match="has no files to copy"):
        fitted.save(tmp_path, include_backbone=True)
    fitted.save(tmp_path)
    assert json.loads((tmp_path / "winner.json").read_text())["parameters"]["backbone"] == "wrn:10-1"
    assert np.array_equal(ddae.load(tmp_path, "cpu").predict(images[:9]), fitted.predict(images[:9]))


def test_latents_and_a_learned_text(tiny_stable_diffusion, images, tmp_path):
    text = tmp_path / "learned.safetensors"
    save_file({"text": torch.randn(8, 32, generator=torch.Generator().manual_seed(0))}, text)
    settings = Settings(text_embedding=str(text))
    winner = Winner(tiny_stable_diffusion, "mid", 100, 1, settings=settings)
    winner.fit(images[:20], np.arange(20) % 2).save(tmp_path / "model")
    expected = winner.transform(images[:3])
    text.unlink()
    network.cache_clear()
    np.testing.assert_allclose(ddae.load(tmp_path / "model").transform(images[:3]), expected, atol=2e-3)


def test_damage_is_one_line(saved, tmp_path):
    folder = tmp_path / "model"
    for name, content in (
        ("head.safetensors", b"x"),
        ("winner.json", b"{"),
        ("winner.json", b"{}"),
        ("winner.json", json.dumps({"version": 1, "head_sha256": 3}).encode()),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved[1], folder)
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"model is damaged \(.*\); run sweeps/hand_over.py again"):
            ddae.load(folder)
    with pytest.raises(ValueError, match=r"holds no winner.json; give a folder that sweeps/hand_over.py has made"):
        ddae.load(tmp_path / "nowhere")


def test_bad_images_are_one_line(winner):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    good = buffer.getvalue()
    for bad, message in (
        ([good, b"no image"], "image 1 cannot be read as an image"),
        ([good[:40]], "image 0 cannot be read as an image"),
        (["nowhere.png"], "nowhere.png cannot be read as an image"),
        (good, "images is a single one; give a list"),
        ("a.png", "images is a single one; give a list"),
        ([], "images is empty"),
        (np.zeros((2, 8, 8, 3), np.float32), r"images are float32 \[2, 8, 8, 3\]; give uint8"),
        (np.zeros((2, 8, 8, 2), np.uint8), r"\[2, 8, 8, 2\]; give uint8"),
        (np.zeros((8, 8), np.uint8), r"\[8, 8\]; give uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            winner.transform(bad)


def test_bad_parameters_are_one_line(winner, images):
    for parameters, message in (
        ({"block": "up.9"}, "block='up.9' is not in this backbone; it has: down.0"),
        ({"timestep": 1000}, "timestep=1000 is outside"),
        ({"pooling": 64}, "pooling=64 must be 1 or more, and 8 at most in up.1.0"),
        ({"head": "linaer"}, "did you mean 'linear'"),
        ({"setting": "penalty=7"}, "setting='penalty=7' is none of linear's: penalty=0.001"),
    ):
        with pytest.raises(ValueError, match=message):
            clone(winner).set_params(**parameters).fit(images[:20], np.arange(20) % 2)
    with pytest.raises(ValueError, match="3 labels of 2 classes for 4 images; give one label an image"):
        winner.fit(images[:4], [0, 1, 1])
    with pytest.raises(ValueError, match="4 labels of 1 classes for 4 images"):
        winner.fit(images[:4], [1, 1, 1, 1])
