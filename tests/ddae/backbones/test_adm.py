import json
import logging
from math import cos, log, pi

import pytest
import torch
from torch.nn import functional

from ddae.backbones import Settings, load_backbone
from ddae.backbones.adm import from_state, noise_schedule
from ddae.backbones.unets import openai_specs
from tests.ddae.backbones import official

META = Settings(device="meta")
IMAGENET_256 = {
    "num_channels": 256,
    "widths": (256, 256, 512, 512, 1024, 1024),
    "attention": (3, 4, 5),
    "num_res_blocks": 2,
}
TINY = {"image_size": 16, "num_head_channels": 32}


@pytest.fixture
def load(tmp_path):
    """(options beside the file, layout) -> (official tensors, backbone)."""

    def load(options, **layout):
        state = official.random_state(official.adm_shapes(**layout))
        path = tmp_path / "model.pt"
        path.with_suffix(".json").write_text(json.dumps(options))
        return state, from_state(state, path, "random", Settings())

    return load


@pytest.fixture
def load_shapes(tmp_path):
    """(layout) -> a backbone without weights, however large. other: tensors besides, or of another shape."""

    def load_shapes(settings=META, other=None, **layout):
        shapes = official.adm_shapes(**layout) | (other or {})
        state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        return from_state(state, tmp_path / "model.pt", "shapes", settings)

    return load_shapes


def official_activations(state, x, t, num_res_blocks, heads, new_order, head_channels=None):
    """Every block's output from the official tensors, by the equations of Dhariwal & Nichol 2021 and Ho et al. 2020."""
    half = state["time_embed.0.weight"].shape[1] // 2
    angles = t * 10000 ** (-torch.arange(half)[None] / half)

    def apply(operation, name, h, **how):
        return operation(h, weight=state[f"{name}.weight"], bias=state[f"{name}.bias"], **how)

    def norm(name, h):
        return apply(functional.group_norm, name, h, num_groups=32)

    def conv(name, h, **how):
        return apply(functional.conv2d, name, h, **how)

    time = apply(functional.linear, "time_embed.0", torch.cat([angles.cos(), angles.sin()], dim=1))
    time = functional.silu(apply(functional.linear, "time_embed.2", functional.silu(time)))

    def residual(name, h, resample):
        inner = conv(f"{name}.in_layers.2", resample(functional.silu(norm(f"{name}.in_layers.0", h))), padding=1)
        h = resample(h)
        told = apply(functional.linear, f"{name}.emb_layers.1", time)[..., None, None]
        if told.shape[1] == inner.shape[1]:
            inner = norm(f"{name}.out_layers.0", inner + told)
        else:
            scale, shift = told.chunk(2, dim=1)
            inner = norm(f"{name}.out_layers.0", inner) * (1 + scale) + shift
        inner = conv(f"{name}.out_layers.3", functional.silu(inner), padding=1)
        return inner + (conv(f"{name}.skip_connection", h) if f"{name}.skip_connection.weight" in state else h)

    def attend(name, h):
        n, c, *size = h.shape
        qkv = apply(functional.conv1d, f"{name}.qkv", norm(f"{name}.norm", h).flatten(2))
        num_heads = c // head_channels if head_channels else heads
        qkv = (
            qkv.unflatten(1, (3, num_heads, -1)) if new_order else qkv.unflatten(1, (num_heads, 3, -1)).transpose(1, 2)
        )
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        mixed = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v
        mixed = mixed.transpose(-1, -2).reshape(n, c, -1)
        return h + apply(functional.conv1d, f"{name}.proj_out", mixed).reshape(n, c, *size)

    def double(h):
        return h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    def halve(h):
        return functional.avg_pool2d(h, 2)

    def same(h):
        return h

    def run(block, h, resample):
        for name in (f"{block}.{i}" for i in range(3)):
            resamples = block.startswith("input_blocks") or not name.endswith(".0")
            if f"{name}.in_layers.0.weight" in state:
                h = residual(name, h, resample if resamples else same)
            elif f"{name}.qkv.weight" in state:
                h = attend(name, h)
            elif f"{name}.op.weight" in state:
                h = conv(f"{name}.op", h, stride=2, padding=1)
            elif f"{name}.conv.weight" in state:
                h = conv(f"{name}.conv", double(h), padding=1)
        return h

    per_level, count = num_res_blocks + 1, len({name.split(".")[1] for name in state if name.startswith("output")})
    outputs = [conv("input_blocks.0.0", x, padding=1)]
    for b in range(1, count):
        outputs.append(run(f"input_blocks.{b}", outputs[-1], same if b % per_level else halve))
    skips = list(outputs)
    outputs.append(run("middle_block", outputs[-1], same))
    for b in range(count):
        h = torch.cat([outputs[-1], skips.pop()], dim=1)
        outputs.append(run(f"output_blocks.{b}", h, same if (b + 1) % per_level else double))
    return outputs


@pytest.mark.parametrize(
    ("layout", "options", "heads"),
    [
        ({"attention": ()}, {"num_heads": 4}, 4),
        ({"attention": (0, 1, 2), "widths": (64, 64, 64), "num_res_blocks": 2}, {"num_head_channels": 32}, 2),
        ({"attention": (1, 2)}, {"num_heads": 4, "use_new_attention_order": True}, 4),
        ({"resample": "conv", "attention": (1,), "num_res_blocks": 3}, {"num_head_channels": 16}, 4),
        ({"resample": "conv", "attention": (0, 2), "scale_shift": False}, {"num_heads": 1}, 1),
        ({"scale_shift": False, "widths": (32,), "attention": ()}, {"num_heads": 2}, 2),
        ({"num_channels": 64, "widths": (32, 64)}, {"num_head_channels": 32}, 2),
    ],
)
def test_every_block_is_what_the_official_tensors_give(load, layout, options, heads):
    state, backbone = load({"image_size": 16, **options}, **layout)
    x0, noise = torch.randn(2, 2, 3, 16, 16)
    names = [block.name for block in backbone.blocks]
    maps = backbone.activations(x0, noise, 90, names)
    x_t = backbone.noised(x0, noise, 90)
    new_order = options.get("use_new_attention_order", False)
    outputs = official_activations(state, x_t, 90, layout.get("num_res_blocks", 1), heads, new_order)
    for name, output in zip(names, outputs, strict=True):
        torch.testing.assert_close(maps[name], output, rtol=0, atol=1e-5 * output.abs().max().item())


def test_the_imagenet_256_network_has_the_blocks_that_papers_count(load_shapes):
    backbone = load_shapes(**IMAGENET_256)
    assert round(sum(p.numel() for p in backbone.network.parameters()) / 1e6, 1) == 552.8
    assert [block.alias for block in backbone.blocks] == [f"b{b}" for b in range(1, 38)]
    assert [block.index for block in backbone.blocks] == list(range(1, 38))
    blocks = {block.alias: block for block in backbone.blocks}
    assert (blocks["b1"].name, blocks["b1"].module) == ("in", "conv_in")
    assert blocks["b4"].module == "down_blocks.0.downsamplers.0" and blocks["b4"].size == 128
    assert (blocks["b19"].name, blocks["b19"].module, blocks["b19"].size) == ("mid", "mid_block", 8)
    best = blocks["b24"]
    assert (best.name, best.module, best.channels, best.size) == ("up.1.1", "up_blocks.1.attentions.1", 1024, 16)
    assert best.flops_share == pytest.approx(0.285, abs=5e-4)
    assert (blocks["b37"].module, blocks["b37"].size) == ("up_blocks.5.resnets.2", 256)
    assert {each.heads for each in attentions(backbone)} == {512 // 64, 1024 // 64}
    assert {each.eps for each in backbone.network.modules() if isinstance(each, torch.nn.GroupNorm)} == {1e-5}
    assert backbone.image_size == 256 and backbone.sigma(0) == pytest.approx(0.0001**0.5, rel=1e-3)


def attentions(backbone):
    return [each for name, each in backbone.network.named_modules() if name.split(".")[-2:-1] == ["attentions"]]


@pytest.mark.parametrize(
    ("num_channels", "widths", "num_res_blocks", "image_size", "heads", "sigma_0"),
    [
        (192, (192, 384, 576, 768), 3, 64, {384 // 64, 576 // 64, 768 // 64}, 0.0064),
        (256, (256, 256, 512, 768, 1024), 2, 128, {4}, 0.01),
        (256, (128, 256, 256, 512, 512, 1024, 1024), 2, 512, {512 // 64, 1024 // 64}, 0.01),
    ],
)
def test_published_checkpoints_need_no_options(
    load_shapes, num_channels, widths, num_res_blocks, image_size, heads, sigma_0
):
    attention = range(len(widths) - 3, len(widths))
    backbone = load_shapes(num_channels=num_channels, widths=widths, attention=attention, num_res_blocks=num_res_blocks)
    assert backbone.image_size == image_size and {each.heads for each in attentions(backbone)} == heads
    assert backbone.sigma(0) == pytest.approx(sigma_0, rel=0.01)


@pytest.mark.parametrize("resample", ["resnet", "conv", ""])
@pytest.mark.parametrize("num_res_blocks", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
@pytest.mark.parametrize("attention", [(), (0, 1, 2), (2,)])
def test_layouts_are_told_by_their_tensors(load_shapes, resample, num_res_blocks, attention):
    layout = {"widths": (64, 128, 64), "attention": attention, "num_res_blocks": num_res_blocks, "resample": resample}
    backbone = load_shapes(Settings(device="meta", image_size=16), num_channels=64, **layout)
    n = num_res_blocks + 1
    sizes = [block.size for block in backbone.blocks]
    assert len(sizes) == 2 * 3 * n + 1 and sizes[: 3 * n] == [16] * n + [8] * n + [4] * n
    assert sizes[3 * n] == 4 and sizes[3 * n + 1 :] == [4] * (n - 1) + [8] * n + [16] * (n + 1)
    assert len(attentions(backbone)) == 1 + len(attention) * (2 * num_res_blocks + 1)


def test_the_up_path_can_have_its_own_number_of_heads(load):
    _, backbone = load({"image_size": 16, "num_heads": 4, "num_heads_upsample": 2}, attention=(1, 2))
    modules = backbone.network.named_modules()
    heads = {name.split("_")[0]: each.heads for name, each in modules if hasattr(each, "heads")}
    assert heads == {"down": 4, "up": 2, "mid": 4}


def test_all_that_nothing_tells_is_named(load_shapes, load, caplog):
    with caplog.at_level(logging.WARNING, "ddae"):
        load_shapes(Settings(device="meta", image_size=16), num_channels=64, widths=(64, 64))
    named = "num_head_channels=64, use_new_attention_order=False, diffusion_steps=1000, noise_schedule=linear"
    assert f"nothing beside it says, {named}; taking these" in caplog.text
    caplog.clear()
    told = {"use_new_attention_order": False, "diffusion_steps": 1000, "noise_schedule": "linear"}
    load(TINY | told)
    assert not caplog.text
    for name in told:
        caplog.clear()
        load(TINY | {other: told[other] for other in told if other != name})
        assert f"nothing beside it says, {name}={told[name]}; taking" in caplog.text


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (
            {"num_channels": 128, "widths": (128, 256, 256, 256), "num_res_blocks": 3},
            "image_size=32, num_heads=4, use_new_attention_order=False, diffusion_steps=4000, noise_schedule=cosine, "
            "rescale_timesteps=True",
        ),
        (
            {"num_channels": 192, "widths": (192, 384, 576, 768), "num_res_blocks": 3},
            "image_size=64, num_heads=4, use_new_attention_order=False, diffusion_steps=4000, noise_schedule=cosine, "
            "rescale_timesteps=False",
        ),
        (
            {"num_channels": 128, "widths": (128, 128, 256, 256, 512, 512), "scale_shift": False, "num_res_blocks": 2},
            "image_size=256, num_heads=1, use_new_attention_order=False, diffusion_steps=1000, noise_schedule=linear",
        ),
    ],
    ids=["CIFAR-10", "ImageNet-64 with classes", "LSUN"],
)
def test_published_networks_of_improved_diffusion_are_run_as_its_flags_say(load_shapes, caplog, layout, expected):
    backbone = load_shapes(resample="conv", attention=(len(layout["widths"]) - 2,), **layout)
    assert f"nothing beside it says, {expected}; taking these" in caplog.text
    steps, heads = (1000, 1) if "1000" in expected else (4000, 4)
    assert len(backbone.schedule.timesteps) == steps and {each.heads for each in attentions(backbone)} == {heads}
    time = 700 / 4 if "timesteps=True" in expected else 700
    assert backbone.inputs(torch.zeros(1, 3, 8, 8), 700)["timestep"].item() == time


@pytest.mark.parametrize("options", [{}, {"num_head_channels": 32, "sigma_max": 40.0}])
@pytest.mark.parametrize("scale_shift", [True, False])
def test_consistency_models_are_told_by_their_attention(tmp_path, options, scale_shift, caplog):
    """And run with EDM's preconditioning, all queries before all keys, and ln(sigma) / 4 times a thousand as time."""
    state = official.random_state(official.adm_shapes(attention=(1, 2), scale_shift=scale_shift, widths=(64, 64, 128)))
    images = {name: each[..., None] if ".1.qkv." in name and each.ndim == 3 else each for name, each in state.items()}
    images = {
        name: each[..., None] if ".1.proj_out." in name and each.ndim == 3 else each for name, each in images.items()
    }
    torch.save(images, tmp_path / "cd.pt")
    (tmp_path / "cd.json").write_text(json.dumps({"image_size": 16, **options}))
    backbone = load_backbone(str(tmp_path / "cd.pt"))
    x0, noise = torch.randn(2, 2, 3, 16, 16)
    sigma = backbone.sigma(7)
    low, high = 0.002 ** (1 / 7), options.get("sigma_max", 80) ** (1 / 7)
    assert sigma == pytest.approx((low + 6 / 17 * (high - low)) ** 7)
    x = (x0 + sigma * noise) / (sigma**2 + 0.25) ** 0.5
    head_channels = options.get("num_head_channels", 64)
    outputs = official_activations(state, x, 250 * log(sigma), 1, None, True, head_channels)
    maps = backbone.activations(x0, noise, 7, [block.name for block in backbone.blocks])
    for map, output in zip(maps.values(), outputs, strict=True):
        torch.testing.assert_close(map, output, rtol=0, atol=1e-5 * output.abs().max().item())
    assert "diffusion_steps" not in caplog.text and ("num_head_channels=64" in caplog.text) == (not options)


def test_classes_are_left_out_with_a_warning(load, tmp_path, caplog):
    state, without = load(TINY)
    with caplog.at_level(logging.WARNING, "ddae"):
        state["label_emb.weight"] = torch.randn(10, 128)
        conditional = from_state(state, tmp_path / "model.pt", "", Settings())
    assert "class-conditional" in caplog.text
    batch = torch.randn(2, 1, 3, 16, 16)
    first, second = (each.activations(*batch, 5, ["mid"])["mid"] for each in (conditional, without))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ({}, {"num_head_channels": 32}, "image_size in the .json"),
        ({}, {"image_size": 16, "num_head_channels": 48}, "64 channels cannot have num_head_channels=48"),
        ({}, {"image_size": 16, "num_heads": 3}, "num_heads=3"),
        ({}, {"image_size": 18, "num_heads": 4}, "multiples of 4"),
        ({}, TINY | {"noise_schedule": "sqrt"}, "'linear' or 'cosine'"),
        ({}, TINY | {"num_channels": 64}, "says num_channels=64, but its tensors have 32"),
        ({}, TINY | {"learn_sigma": False}, "says learn_sigma=False, but its tensors have True"),
        ({}, TINY | {"class_cond": True}, "says class_cond=True, but its tensors have False"),
        ({}, TINY | {"resblock_updown": False}, "says resblock_updown=False, but its tensors have True"),
        ({}, TINY | {"attention_resolutions": "16"}, "says attention_resolutions=16, but its tensors have .8"),
        ({}, TINY | {"channel_mult": "1,2"}, "says channel_mult=1,2, but its tensors have"),
        ({}, TINY | {"use_new_attention_order": "False"}, "'False'; it must be true or false"),
        ({}, TINY | {"use_new_attention_order": 0}, "=0; it must be true or false"),
        ({}, TINY | {"diffusion_steps": "4000"}, "'4000'; it must be a whole number"),
        ({}, TINY | {"diffusion_steps": 4000.0}, "4000.0; it must be a whole number"),
        ({}, TINY | {"diffusion_steps": True}, "=True; it must be a whole number"),
        ({}, TINY | {"diffusion_steps": [4000]}, r"\[4000\]; it must be a whole number"),
        ({}, TINY | {"diffusion_steps": 0}, "diffusion_steps=0; give 1 or more"),
        ({}, TINY | {"num_head_channels": 0}, "num_head_channels=0; give 1 or more"),
        ({}, TINY | {"noise_shedule": "cosine"}, "'noise_shedule' is no option .* did you mean 'noise_schedule'"),
        ({}, TINY | {"model_type": "EDM"}, "model_type='EDM'; it must be 'ADM' or 'consistency'"),
        ({}, TINY | {"model_type": "consistency"}, "says model_type=consistency, but its tensors have ADM"),
        ({}, TINY | {"diffusion_step": 4000}, "did you mean 'diffusion_steps'"),
        ({"other": {"input_blocks.0.0.weight": (32, 6, 3, 3)}}, TINY, "takes 6 channels"),
        ({"other": {"out.4.weight": (3,)}}, TINY, "out.4.weight"),
        ({"other": {"middle_block.0.skip_connection.weight": (64, 64, 3, 3)}}, TINY, "skip_connection|conv_shortcut"),
    ],
)
def test_what_cannot_be_loaded_exactly_is_refused_in_one_line(load_shapes, tmp_path, layout, options, message):
    (tmp_path / "model.json").write_text(json.dumps(options))
    with pytest.raises(ValueError, match=message) as refusal:
        load_shapes(**layout)
    assert "\n" not in str(refusal.value)


def test_flags_that_agree_with_the_tensors_or_mean_nothing_are_taken(load, caplog):
    flags = {"attention_resolutions": "8,2", "channel_mult": "1,2,2", "learn_sigma": True, "class_cond": False}
    load(
        TINY
        | flags
        | {"dropout": 0.1, "use_fp16": True, "channel_mult": [1, 2, 2], "my_note": "x", "num_classes": 1000}
    )
    load(TINY | flags | {"channel_mult": ""})
    assert "my_note, num_classes mean nothing here" in caplog.text and "dropout" not in caplog.text


def test_a_classifier_is_refused(tmp_path):
    shapes = {name: shape for name, shape in official.adm_shapes().items() if not name.startswith("output_blocks")}
    torch.save(official.random_state(shapes), tmp_path / "classifier.pt")
    with pytest.raises(ValueError, match="no output_blocks"):
        load_backbone(str(tmp_path / "classifier.pt"))


def test_noise_is_the_one_that_was_published():
    linear, cosine = noise_schedule("linear", 1000), noise_schedule("cosine", 1000)
    assert linear.alphas_cumprod[0] == pytest.approx(1 - 1e-4) and len(linear.timesteps) == 1000
    assert linear.alphas_cumprod[1] == pytest.approx((1 - 1e-4) * (1 - 1e-4 - (0.02 - 1e-4) / 999))
    assert noise_schedule("linear", 250).sigma(249) == pytest.approx(linear.sigma(999), rel=0.2)
    for t in (0, 90, 500):
        ends = [cos((step / 1000 + 0.008) / 1.008 * pi / 2) ** 2 for step in (t + 1, 0)]
        assert cosine.alphas_cumprod[t] == pytest.approx(ends[0] / ends[1])


def test_timesteps_are_rescaled_where_training_did(load):
    plain, rescaled = (
        load({**TINY, "diffusion_steps": 4000, "noise_schedule": "cosine", "rescale_timesteps": scaled})[1]
        for scaled in (False, True)
    )
    x = torch.zeros(2, 3, 16, 16)
    assert plain.inputs(x, 3000)["timestep"].tolist() == [3000, 3000]
    assert rescaled.inputs(x, 3000)["timestep"].tolist() == [750, 750]


def test_diffusers_folders_of_this_shape_are_counted_the_same(load, tmp_path):
    _, backbone = load(TINY, resample="resnet", num_res_blocks=2)
    folder = tmp_path / "unet"
    network = backbone.network
    network.register_to_config(attention_head_dim=32)
    network.save_pretrained(folder)
    again = load_backbone(str(folder))
    assert again.blocks == backbone.blocks
    batch = torch.randn(2, 1, 3, 16, 16)
    for name, map in backbone.activations(*batch, 90, ["up.0.2", "up.2.2"]).items():
        torch.testing.assert_close(again.activations(*batch, 90, [name])[name], map, rtol=1e-4, atol=1e-4)


def test_stable_diffusion_has_25_blocks_by_the_same_counting():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    specs = {spec.index: spec for spec in openai_specs(unet)}
    assert list(specs) == list(range(1, 26))
    modules = {1: "conv_in", 4: "down_blocks.0.downsamplers.0", 13: "mid_block", 15: "up_blocks.0.resnets.1"}
    modules |= {16: "up_blocks.0.upsamplers.0", 18: "up_blocks.1.attentions.1", 25: "up_blocks.3.attentions.2"}
    assert {b: specs[b].module for b in modules} == modules
