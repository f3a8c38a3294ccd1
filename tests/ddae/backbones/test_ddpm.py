import logging
from math import log

import pytest
import torch
import yaml
from torch.nn import functional

from ddae.backbones import Settings, load_backbone
from ddae.backbones.ddpm import from_state
from tests.ddae.backbones import official

DDPM = {"model_type": "DDPM", "diffusion": {"n_T": 1000, "betas": [1e-4, 0.02]}}
EDM = {"model_type": "EDM", "diffusion": {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80, "rho": 7}}


@pytest.fixture
def load(tmp_path):
    """(YAML beside the file, layout) -> (official tensors, backbone)."""

    def load(options, name="model.pth", num_steps=18, **layout):
        state = official.random_state(official.ddae_shapes(**layout))
        path = tmp_path / name
        path.with_suffix(".yaml").write_text(yaml.dump(options))
        return state, from_state(state, path, "random", Settings(num_steps=num_steps))

    return load


def official_outputs(state, x, condition, head_channels=None):
    """out_1, out_2, ... from the official tensors, by the equations of Ho et al. 2020."""
    half = state["time_emb.lin1.weight"].shape[1] // 2
    angles = condition * 10000 ** (-torch.arange(half)[None] / (half - 1))

    def apply(operation, name, h, **how):
        return operation(h, weight=state[f"{name}.weight"], bias=state[f"{name}.bias"], **how)

    def norm(name, h):
        return apply(functional.group_norm, name, h, num_groups=32)

    def conv(name, h, **how):
        return apply(functional.conv2d, name, h, **how)

    def double(h):
        return h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    def halve(h):
        return functional.avg_pool2d(h, 2)

    def same(h):
        return h

    time = apply(functional.linear, "time_emb.lin1", torch.cat([angles.sin(), angles.cos()], dim=1))
    time = functional.silu(apply(functional.linear, "time_emb.lin2", functional.silu(time)))

    def residual(name, h, resample=same):
        inner = conv(f"{name}.conv1", resample(functional.silu(norm(f"{name}.norm1", h))), padding=1)
        inner = norm(f"{name}.norm2", inner + apply(functional.linear, f"{name}.time_emb.1", time)[..., None, None])
        inner = conv(f"{name}.conv2.1", functional.silu(inner), padding=1)
        h = resample(h)
        return inner + (conv(f"{name}.shortcut", h) if f"{name}.shortcut.weight" in state else h)

    def attend(name, h):
        n, c, *size = h.shape
        heads = c // (head_channels or c)
        tokens = norm(f"{name}.norm", h).flatten(2).transpose(1, 2)
        qkv = apply(functional.linear, f"{name}.projection", tokens).unflatten(2, (heads, 3, -1))
        q, k, v = qkv.transpose(1, 2).unbind(3)
        mixed = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v
        mixed = apply(functional.linear, f"{name}.output", mixed.transpose(1, 2).flatten(2))
        return h + mixed.transpose(1, 2).reshape(n, c, *size)

    def run(name, h, resample):
        if f"{name}.op.norm1.weight" in state:
            return residual(f"{name}.op", h, resample)
        if f"{name}.conv.weight" in state:
            if resample is halve:
                return conv(f"{name}.conv", h, stride=2, padding=1)
            return conv(f"{name}.conv", double(h), padding=1)
        h = residual(f"{name}.res", h)
        return attend(f"{name}.attn", h) if f"{name}.attn.norm.weight" in state else h

    down, up = (len({name.split(".")[1] for name in state if name.startswith(f"{way}.")}) for way in ("down", "up"))
    skips = [conv("image_proj", x, padding=1)]
    for k in range(down):
        skips.append(run(f"down.{k}", skips[-1], halve))
    h = residual("middle.res2", attend("middle.attn", residual("middle.res1", skips[-1])))
    outputs = []
    for k in range(up):
        if f"up.{k}.res.norm1.weight" in state:
            h = run(f"up.{k}", torch.cat([h, skips.pop()], dim=1), same)
            outputs.append(h)
        else:
            h = run(f"up.{k}", h, double)
    h = functional.group_norm(h, 8, state["norm.weight"], state["norm.bias"])
    return [*outputs, conv("final", functional.silu(h), padding=1)]


@pytest.mark.parametrize(
    ("options", "timestep", "condition", "layout", "network"),
    [
        (DDPM, 11, 0.011, {"n_blocks": 2}, {}),
        (DDPM, 1000, 1.0, {"ch_mults": (2, 2), "n_blocks": 2, "use_res_for_updown": True}, {}),
        (EDM, 4, log(0.05995) / 4, {"ch_mults": (1, 1, 2), "attention": (0, 2)}, {"attn_channels_per_head": 16}),
        (EDM, 18, log(80) / 4, {"ch_mults": (2, 2, 2), "use_res_for_updown": True, "augment_dim": 9}, {}),
    ],
)
def test_every_block_is_what_the_official_tensors_give(load, options, timestep, condition, layout, network):
    state, backbone = load(options | {"network": {"image_shape": [3, 16, 16], **network}}, **layout)
    x0, noise = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 3, 16, 16)
    up = [block for block in backbone.blocks if block.stage == "up"]
    assert [block.alias for block in up] == [f"out_{k + 1}" for k in range(len(up))]
    maps = backbone.activations(x0, noise, timestep, [block.name for block in up])
    x_t = backbone.noised(x0, noise, timestep)
    inputs = backbone.inputs(x_t, timestep)
    if options is EDM:
        x_t = x_t / (backbone.sigma(timestep) ** 2 + 0.25) ** 0.5
    assert inputs["timestep"].tolist() == pytest.approx([condition] * 2, abs=1e-4)
    outputs = official_outputs(state, x_t, inputs["timestep"][0], network.get("attn_channels_per_head"))
    for block, output in zip(up, outputs, strict=False):
        torch.testing.assert_close(maps[block.name], output, rtol=0, atol=1e-5 * output.abs().max().item())
    with torch.no_grad():
        torch.testing.assert_close(backbone.network(**inputs).sample, outputs[-1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("layout", "millions", "num_outputs", "best"),
    [
        ({"ch_mults": (1, 2, 2, 2), "n_blocks": 2}, 35.7, 12, ("out_7", "up_blocks.2.attentions.0", 16)),
        (
            {"ch_mults": (2, 2, 2), "n_blocks": 4, "use_res_for_updown": True, "augment_dim": 9},
            56.5,
            15,
            ("out_6", "up_blocks.1.attentions.0", 16),
        ),
    ],
)
def test_published_networks_have_the_blocks_that_the_paper_counts(tmp_path, layout, millions, num_outputs, best):
    shapes = official.ddae_shapes(n_channels=128, attention=(1,), **layout)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    backbone = from_state(state, tmp_path / "model.pth", "shapes", Settings(device="meta"))
    assert round(sum(p.numel() for p in backbone.network.parameters()) / 1e6, 1) == millions
    assert {each.eps for each in backbone.network.modules() if isinstance(each, torch.nn.GroupNorm)} == {1e-5}
    blocks = {block.alias: block for block in backbone.blocks if block.alias}
    assert list(blocks) == [f"out_{k}" for k in range(1, num_outputs + 1)]
    assert (blocks[best[0]].module, blocks[best[0]].size) == best[1:] and blocks[best[0]].channels == 256


def test_ddpm_counts_timesteps_as_the_paper_does(load):
    schedule = load(DDPM)[1].schedule
    assert schedule.timesteps == range(1, 1001) and schedule.sigma(1) == pytest.approx((1e-4 / (1 - 1e-4)) ** 0.5)
    alphas = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    assert schedule.sigma(11) == pytest.approx(((1 - alphas[10]) / alphas[10]).item() ** 0.5)
    assert schedule.diffuse(torch.ones(1), torch.zeros(1), 11).item() == pytest.approx(alphas[10].item() ** 0.5)


def test_edm_counts_steps_of_its_sampler(load):
    assert load(EDM)[1].sigma(4) == pytest.approx(0.05995, rel=1e-3)
    assert load(EDM, num_steps=50)[1].sigma(14) == pytest.approx(0.2070, rel=1e-3)
    other = {"model_type": "EDM", "diffusion": {"sigma_data": 1.0, "sigma_max": 50}}
    backbone = load(other)[1]
    assert backbone.sigma(18) == pytest.approx(50)
    assert backbone.inputs(torch.ones(1, 3, 32, 32), 18)["sample"].max().item() == pytest.approx(1 / (50**2 + 1) ** 0.5)


@pytest.mark.parametrize(("name", "first"), [("output_EDM_ddpm.pth", 0.002), ("output_DDPM_ddpm.pth", 0.01)])
def test_without_its_yaml_the_path_tells_the_diffusion(load, caplog, name, first):
    with caplog.at_level(logging.WARNING, "ddae"):
        _, backbone = load({}, name)
    assert backbone.sigma(1) == pytest.approx(first, rel=1e-3) and "does not say how it was diffused" in caplog.text


def test_a_diffusion_that_is_not_known_is_refused(load):
    with pytest.raises(ValueError, match="model_type='VDM'"):
        load({"model_type": "VDM"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": {"image_shape": "32"}}, "image_shape='32'; it must be a list"),
        ({"network": {"image_shape": [1, 16, 16]}}, r"image_shape=\[1, 16, 16\]; it must be \[3, height, width\]"),
        (
            {"network": {"attn_channels_per_head": "16"}},
            "attn_channels_per_head='16'; it must be a whole number or None",
        ),
        ({"network": {"n_channels": 64}}, "says n_channels=64, but the tensors have 32"),
        ({"network": {"ch_mults": [1, 2]}}, r"says ch_mults=\[1, 2\], but the tensors have \[1, 2, 2\]"),
        ({"network": {"is_attn": [True, True, False]}}, r"says is_attn=\[True, True, False\], but the tensors have"),
        ({"network": {"use_res_for_updown": True}}, "says use_res_for_updown=True, but the tensors have False"),
        ({"network": {"use_res_for_updown": "no"}}, "use_res_for_updown='no'; it must be true or false"),
        ({"network": {"atn_channels_per_head": 16}}, "did you mean 'attn_channels_per_head'"),
        ({"network": [1]}, r"network=\[1\]; it must be a mapping"),
        ({"diffusion": {"n_T": True}}, "n_T=True; it must be a whole number"),
        ({"diffusion": {"n_T": 0}}, "n_T=0"),
        ({"diffusion": {"betas": [0.02]}}, r"betas=\[0.02\]"),
        ({"diffusion": {"betas": ["1e-4", 0.02]}}, "'1e-4'"),
        ({"model_type": "EDM", "diffusion": {"sigma_data": "0.5"}}, "sigma_data='0.5'; it must be a number"),
    ],
)
def test_options_of_wrong_types_or_against_the_tensors_are_refused(load, options, message):
    with pytest.raises(ValueError, match=message):
        load({"model_type": "DDPM", **options})


def test_all_that_nothing_tells_is_named(load, caplog):
    load({"model_type": "DDPM"})
    assert "n_T=1000, betas=[0.0001, 0.02]" in caplog.text and "image_shape=[3, 32, 32]" in caplog.text
    caplog.clear()
    load(DDPM | {"network": {"image_shape": [3, 16, 16]}})
    load(EDM | {"network": {"image_shape": [3, 16, 16]}})
    assert not caplog.text


def test_the_moving_average_of_a_training_checkpoint_is_read(tmp_path):
    state = official.random_state(official.ddae_shapes())
    averaged = {f"ema_model.nn_model.{name}": tensor for name, tensor in state.items()}
    online = {f"online_model.nn_model.{name}": -tensor for name, tensor in state.items()}
    trained = {f"module.nn_model.{name}": -tensor for name, tensor in state.items()}
    torch.save({"MODEL": trained, "EMA": averaged | online | {"step": torch.tensor(1)}}, tmp_path / "model.pth")
    backbone = load_backbone(str(tmp_path / "model.pth"))
    assert torch.equal(backbone.network.conv_in.weight, state["image_proj.weight"])
