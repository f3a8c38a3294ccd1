"""Every kind of network that pretrain.py makes can be sampled from, by the formula that it was trained by."""

import numpy as np
import pytest
import torch

from ddae.generation.sampling import sample
from ddae.pretraining.frameworks import FRAMEWORKS
from ddae.pretraining.networks import NETWORKS
from tests.sweeps.test_pretraining import DENOISERS, KINDS, level_of, saved, trained


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("network", DENOISERS)
def test_the_error_of_the_denoised_image_is_the_loss(tmp_path, family, network):
    training, _ = trained(tmp_path, family=family, network=network, ema_decay=0.5)
    backbone = saved(training, tmp_path / "model")
    x0 = backbone.encode(training.images.read(np.arange(4))).clone()
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    predict = NETWORKS[network].predict
    timesteps = backbone.schedule.timesteps
    for timestep in (timesteps[len(timesteps) // 5], timesteps[len(timesteps) // 2]):
        alpha, sigma = backbone.schedule.scales(timestep)
        weight = {"ddpm": (alpha / sigma) ** 2, "edm": (sigma**2 + 0.25) / (sigma * 0.5) ** 2, "flow": sigma**-2}
        dtype = torch.long if family == "ddpm" else torch.float32
        level = torch.full((4,), level_of(backbone, family, timestep, 1000), dtype=dtype)
        with torch.no_grad():
            found = backbone.denoise(backbone.noised(x0, noise, timestep), timestep)
            loss = FRAMEWORKS[family].loss(
                lambda x, time: predict(backbone.network, None, None, x, time), training.scheduler, x0, level, noise
            )
        assert float(weight[family] * (found - x0).square().mean()) == pytest.approx(float(loss), rel=2e-3)
    images = backbone.encoder.decode(sample(backbone, [0, 1], num_steps=3))
    assert (images.dtype, images.shape) == (torch.uint8, (2, 3, 8, 8))
