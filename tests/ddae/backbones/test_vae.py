import json

import numpy as np
import pytest
import torch

from ddae.backbones import Settings, load_backbone
from ddae.backbones.vae import Latents, latents_of, load_vae
from tests.ddae.backbones import official, tiny


@pytest.fixture
def vae():
    return tiny.make_vae(scaling_factor=0.18215).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make_encoder(folder, image_size=16, **options) -> Latents:
    tiny.make_vae(**options).save_pretrained(folder)
    return Latents(load_vae(str(folder), Settings()), image_size)


@torch.no_grad()
def test_latents_are_the_scaled_means_of_the_posterior(vae, images):
    encoder = Latents(vae, 16)
    expected = vae.encode(images / 127.5 - 1).latent_dist.mean * 0.18215
    assert encoder.shape == (4, 8, 8)
    assert torch.equal(encoder(images), expected) and torch.equal(encoder(images), encoder(images))


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        {"scaling_factor": 0.5, "latents_mean": [-1.0, 0.0, 1.0, 2.0], "latents_std": [1.0, 2.0, 3.0, 4.0]},
    ],
)
def test_latents_are_shifted_where_the_configuration_says_so(images, options):
    vae = tiny.make_vae(**options).eval()
    mean = np.reshape(options.get("latents_mean", options.get("shift_factor")), (-1, 1, 1))
    std = np.reshape(options.get("latents_std", 1.0), (-1, 1, 1))
    latents = vae.encode(images / 127.5 - 1).latent_dist.mean
    expected = (latents - torch.from_numpy(mean)) / torch.from_numpy(std) * options["scaling_factor"]
    torch.testing.assert_close(Latents(vae, 16)(images), expected.float())


@torch.no_grad()
def test_latents_stay_float32_under_autocast(vae, images):
    encoder = Latents(vae, 16)
    expected = encoder(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(images), expected)


@torch.no_grad()
def test_a_large_batch_is_encoded_in_small_parts():
    vae, sizes = tiny.make_vae(levels=4).eval(), []
    vae.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    latents = Latents(vae, 256)(images)
    assert sizes == [8, 8, 4]
    torch.testing.assert_close(Latents(vae, 256)(images[17:]), latents[17:], rtol=1e-4, atol=1e-5)


def test_the_fingerprint_follows_what_changes_latents_and_nothing_else(tmp_path):
    fingerprint = make_encoder(tmp_path / "a").fingerprint
    assert fingerprint == make_encoder(tmp_path / "b", sample_size=512, force_upcast=False).fingerprint
    assert fingerprint != make_encoder(tmp_path / "a", image_size=32).fingerprint
    assert fingerprint != make_encoder(tmp_path / "c", scaling_factor=1.0).fingerprint

    vae = tiny.make_vae()
    for part, same in ((vae.decoder, True), (vae.encoder, False)):
        next(part.parameters()).data.add_(1)
        vae.save_pretrained(tmp_path / "d")
        found = Latents(load_vae(str(tmp_path / "d"), Settings()), 16).fingerprint
        assert (found == fingerprint) is same


def test_where_a_vae_is_found(tmp_path):
    inside, beside, named = tmp_path / "pipeline" / "vae", tmp_path / "vae", tmp_path / "others" / "mine"
    checkpoint = tmp_path / "dit.pt"
    checkpoint.touch()

    def scaling(path):
        return latents_of(path, 4, 8, 2, Settings()).vae.config.scaling_factor

    with pytest.raises(ValueError, match=r"dit.pt needs a VAE: put .* as \S+/vae, or .*; stabilityai/sd-vae-ft-mse: "):
        scaling(checkpoint)
    for factor, folder in enumerate((beside, named, inside), 1):
        tiny.make_vae(scaling_factor=float(factor)).save_pretrained(folder)
    assert scaling(checkpoint) == scaling(tmp_path / "transformer") == 1
    checkpoint.with_suffix(".yaml").write_text("vae: ema\nimage_size: 256\n")  # DiT's own options
    assert scaling(checkpoint) == 1
    checkpoint.with_suffix(".yaml").unlink()
    checkpoint.with_suffix(".json").write_text(json.dumps({"vae": "others/mine"}))
    assert scaling(checkpoint) == 2
    assert scaling(tmp_path / "pipeline") == 3


def test_unsuitable_vaes_and_sizes(tmp_path):
    tiny.make_vae(latent_channels=3).save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match=r"denoises 4 channels, and its VAE .*/vae makes 3; put"):
        latents_of(tmp_path, 4, 8, 2, Settings())
    with pytest.raises(ValueError, match=r"image_size=18 does not suit .*; it takes multiples of 4"):
        latents_of(tmp_path, 3, 8, 2, Settings(image_size=18))
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "AutoencoderDC"}')
    with pytest.raises(ValueError, match=r"/vae is a AutoencoderDC; the only supported VAE is AutoencoderKL"):
        latents_of(tmp_path, 4, 8, 2, Settings())


def test_another_vae_is_another_model(tmp_path):
    state = official.random_state(official.dit_shapes())
    torch.save(state, tmp_path / "dit.pt")
    (tmp_path / "dit.json").write_text(json.dumps({"num_heads": 2}))
    fingerprints = set()
    for factor in (1.0, 2.0):
        tiny.make_vae(scaling_factor=factor).save_pretrained(tmp_path / "vae")
        fingerprints.add(load_backbone(str(tmp_path / "dit.pt")).fingerprint)
    assert len(fingerprints) == 2
