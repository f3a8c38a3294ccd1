"""What holds for every family, on tiny random networks."""

import pytest
import torch


@pytest.fixture(scope="module")
def batch(tiny_backbone):
    torch.manual_seed(1)
    shape = (3, *tiny_backbone.encoder.shape)
    return torch.rand(shape) * 2 - 1, torch.randn(shape)


@pytest.fixture(scope="module")
def timestep(tiny_backbone):
    return tiny_backbone.schedule.defaults[:2][-1]


def test_blocks_lie_in_the_order_the_data_meets_them(tiny_backbone):
    names = [block.name for block in tiny_backbone.blocks]
    assert names == [spec.name for spec in tiny_backbone.specs] and len(set(names)) == len(names)
    shares = [block.flops_share for block in tiny_backbone.blocks]
    assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] <= 1 and shares[-1] > shares[0]


def test_activations_have_the_shapes_that_blocks_promise(tiny_backbone, batch, timestep):
    maps = tiny_backbone.activations(*batch, timestep, [block.name for block in tiny_backbone.blocks])
    for block in tiny_backbone.blocks:
        assert maps[block.name].shape == (3, block.channels, block.size, block.size)
        assert torch.isfinite(maps[block.name]).all() and maps[block.name].std() > 0


def test_stopping_at_the_deepest_block_changes_no_bit(tiny_backbone, batch, timestep):
    names = [block.name for block in tiny_backbone.blocks]
    whole = tiny_backbone.activations(*batch, timestep, names)
    for name in names:
        assert torch.equal(tiny_backbone.activations(*batch, timestep, [name])[name], whole[name])


def test_batch_size_does_not_matter(tiny_backbone, batch, timestep):
    names = [block.name for block in tiny_backbone.blocks]
    x0, noise = batch
    whole = tiny_backbone.activations(x0, noise, timestep, names)
    for row in range(len(x0)):
        alone = tiny_backbone.activations(x0[row : row + 1], noise[row : row + 1], timestep, names)
        for name in names:
            torch.testing.assert_close(alone[name][0], whole[name][row], rtol=1e-4, atol=1e-4)


def test_the_timestep_and_the_noise_reach_the_features(tiny_backbone, batch, timestep):
    name = tiny_backbone.blocks[-1].name
    x0, noise = batch
    first, again, later, other = (
        tiny_backbone.activations(x0, eps, t, [name])[name]
        for eps, t in (
            (noise, timestep),
            (noise, timestep),
            (noise, tiny_backbone.schedule.defaults[-1]),
            (-noise, timestep),
        )
    )
    assert torch.equal(first, again)
    noiseless = tiny_backbone.sigma(timestep) == 0
    assert torch.equal(first, later) is torch.equal(first, other) is noiseless
    assert noiseless or not (torch.allclose(first, later) or torch.allclose(first, other))


def test_sigma_grows_with_the_timestep(tiny_backbone):
    sigmas = [tiny_backbone.sigma(t) for t in tiny_backbone.schedule.timesteps]
    assert sigmas == sorted(sigmas) and (sigmas[0] > 0 or sigmas == [0])


def test_encoding_gives_what_the_network_takes(tiny_backbone):
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    x0 = tiny_backbone.encode(images)
    assert x0.shape == (2, *tiny_backbone.encoder.shape) and x0.dtype == torch.float32
    assert not torch.equal(x0[0], x0[1])
