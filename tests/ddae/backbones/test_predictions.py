"""What a network predicts is turned into the image by the formula that it was trained by."""

import math
from argparse import Namespace

import numpy as np
import pytest
import torch

from ddae.backbones import Settings, load_backbone
from ddae.backbones.edm import make_backbone
from ddae.backbones.predictions import PREDICTIONS
from ddae.generation.sampling import sample
from ddae.noise import VE
from tests.ddae.backbones.official import dit_shapes, random_state
from tests.ddae.backbones.tiny import ddae_edm_file, ddae_file, dit_file, edm2_pickle, edm_folder, edm_pickle, make_vae

NEVER = "generic-pixart", "generic-sd3", "torchvision", "timm", "transformers"
"""Families that are not sampled from."""


def check(backbone, target, timesteps, times=1):
    """target(x0, noise, t): what the network is trained to return; `times` as many channels are returned."""
    rng = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(2, *backbone.encoder.shape, generator=rng) for _ in range(2))
    for t in timesteps:
        output = target(x0, noise, t)
        output = torch.cat([output, *[torch.randn_like(output)] * (times - 1)], dim=1)
        found = backbone.denoised((output,), backbone.schedule.diffuse(x0, noise, t), t)
        torch.testing.assert_close(found, x0, atol=2e-3, rtol=1e-3)


def eps(x0, noise, t):
    return noise


def edm_target(backbone, sigma_data=0.5):
    """F of Karras et al. 2022, equation 8."""

    def target(x0, noise, t):
        sigma = backbone.sigma(t)
        skip = sigma_data**2 / (sigma**2 + sigma_data**2)
        return (x0 - skip * (x0 + sigma * noise)) / (sigma * sigma_data / math.hypot(sigma, sigma_data))

    return target


def test_ddae_checkpoints_predict_noise_or_as_edm(tmp_path):
    check(load_backbone(ddae_file(tmp_path, "")), eps, (1, 11, 400))
    backbone = load_backbone(ddae_edm_file(tmp_path, ""))
    check(backbone, edm_target(backbone), (1, 9, 18))


@pytest.mark.parametrize("make", [edm_folder, edm_pickle, edm2_pickle])
def test_edm(tmp_path, make):
    backbone = load_backbone(make(tmp_path, ""))
    check(backbone, edm_target(backbone), (1, 9, 18))


@pytest.mark.parametrize(
    ("kind", "sign"), [("VPPrecond", 1), ("VEPrecond", -1), ("iDDPMPrecond", 1)], ids=["vp", "ve", "iddpm"]
)
def test_the_baselines_of_edm_predict_noise_or_its_negative(tmp_path, kind, sign):
    """D = x - sigma F, and of VE D = x + sigma F (Karras et al. 2022, table 1)."""
    from ddae.backbones.edm import NUMBERS

    unet = load_backbone(edm_folder(tmp_path, "")).network
    backbone = make_backbone(unet, kind, NUMBERS[kind], "", Settings())
    check(backbone, lambda x0, noise, t: sign * noise, (1, 9, 17))


def test_dit_predicts_noise_and_a_variance(tmp_path):
    check(load_backbone(dit_file(tmp_path, "")), eps, (0, 30, 500), times=2)


SIT = Namespace(model="SiT-S/2", path_type="Linear", prediction="velocity", num_classes=3)
REPA = Namespace(model="SiT-S/2", path_type="linear", prediction="v", enc_type="dinov2-vit-b", proj_coeff=0.5)


def derivatives(path, s):
    """(alpha', sigma') by differences of the official formulae."""

    def at(s):
        if path in ("linear", "Linear"):
            return np.array([1 - s, s])
        squared = (
            math.cos(math.pi / 2 * s) ** 2 if path in ("cosine", "GVP") else math.exp(-0.5 * s**2 * 19.9 - 0.1 * s)
        )
        return np.array([squared**0.5, (1 - squared) ** 0.5])

    return (at(s + 1e-6) - at(s - 1e-6)) / 2e-6


@pytest.mark.parametrize(
    ("said", "path", "sign"),
    [(SIT, "Linear", -1), (SIT, "GVP", -1), (SIT, "VP", -1), (REPA, "linear", 1), (REPA, "cosine", 1)],
    ids=["sit", "sit-gvp", "sit-vp", "repa", "repa-cosine"],
)
def test_sit_and_repa_predict_velocities_in_the_time_of_their_own_codes(tmp_path, said, path, sign):
    make_vae().save_pretrained(tmp_path / "vae")
    arguments = Namespace(**vars(said) | {"path_type": path})
    torch.save({"ema": random_state(dit_shapes()), "args": arguments}, tmp_path / "last.pt")
    (tmp_path / "last.json").write_text('{"num_heads": 2}')
    backbone = load_backbone(str(tmp_path / "last.pt"))

    def velocity(x0, noise, t):
        of_image, of_noise = derivatives(path, t / 1000)
        return sign * (of_image * x0 + of_noise * noise)

    check(backbone, velocity, (5, 300, 700), times=2)


@pytest.mark.parametrize("prediction", ["noise", "score"])
def test_a_sit_that_predicts_otherwise_is_not_sampled(tmp_path, prediction):
    make_vae().save_pretrained(tmp_path / "vae")
    arguments = Namespace(**vars(SIT) | {"prediction": prediction})
    torch.save({"ema": random_state(dit_shapes()), "args": arguments}, tmp_path / "last.pt")
    (tmp_path / "last.json").write_text('{"num_heads": 2}')
    with pytest.raises(ValueError, match="cannot be sampled from"):
        sample(load_backbone(str(tmp_path / "last.pt")), [0], num_steps=2)


def test_the_networks_of_diffusers_predict_what_their_scheduler_says(tmp_path, tiny_model):
    from diffusers import (
        CMStochasticIterativeScheduler,
        DDPMPipeline,
        DDPMScheduler,
        FlowMatchEulerDiscreteScheduler,
        UNet2DModel,
    )

    unet = UNet2DModel.from_pretrained(f"{tiny_model}/unet")

    def load(scheduler, name):
        DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / name)
        return load_backbone(str(tmp_path / name))

    v = load(DDPMScheduler(prediction_type="v_prediction"), "v")
    check(v, lambda x0, noise, t: v.schedule.scales(t)[0] * noise - v.schedule.scales(t)[1] * x0, (0, 300, 999))
    check(load(DDPMScheduler(), "eps"), eps, (0, 30, 500))
    check(load(DDPMScheduler(prediction_type="sample"), "x0"), lambda x0, noise, t: x0, (0, 30, 999))
    check(load(FlowMatchEulerDiscreteScheduler(), "flow"), lambda x0, noise, t: noise - x0, (1, 500, 1000))
    assert load(CMStochasticIterativeScheduler(), "consistency").denoised is None


def test_all_of_the_noise_says_nothing_of_the_image():
    with pytest.raises(ValueError, match="noise alone"):
        PREDICTIONS["epsilon"](torch.ones(1), torch.ones(1), 0.0, 1.0)


def test_every_family_is_sampled_and_decoded_or_refused(tiny_backbone, request):
    family = request.node.callspec.params["tiny_name"]
    if family in NEVER:
        with pytest.raises(ValueError, match=r"cannot be sampled from|without noise"):
            sample(tiny_backbone, [0, 1], num_steps=2)
        return
    x0 = sample(tiny_backbone, [0, 1], num_steps=2)
    assert x0.shape == (2, *tiny_backbone.encoder.shape)
    assert x0.isfinite().all()
    images = tiny_backbone.encoder.decode(x0)
    size = tiny_backbone.image_size
    assert (images.dtype, images.shape) == (torch.uint8, (2, 3, size, size))


def test_decoding_undoes_encoding(tiny_backbone, request):
    """Of pixels to the last level; of latents, that the VAE is given what it made: scale and shift are undone."""
    if not hasattr(tiny_backbone.encoder, "decode"):
        pytest.skip("no denoiser")
    size = tiny_backbone.image_size
    images = torch.randint(256, (2, 1, size, size), dtype=torch.uint8).expand(-1, 3, -1, -1)
    x0 = tiny_backbone.encode(images)
    if not tiny_backbone.encoder.fingerprint:
        assert torch.equal(tiny_backbone.encoder.decode(x0), images)
        return
    encoder = tiny_backbone.encoder
    latents = encoder.unscaled(x0)
    torch.testing.assert_close(encoder.scaled(latents).reshape(x0.shape), x0, atol=1e-4, rtol=1e-4)
    again = encoder.vae.encode(encoder.pixels(images))
    torch.testing.assert_close(
        latents.reshape(again.latent_dist.mean.shape), again.latent_dist.mean, atol=1e-4, rtol=1e-4
    )


def test_edm_samples_as_many_steps_as_its_schedule(tmp_path):
    assert load_backbone(edm_folder(tmp_path, ""), Settings(num_steps=40)).schedule == VE(40)
