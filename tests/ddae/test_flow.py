import pytest
import torch

from ddae.noise import VP, Flow


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_timesteps_mean_what_diffusers_scheduler_means_by_them(shift):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler, flow = FlowMatchEulerDiscreteScheduler(shift=shift), Flow()
    x0, noise = torch.randn(2, 3, 4, 8, 8)
    for timestep in scheduler.timesteps:
        if timestep == int(timestep) and timestep < 1000:
            expected = scheduler.scale_noise(x0, timestep[None].expand(3), noise)
            torch.testing.assert_close(flow.diffuse(x0, noise, int(timestep)), expected)


def test_sigma_is_the_ratio_of_noise_to_signal():
    flow = Flow()
    for timestep in (1, 250, 999):
        image, noise = flow.diffuse(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), timestep)
        assert flow.sigma(timestep) == pytest.approx(float(noise / image))
    assert flow.sigma(500) == 1


def test_a_search_starts_from_noise_levels_like_those_of_other_models():
    from diffusers import DDPMScheduler

    flow, vp = Flow(), VP(DDPMScheduler().alphas_cumprod)
    assert len(flow.defaults) == len(vp.defaults)
    for t, s in zip(vp.defaults, flow.defaults, strict=True):
        assert flow.sigma(s) == pytest.approx(vp.sigma(t), rel=0.2)
    assert Flow(10).defaults[0] == 1 and set(Flow(10).defaults) <= set(Flow(10).timesteps)
