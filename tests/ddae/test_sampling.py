"""Samplers give the images that diffusers' own schedulers give, and obey what every sampler must."""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from ddae.backbones import Settings, load_backbone
from ddae.generation.sampling import SAMPLERS, Step, num_passes, sample, steps_of
from ddae.noise import VE, VP, Clean, Flow, image_noise
from tests.ddae.backbones.tiny import edm_folder

SHARED = {"clip_sample": True, "timestep_spacing": "trailing"}
INDICES = [3, 0, 7]


def folder_with(tmp_path, tiny_model, scheduler):
    from diffusers import DDPMPipeline, UNet2DModel

    DDPMPipeline(UNet2DModel.from_pretrained(f"{tiny_model}/unet"), scheduler).save_pretrained(tmp_path)
    return load_backbone(str(tmp_path))


def start(backbone, seed=5):
    return image_noise(np.array(INDICES), backbone.encoder.shape, 0, seed)


@torch.no_grad()
def by_diffusers(backbone, scheduler, x, **options):
    for t in scheduler.timesteps:
        output = backbone.network(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(output, t, x, **options).prev_sample
    return x


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("num_steps", [10, 25])
def test_ddim_is_that_of_diffusers(tmp_path, tiny_model, kind, num_steps):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(prediction_type=kind, **SHARED)
    backbone = folder_with(tmp_path, tiny_model, scheduler)
    scheduler.set_timesteps(num_steps)
    expected = by_diffusers(backbone, scheduler, start(backbone), use_clipped_model_output=True)
    torch.testing.assert_close(sample(backbone, INDICES, 5, num_steps, "ddim"), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_ancestral_is_ddpm_of_diffusers(tmp_path, tiny_model, kind, monkeypatch):
    from diffusers import DDPMScheduler
    from diffusers.schedulers import scheduling_ddpm

    scheduler = DDPMScheduler(prediction_type=kind, **SHARED)
    backbone = folder_with(tmp_path, tiny_model, scheduler)
    scheduler.set_timesteps(20)
    drawn = iter(scheduler.timesteps)

    def ours(shape, **options):
        return image_noise(np.array(INDICES), backbone.encoder.shape, int(next(drawn)), 5, draw=1)

    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", ours)
    expected = by_diffusers(backbone, scheduler, start(backbone))
    torch.testing.assert_close(sample(backbone, INDICES, 5, 20, "ancestral"), expected, atol=1e-4, rtol=1e-4)


def test_heun_on_a_ddpm_is_that_of_diffusers(tmp_path, tiny_model):
    from diffusers import HeunDiscreteScheduler

    scheduler = HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **SHARED)
    backbone = folder_with(tmp_path, tiny_model, scheduler)
    scheduler.set_timesteps(10)
    first = steps_of(backbone.schedule, 10)[0]
    x = start(backbone) / first.alpha
    for t in scheduler.timesteps:
        with torch.no_grad():
            output = backbone.network(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(output, t, x).prev_sample
    assert len(scheduler.timesteps) == num_passes("heun", 10)
    torch.testing.assert_close(sample(backbone, INDICES, 5, 10, "heun"), x, atol=2e-3, rtol=1e-3)


def test_euler_on_edm_is_that_of_diffusers(tmp_path):
    from diffusers import EDMEulerScheduler

    backbone = load_backbone(edm_folder(tmp_path, ""), Settings(num_steps=12))
    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(12)
    expected = by_diffusers(backbone, scheduler, start(backbone) * 80)
    torch.testing.assert_close(sample(backbone, INDICES, 5, 12, "euler"), expected, atol=1e-3, rtol=1e-3)


def test_heun_on_edm_is_algorithm_1(tmp_path):
    """Written out as in Karras et al. 2022, with diffusers' preconditioning, in float64 as their code."""
    from diffusers import EDMEulerScheduler

    backbone = load_backbone(edm_folder(tmp_path, ""), Settings(num_steps=8))
    scheduler = EDMEulerScheduler()
    sigmas = [*(backbone.sigma(t) for t in range(8, 0, -1)), 0.0]

    @torch.no_grad()
    def slope(x, sigma):
        sigma = torch.tensor(sigma)
        scaled = scheduler.precondition_inputs(x.float(), sigma)
        output = backbone.network(scaled, scheduler.precondition_noise(sigma)).sample
        return ((x - scheduler.precondition_outputs(x.float(), output, sigma)) / sigma).double()

    x = start(backbone).double() * 80
    for now, after in pairwise(sigmas):
        d = slope(x, now)
        there = x + (after - now) * d
        x = x + (after - now) * (d + slope(there, after)) / 2 if after else there
    torch.testing.assert_close(sample(backbone, INDICES, 5, 8).double(), x, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_euler_on_a_flow_is_that_of_diffusers(tmp_path, tiny_model):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    backbone = folder_with(tmp_path, tiny_model, scheduler)
    assert isinstance(backbone.schedule, Flow)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 10, 10).tolist())
    x = start(backbone)
    for t in scheduler.timesteps:
        x = scheduler.step(backbone.network(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(sample(backbone, INDICES, 5, 10), x, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_heun_on_a_flow_is_algorithm_1_on_its_sigma_axis(tmp_path, tiny_model):
    """y = x / (1 - s) moves along its noise, x + (1 - s) v, against s / (1 - s); the first step, from s = 1, and the
    last are Euler's."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    backbone = folder_with(tmp_path, tiny_model, FlowMatchEulerDiscreteScheduler())
    x = start(backbone)
    for t in range(1000, 0, -100):
        now, after = t / 1000, (t - 100) / 1000
        v = backbone.network(x, t).sample
        there = x + (after - now) * v
        if t < 1000 and after:
            noise = x + (1 - now) * v + there + (1 - after) * backbone.network(there, t - 100).sample
            y = x / (1 - now) + (after / (1 - after) - now / (1 - now)) * noise / 2
            there = (1 - after) * y
        x = there
    torch.testing.assert_close(sample(backbone, INDICES, 5, 10, "heun"), x, atol=1e-3, rtol=1e-3)


SCHEDULES = {
    "vp": VP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))),
    "vp-from-1": VP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), first=1),
    "short": VP(np.cumprod(1 - np.linspace(1e-4, 0.02, 64))),
    "256": VP(np.cumprod(1 - np.linspace(1e-4, 0.02, 256))),
    "ve": VE(400),
    "flow": Flow(1000),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 7, 50, 100, 333])
def test_steps_fall_from_the_noisiest_to_the_image(schedule, num_steps):
    """Also where num_steps does not divide the timesteps, or is more than there are: T = 64 with 100 steps."""
    steps = steps_of(schedule, num_steps)
    noisiest = 1000 if isinstance(schedule, Flow) else schedule.timesteps[-1]
    assert steps[0].timestep == noisiest
    assert len(steps) == min(num_steps, noisiest - schedule.timesteps[0] + 1)
    assert all(step.timestep > (step.next_timestep or -1) for step in steps)
    assert all(step.sigma > step.next_sigma for step in steps)
    assert (steps[-1].next_timestep, steps[-1].next_alpha, steps[-1].next_sigma) == (None, 1.0, 0.0)
    assert [step.next_timestep for step in steps[:-1]] == [step.timestep for step in steps[1:]]


def test_nothing_is_sampled_from_a_network_without_noise():
    with pytest.raises(ValueError, match="without noise"):
        steps_of(Clean(), 10)


MEAN, STD = 0.3, 0.2


def gaussian(schedule):
    """The ideal denoiser of images whose pixels are normal with MEAN and STD, and no other network."""

    def denoise(x_t, timestep):
        alpha, sigma = schedule.scales(timestep)
        return MEAN + alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2) * (x_t - alpha * MEAN)

    return denoise


def run(schedule, name, num_steps, x, seed=0):
    noise = torch.Generator().manual_seed(seed)
    for step in steps_of(schedule, num_steps):
        x = SAMPLERS[name](x, step, gaussian(schedule), partial(torch.randn, x.shape, generator=noise, dtype=x.dtype))
    return x


@pytest.mark.parametrize("schedule", [SCHEDULES["vp"], VE(200), Flow(1000)], ids=["vp", "ve", "flow"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_distribution_of_the_images(schedule, name):
    first = steps_of(schedule, 200)[0]
    normal = torch.randn(4_000, generator=torch.Generator().manual_seed(1)).double()
    found = run(schedule, name, 200, math.hypot(first.alpha * STD, first.sigma) * normal + first.alpha * MEAN)
    assert found.mean() == pytest.approx(MEAN, abs=0.015)
    assert found.std() == pytest.approx(STD, rel=0.1)


@pytest.mark.parametrize("schedule", [SCHEDULES["vp"], VE(100), Flow(1000)], ids=["vp", "ve", "flow"])
def test_heun_is_nearer_to_the_exact_image_than_euler(schedule):
    """The flow of a normal distribution keeps the number of standard deviations that a point lies from the mean."""
    first = steps_of(schedule, 100)[0]
    x = math.hypot(first.alpha * STD, first.sigma) * torch.tensor([1.5]).double() + first.alpha * MEAN
    exact = MEAN + 1.5 * STD
    errors = {name: abs(float(run(schedule, name, 100, x)) - exact) for name in ("heun", "euler")}
    assert errors["heun"] < errors["euler"] / 2


@pytest.fixture(scope="module")
def ddpm(tiny_model):
    return load_backbone(tiny_model)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_depends_on_seed_and_number_alone(ddpm, name):
    together = sample(ddpm, range(5), 3, 6, name)
    apart = torch.cat([sample(ddpm, [4, 1], 3, 6, name), sample(ddpm, [0], 3, 6, name)])
    torch.testing.assert_close(apart, together[[4, 1, 0]], atol=2e-3, rtol=1e-3)
    assert not torch.allclose(sample(ddpm, [0], 4, 6, name), together[:1], atol=1e-2)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_a_guide_denoises_in_place_of_the_network_with_gradients_of_its_own(ddpm):
    """What guidance needs: x_t, the timestep and which images, and a gradient through the same pass."""
    seen = []

    def guide(x_t, timestep, numbers):
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            x0 = ddpm.denoise(x, timestep)
            [gradient] = torch.autograd.grad(x0.square().sum(), x)
        seen.append((timestep, tuple(numbers), float(gradient.abs().sum()) > 0))
        return x0.detach() - 0.2

    steps: list[Step] = []
    guided = sample(ddpm, [2, 9], 0, 4, denoise=guide, on_step=steps.append)
    assert seen == [(step.timestep, (2, 9), True) for step in steps]
    assert not guided.requires_grad
    same = sample(ddpm, [2, 9], 0, 4, denoise=lambda x_t, timestep, numbers: ddpm.denoise(x_t, timestep))
    torch.testing.assert_close(same, sample(ddpm, [2, 9], 0, 4))
    assert guided.mean() < same.mean() - 0.01


def test_samples_may_start_from_noised_images(ddpm):
    """At T = 64 the last timestep holds 72 % of the image, so that where a sample starts from decides what it is."""
    few = replace(ddpm, schedule=SCHEDULES["short"])
    x0 = torch.full((2, *ddpm.encoder.shape), 0.9)
    ends = sample(few, [0, 1], 0, 100, denoise=lambda x_t, timestep, numbers: x_t.clamp(-1, 1), x0=x0)
    from_noise = sample(few, [0, 1], 0, 100, denoise=lambda x_t, timestep, numbers: x_t.clamp(-1, 1))
    assert ends.mean() > 0.5 > abs(from_noise.mean())


def test_unknown_samplers_and_networks_are_refused(ddpm):
    with pytest.raises(ValueError, match="'rk4' is not known; choose auto, ddim"):
        sample(ddpm, [0], sampler="rk4")
    with pytest.raises(ValueError, match="cannot be sampled from"):
        sample(replace(ddpm, denoised=None), [0], num_steps=2)
