import itertools

import numpy as np
import pytest
import torch

from ddae.noise import VE, VP, image_noise

SHAPE = (1, 8, 8)


def test_noise_does_not_depend_on_the_batch():
    together = image_noise(np.arange(64), SHAPE, timestep=30, seed=0)
    alone = torch.cat([image_noise(np.array([i]), SHAPE, timestep=30, seed=0) for i in range(64)])
    assert torch.equal(together, alone)


def test_noise_differs_by_seed_timestep_image_draw_and_view():
    draws = [
        image_noise(np.array([i]), SHAPE, timestep=t, seed=s, draw=d, view=v)
        for s, t, i, d, v in itertools.product((0, 1), repeat=5)
    ]
    stacked = torch.cat(draws).flatten(1)
    assert len(torch.unique(stacked, dim=0)) == 32
    assert torch.corrcoef(stacked).fill_diagonal_(0).abs().max() < 0.5


def test_noise_is_standard_normal():
    noise = image_noise(np.arange(2000), SHAPE, timestep=5, seed=3)
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_vp_keeps_the_variance_and_its_sigma_is_the_ratio():
    x0, noise = torch.randn(2, 100_000)
    schedule = VP([0.5, 0.3, 0.25])
    assert abs(schedule.diffuse(x0, noise, 1).std() - 1) < 0.02
    assert schedule.diffuse(torch.ones(1), torch.zeros(1), 2) == 0.5
    assert schedule.sigma(0) == 1


def test_the_papers_count_of_vp_starts_at_one():
    alphas = torch.linspace(0.99, 0.01, 1000)
    paper, diffusers = VP(alphas, first=1), VP(alphas)
    assert paper.sigma(11) == diffusers.sigma(10)
    assert paper.timesteps == range(1, 1001) and diffusers.timesteps == range(1000)
    assert paper.defaults == tuple(t + 1 for t in diffusers.defaults)


@pytest.mark.parametrize(
    ("num_steps", "step", "sigma"),
    [(18, 1, 0.002), (18, 3, 0.02293), (18, 4, 0.05995), (18, 5, 0.13952), (18, 18, 80), (50, 14, 0.2070)],
)
def test_edm_steps_are_those_of_its_sampler(num_steps, step, sigma):
    assert VE(num_steps).sigma(step) == pytest.approx(sigma, rel=1e-3)


def test_ve_adds_noise_and_searches_the_lower_half_of_its_steps():
    schedule = VE(18)
    x0, noise = torch.randn(2, 100)
    torch.testing.assert_close(schedule.diffuse(x0, noise, 4), x0 + schedule.sigma(4) * noise)
    assert set(schedule.defaults) < set(schedule.timesteps) and len(VE(50).defaults) < 10
