import numpy as np
import torch

from ddae.noise import image_noise, vp_diffuse, vp_sigma

SHAPE = (1, 8, 8)


def test_noise_does_not_depend_on_the_batch():
    together = image_noise(np.arange(64), SHAPE, timestep=30, seed=0)
    alone = torch.cat([image_noise(np.array([i]), SHAPE, timestep=30, seed=0) for i in range(64)])
    assert torch.equal(together, alone)


def test_noise_differs_by_seed_timestep_image_and_draw():
    draws = [
        image_noise(np.array([i]), SHAPE, timestep=t, seed=s, draw=d)
        for s in (0, 1)
        for t in (0, 1)
        for i in (0, 1)
        for d in (0, 1)
    ]
    stacked = torch.cat(draws).flatten(1)
    assert len(torch.unique(stacked, dim=0)) == 16
    assert torch.corrcoef(stacked).fill_diagonal_(0).abs().max() < 0.5


def test_noise_is_standard_normal():
    noise = image_noise(np.arange(2000), SHAPE, timestep=5, seed=3)
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_vp_keeps_the_variance_and_its_sigma_is_the_ratio():
    x0, noise = torch.randn(2, 100_000)
    assert abs(vp_diffuse(x0, noise, 0.3).std() - 1) < 0.02
    assert vp_diffuse(torch.ones(1), torch.zeros(1), 0.25) == 0.5
    assert vp_sigma(0.5) == 1
