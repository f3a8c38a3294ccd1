"""Guidance takes the exact gradient at its price, moves every family by the same rule, and draws from the posterior."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddae.backbones import Backbone, Settings, load_backbone
from ddae.backbones.base import BlockSpec, Pixels
from ddae.backbones.hooks import hooked
from ddae.backbones.predictions import predicts
from ddae.generation.sampling import SAMPLERS, sample, steps_of
from ddae.guidance import Guide, GuidedNetwork, denoise_with_gradient, log_prob
from ddae.noise import VE, VP, Flow, image_noise
from tests.ddae.backbones.test_predictions import NEVER
from tests.ddae.backbones.tiny import TINY, edm_folder

SAMPLED = [name for name in TINY if name not in NEVER]


@pytest.fixture(scope="module", params=SAMPLED)
def network(request, tmp_path_factory, tiny_model):
    """As one finds it after features were taken, which some networks keep tensors of."""
    make = TINY[request.param]
    name = request.getfixturevalue(make) if isinstance(make, str) else make(tmp_path_factory.mktemp("n"), tiny_model)
    backbone = load_backbone(name)
    zeros = torch.zeros(1, *backbone.encoder.shape)
    backbone.activations(zeros, zeros, timestep_of(backbone), [backbone.blocks[0].name])
    return backbone


@pytest.fixture(scope="module")
def ddpm(tiny_model):
    return load_backbone(tiny_model)


def timestep_of(backbone):
    return backbone.schedule.defaults[2]


def images_at(backbone, timestep, number=3):
    alpha, sigma = backbone.schedule.scales(timestep)
    return math.hypot(alpha, sigma) * torch.randn(
        number, *backbone.encoder.shape, generator=torch.Generator().manual_seed(0)
    )


def some_logits(num_channels, num_classes=3):
    """Of a random head that listens to the noise level."""
    torch.manual_seed(2)
    head = nn.Sequential(nn.Linear(num_channels, 16), nn.SiLU(), nn.Linear(16, num_classes))

    def logits(map, log_sigma):
        scaled = nn.functional.layer_norm(map, map.shape[1:]).amax((2, 3))
        return head(scaled + 0.1 * log_sigma[:, None])

    return logits


def guide_of(backbone, scale, labels=(0, 1, 2), block=""):
    block = block or backbone.blocks[len(backbone.blocks) // 2].name
    return Guide(backbone, block, log_prob(some_logits(backbone.block(block).channels), labels), scale)


def read_of(guide, timestep, numbers):
    log_sigma = torch.full((len(numbers),), math.log(guide.backbone.sigma(timestep)))
    return lambda map: guide.scalar(map, log_sigma, numbers)


def some(blocks):
    """At most 12 of a network's blocks, all along it."""
    return blocks[:: -(-len(blocks) // 12)]


def through_the_whole_network(backbone, x_t, timestep, block, read):
    """The same with autograd alone, every graph kept."""
    maps = []
    x = x_t.clone().requires_grad_()
    with torch.enable_grad(), hooked({block: backbone.modules[block]}, lambda name, output: maps.append(output)):
        x0 = backbone.denoise(x, timestep)
        [gradient] = torch.autograd.grad(read(backbone.map_of(maps[0])).sum(), x)
    return x0.detach(), gradient


def test_one_pass_gives_x0_and_the_exact_gradient_at_a_block(network):
    timestep, numbers = timestep_of(network), np.arange(3)
    x_t = images_at(network, timestep)
    for block in some(network.blocks):
        read = read_of(guide_of(network, 1, block=block.name), timestep, numbers)
        found = denoise_with_gradient(network, x_t, timestep, block.name, read)
        expected = through_the_whole_network(network, x_t, timestep, block.name, read)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(expected[1].abs().max()))
        assert found[1].flatten(1).abs().amax(1).min() > 0


@pytest.mark.parametrize("sigma", [0.1, 80.0])
def test_the_gradient_is_that_to_the_image_as_it_enters_and_not_as_it_is_scaled(tmp_path, sigma):
    """Against differences: EDM's network sees x / hypot(sigma, sigma_data)."""
    backbone = load_backbone(edm_folder(tmp_path, ""), Settings(num_steps=18))
    backbone.network.double()
    timestep = min(backbone.schedule.timesteps, key=lambda t: abs(backbone.sigma(t) - sigma))
    guide, x_t = guide_of(backbone, 1), images_at(backbone, timestep, 1).double()
    block, read = guide.block, read_of(guide, timestep, np.arange(1))
    _, gradient = denoise_with_gradient(backbone, x_t, timestep, block, read)
    towards = gradient / gradient.norm()
    step = 3e-3 * backbone.sigma(timestep)

    def value(x):
        with torch.no_grad():
            return float(read(backbone.capture(x, timestep, [block], lambda map: map)[block].float()))

    slope = (value(x_t + step * towards) - value(x_t - step * towards)) / (2 * step)
    assert slope == pytest.approx(float(gradient.norm()), rel=0.05)


def test_nothing_after_the_block_keeps_a_graph_and_the_mode_is_as_before(network):
    timestep = timestep_of(network)
    guide = guide_of(network, 1, block=network.blocks[0].name)
    later = {name: module for name, module in network.modules.items() if name != guide.block}
    graphs = []
    with hooked(later, lambda name, output: graphs.append(network.map_of(output).requires_grad)):
        for enabled in (False, True):
            with torch.set_grad_enabled(enabled):
                assert not guide(images_at(network, timestep), timestep, np.arange(3)).requires_grad
                assert torch.is_grad_enabled() is enabled
    assert graphs and not any(graphs)
    assert all(weight.grad is None for weight in network.network.parameters())


def operations(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops(), counter.get_flop_counts()["Global"]


def test_a_guided_step_costs_1_plus_kappa_passes(network):
    """Counted. What may come on top is the products within attention, twice in the gradient; their share is counted."""
    timestep = timestep_of(network)
    x_t, numbers = images_at(network, timestep, 1), np.arange(1)
    with torch.no_grad():
        unguided, by_kind = operations(lambda: network.denoise(x_t, timestep))
    products = sum(count for kind, count in by_kind.items() if "attention" in str(kind) or "bmm" in str(kind))
    for block in some(network.blocks):
        guide = guide_of(network, 1, block=block.name)
        read = read_of(guide, timestep, numbers)
        map = torch.ones(1, block.channels, block.size, block.size, requires_grad=True)
        head, _ = operations(lambda read=read, map=map: torch.autograd.grad(read(map).sum(), map))
        guided, _ = operations(lambda guide=guide: guide(x_t, timestep, numbers))
        passes = (guided - head) / unguided
        assert passes <= guide.cost + 1.5 * products / unguided + 1e-6
        assert passes >= 1 + (guide.cost - 1) / 2 or block.flops_share < 0.05


def test_a_convolutional_network_costs_1_plus_kappa_to_the_digit(tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        16, 1, 1, block_out_channels=(16, 32), norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False,
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    x_t = images_at(backbone, 10, 1)
    for block in backbone.blocks:
        scalar = lambda map, log_sigma, numbers: map.sum((1, 2, 3))  # noqa: E731
        guide = Guide(backbone, block.name, scalar, 1)
        guided, _ = operations(lambda guide=guide: guide(x_t, 10, np.arange(1)))
        assert guided / backbone.flops == pytest.approx(guide.cost, rel=0.01)  # but the timestep's, which has no way


def test_scale_0_is_the_unguided_network_to_the_bit_and_for_its_price(network):
    timestep = timestep_of(network)
    x_t, guide = images_at(network, timestep), guide_of(network, 0)
    with torch.no_grad():
        assert torch.equal(guide(x_t, timestep, np.arange(3)), network.denoise(x_t, timestep))
        assert operations(lambda: guide(x_t, timestep, np.arange(3))) == operations(
            lambda: network.denoise(x_t, timestep)
        )
    assert torch.equal(sample(network, [4, 1], 0, 3, denoise=guide), sample(network, [4, 1], 0, 3))


def test_a_scalar_of_nothing_changes_nothing(ddpm):
    """The same pass with a gradient of zero: the network is not disturbed by it."""
    guide = Guide(ddpm, "mid", lambda map, log_sigma, numbers: 0 * map.sum((1, 2, 3)), 9)
    torch.testing.assert_close(sample(ddpm, [0, 1], 0, 5, denoise=guide), sample(ddpm, [0, 1], 0, 5))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_depends_on_seed_and_number_alone(ddpm, sampler):
    """Also its class, by its number."""
    guide = guide_of(ddpm, 3)
    together = sample(ddpm, range(5), 3, 6, sampler, guide)
    apart = torch.cat([sample(ddpm, [4, 1], 3, 6, sampler, guide), sample(ddpm, [0], 3, 6, sampler, guide)])
    torch.testing.assert_close(apart, together[[4, 1, 0]], atol=2e-3, rtol=1e-3)
    other = sample(ddpm, range(5), 3, 6, sampler, guide_of(ddpm, 3, labels=[1, 1, 1]))
    moved = (other - together).abs().amax((1, 2, 3)) > 1e-3
    assert moved.tolist() == [True, False, True, True, False]


def moved_by(backbone, sampler, step, scale=2.0):
    """(what guidance does to the end of a step without clipping, the gradient, x_t)."""
    guide, numbers = guide_of(backbone, scale), np.arange(3)
    x_t = images_at(backbone, step.timestep)
    ends = []
    for denoise in (guide, lambda x, t, numbers: backbone.denoise(x, t)):
        with torch.no_grad():
            seen = lambda x, t, denoise=denoise: denoise(x, t, numbers)  # noqa: E731
            ends.append(SAMPLERS[sampler](x_t, step, seen, lambda: torch.zeros_like(x_t)))
    read = read_of(guide, step.timestep, numbers)
    return ends[0] - ends[1], through_the_whole_network(backbone, x_t, step.timestep, guide.block, read)[1]


@pytest.mark.parametrize("number", [5, 30, 49])
def test_ddim_guides_by_algorithm_2_of_dhariwal_and_nichol(ddpm, number):
    """eps' = eps - s sqrt(1 - abar) g, then DDIM's own step."""
    step = steps_of(ddpm.schedule, 50)[number]
    moved, gradient = moved_by(ddpm, "ddim", step)
    eps_moved = -2.0 * step.sigma * gradient
    expected = step.next_alpha * -step.sigma / step.alpha * eps_moved + step.next_sigma * eps_moved
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()) + 1e-6)


@pytest.mark.parametrize("number", [300, 700, 999])
def test_ancestral_guides_by_algorithm_1_of_dhariwal_and_nichol(ddpm, number):
    """mu' = mu + s Sigma g, with Sigma = beta, the larger of DDPM's two, over sqrt(1 - beta), which is nearly 1."""
    step = steps_of(ddpm.schedule, 1000)[number]
    moved, gradient = moved_by(ddpm, "ancestral", step)
    keeps = (step.alpha / step.next_alpha) ** 2
    expected = 2.0 * (1 - keeps) / keeps**0.5 * gradient
    torch.testing.assert_close(moved, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()) + 1e-6)


def test_edm_guides_the_denoised_image(tmp_path):
    """D' = D + s sigma^2 g; Euler's slope is (x - D') / sigma."""
    backbone = load_backbone(edm_folder(tmp_path, ""), Settings(num_steps=12))
    step = steps_of(backbone.schedule, 12)[6]
    moved, gradient = moved_by(backbone, "euler", step)
    expected = (step.next_sigma - step.sigma) * -2.0 * step.sigma * gradient
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_flow_guides_its_velocity(tmp_path, tiny_model):
    """v' = v - s sigma / (1 - sigma) g, as the score is -(x + (1 - sigma) v) / sigma."""
    from diffusers import DDPMPipeline, FlowMatchEulerDiscreteScheduler, UNet2DModel

    unet = UNet2DModel.from_pretrained(f"{tiny_model}/unet")
    DDPMPipeline(unet, FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    steps = steps_of(backbone.schedule, 20)
    moved, gradient = moved_by(backbone, "euler", steps[8])
    expected = (steps[8].next_sigma - steps[8].sigma) * -2.0 * steps[8].sigma / steps[8].alpha * gradient
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert torch.isfinite(sample(backbone, [0], 0, 4, denoise=guide_of(backbone, 2.0))).all()  # from noise alone


MEAN, STD, SEEN, BLUR = 0.3, 0.2, 0.7, 0.15


class Ideal(nn.Module):
    """Denoises images whose pixels are normal with MEAN and STD; its block is x_t itself."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule, self.block = schedule, nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.block.weight)

    def forward(self, x, timestep):
        return mean_and_variance(self.block(x), *self.schedule.scales(timestep))[0]


def mean_and_variance(x_t, alpha, sigma):
    """Of x0, x_t being given."""
    variance = 1 / (1 / STD**2 + alpha**2 / sigma**2)
    return variance * (MEAN / STD**2 + alpha * x_t / sigma**2), variance


def observed(schedule):
    """ln p(SEEN | x_t) up to a constant, SEEN being x0 and normal noise of BLUR."""

    def scalar(map, log_sigma, numbers):
        ratio = float(log_sigma[0].double().exp())
        alpha = 1.0 if isinstance(schedule, VE) else (1 + ratio**2) ** -0.5
        alpha = 1 / (1 + ratio) if isinstance(schedule, Flow) else alpha
        mean, variance = mean_and_variance(map, alpha, alpha * ratio)
        return -((SEEN - mean) ** 2).sum((1, 2, 3)) / (2 * (variance + BLUR**2))

    return scalar


@pytest.mark.parametrize(
    "schedule", [VP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))), VE(200), Flow(1000)], ids=["vp", "ve", "flow"]
)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guided_samples_are_draws_from_the_posterior(schedule, sampler):
    """Bayes' rule, through every sampler: p(x0 | y) is normal, and known."""
    backbone = Backbone(
        Ideal(schedule), (BlockSpec("block", 0, "block"),), schedule, Pixels(8, 1),
        lambda x, timestep: {"x": x, "timestep": timestep}, "", denoised=predicts("sample", schedule),
    )  # fmt: skip
    found = sample(backbone, range(40), 1, 600, sampler, Guide(backbone, "block", observed(schedule), 1.0))
    variance = 1 / (1 / STD**2 + 1 / BLUR**2)
    assert found.mean() == pytest.approx(variance * (MEAN / STD**2 + SEEN / BLUR**2), abs=0.015)
    assert found.std() == pytest.approx(variance**0.5, rel=0.1)
    assert sample(backbone, range(40), 1, 600, sampler).mean() == pytest.approx(MEAN, abs=0.015)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_diffusers_pipeline_is_guided_in_place_of_its_network(tmp_path, tiny_model, kind, monkeypatch):
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
    from diffusers.pipelines.ddim import pipeline_ddim

    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=True, timestep_spacing="trailing")
    DDIMPipeline(UNet2DModel.from_pretrained(f"{tiny_model}/unet"), scheduler).save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    guide = guide_of(backbone, 3)

    pipeline = DDIMPipeline.from_pretrained(tmp_path)
    pipeline.unet = GuidedNetwork(guide, pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)

    def ours(shape, **options):
        return image_noise(np.arange(shape[0]), shape[1:], 0, 5)

    monkeypatch.setattr(pipeline_ddim, "randn_tensor", ours)
    options = {"num_inference_steps": 8, "use_clipped_model_output": True, "output_type": "np"}
    found = torch.from_numpy(pipeline(batch_size=3, **options).images).permute(0, 3, 1, 2)
    expected = sample(backbone, range(3), 5, 8, denoise=guide)
    torch.testing.assert_close(found, (expected / 2 + 0.5).clamp(0, 1), atol=2e-3, rtol=1e-3)
    assert not torch.allclose(found, (sample(backbone, range(3), 5, 8) / 2 + 0.5).clamp(0, 1), atol=1e-2)


def test_a_pipeline_of_other_noise_or_with_other_inputs_is_refused(ddpm, tmp_path):
    from diffusers import DDPMScheduler, EDMEulerScheduler

    for scheduler in (DDPMScheduler(beta_end=0.01), DDPMScheduler(100), EDMEulerScheduler()):
        with pytest.raises(ValueError, match="noises or predicts otherwise"):
            GuidedNetwork(guide_of(ddpm, 1), scheduler)
    edm = load_backbone(edm_folder(tmp_path, ""))
    with pytest.raises(ValueError, match="noises or predicts otherwise"):
        GuidedNetwork(guide_of(edm, 1), DDPMScheduler())
    network = GuidedNetwork(guide_of(ddpm, 1), DDPMScheduler())
    x = torch.zeros(2, 1, 16, 16)
    with pytest.raises(ValueError, match="gives its network encoder_hidden_states"):
        network(x, 5, encoder_hidden_states=x)
    for timestep in (torch.tensor([3, 4]), 2.5):
        with pytest.raises(ValueError, match="not one whole number"):
            network(x, timestep)


def test_bfloat16_gives_nearly_the_same_gradient(tiny_model, ddpm):
    half = load_backbone(tiny_model, Settings(precision="bfloat16"))
    x_t, numbers = images_at(ddpm, 100), np.arange(3)
    read = read_of(guide_of(ddpm, 1), 100, numbers)
    block = guide_of(ddpm, 1).block
    (_, one), (_, other) = (denoise_with_gradient(each, x_t, 100, block, read) for each in (ddpm, half))
    assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.98
    assert other.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "block", "scale", "said"),
    [
        ({"precision": "float16"}, "mid", 1, "precision='float16'"),
        ({"offload": True}, "mid", 1, "offload=True"),
        ({}, "up.9.9", 1, "block='up.9.9' is not in this backbone"),
        ({}, "mid", math.nan, "scale=nan is no finite number"),
        ({}, "mid", math.inf, "scale=inf is no finite number"),
    ],
)
def test_what_cannot_guide_is_refused(ddpm, settings, block, scale, said):
    backbone = replace(ddpm)
    backbone.settings = Settings(**settings)
    with pytest.raises(ValueError, match=said) as error:
        Guide(backbone, block, log_prob(some_logits(16), [0]), scale)
    assert "\n" not in str(error.value)


def test_a_scale_that_makes_no_number_is_named(ddpm):
    with pytest.raises(ValueError, match=r"scale=1e\+60 makes what is no number at timestep \d+; give a smaller"):
        sample(ddpm, [0], 0, 4, denoise=guide_of(ddpm, 1e60))


def test_a_block_without_a_gradient_is_named(ddpm):
    scalar = lambda map, log_sigma, numbers: map.detach().sum((1, 2, 3))  # noqa: E731
    with pytest.raises(ValueError, match="has no gradient to its input"):
        sample(ddpm, [0], 0, 4, denoise=Guide(ddpm, "mid", scalar, 1))
