"""EDM2 against its equations, written out here (Karras et al. 2024, figure 21 and appendix B)."""

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from ddae.backbones import load_backbone
from tests.ddae.backbones import nvlabs, official, tiny

LAYOUTS = {
    "pixels": {},
    "latents of three levels": {
        "size": 16,
        "widths": (64, 128, 192),
        "attention": (8, 4),
        "num_blocks": 2,
        "channels": 4,
    },
    "conditional, no attention": {"num_labels": 7, "attention": ()},
}
BALANCES = {"res_balance": 0.3, "attn_balance": 0.3, "label_balance": 0.5, "concat_balance": 0.5, "clip_act": 256}


def maps_by_formula(state, x, c_noise, num_blocks, balance):
    """Every block's map, by its official name."""

    def unit(x, dims):
        return x / (1e-4 + x.square().mean(dims, keepdim=True).sqrt())

    def weight(name, gain=1.0):
        w = state[f"{name}.weight"]
        return unit(w, tuple(range(1, w.ndim))) * gain / math.sqrt(w[0].numel())

    def conv(name, x):
        w = weight(name)
        return functional.conv2d(x, w, padding=w.shape[-1] // 2)

    def silu(x):
        return x * x.sigmoid() / 0.596

    def mix(a, b, t):
        return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)

    def block(name, x):
        if name.startswith("enc"):
            x = unit(conv(f"{name}.conv_skip", x) if f"{name}.conv_skip.weight" in state else x, (1,))
        told = embedding @ weight(f"{name}.emb_linear", state[f"{name}.emb_gain"]).T + 1
        y = conv(f"{name}.conv_res1", silu(conv(f"{name}.conv_res0", silu(x)) * told[:, :, None, None]))
        if name.startswith("dec") and f"{name}.conv_skip.weight" in state:
            x = conv(f"{name}.conv_skip", x)
        x = mix(x, y, balance["res_balance"])
        if f"{name}.attn_qkv.weight" in state:
            heads = x.shape[1] // 64
            qkv = conv(f"{name}.attn_qkv", x).reshape(len(x), heads, 64, 3, -1)
            q, k, v = unit(qkv, (2,)).unbind(3)
            shares = (q.transpose(2, 3) @ k / 8).softmax(3)
            y = (v @ shares.transpose(2, 3)).reshape(x.shape)
            x = mix(x, conv(f"{name}.attn_proj", y), balance["attn_balance"])
        maps[name] = x.clamp(-balance["clip_act"], balance["clip_act"])
        return maps[name]

    angles = c_noise * state["emb_fourier.freqs"] + state["emb_fourier.phases"]
    embedding = (math.sqrt(2) * angles.cos())[None] @ weight("emb_noise").T
    if "emb_label.weight" in state:
        embedding = mix(embedding, 0 * embedding, balance["label_balance"])
    embedding = silu(embedding)
    maps = {}
    sides = list(dict.fromkeys(name.split(".")[1].split("_")[0] for name in state if name.startswith("enc.")))
    x = conv(f"enc.{sides[0]}_conv", torch.cat([x, torch.ones_like(x[:, :1])], dim=1))
    skips = [x]
    for level, side in enumerate(sides):
        if level:
            x = block(f"enc.{side}_down", functional.avg_pool2d(x, 2))
            skips.append(x)
        for j in range(num_blocks):
            x = block(f"enc.{side}_block{j}", x)
            skips.append(x)
    for level, side in enumerate(reversed(sides)):
        if level:
            x = block(f"dec.{side}_up", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        else:
            x = block(f"dec.{side}_in1", block(f"dec.{side}_in0", x))
        for j in range(num_blocks + 1):
            skip, t = skips.pop(), balance["concat_balance"]
            size = math.sqrt((x.shape[1] + skip.shape[1]) / ((1 - t) ** 2 + t**2))
            both = size * (1 - t) * x / math.sqrt(x.shape[1]), size * t * skip / math.sqrt(skip.shape[1])
            x = block(f"dec.{side}_block{j}", torch.cat(both, dim=1))
    return {name: map for name, map in maps.items() if "_block" in name or "_in1" in name}


def random_state(layout):
    state = official.random_state(official.edm2_shapes(**layout))
    return {name: each.abs() + 0.5 if each.ndim == 0 else each for name, each in state.items()}


def snapshot(path, state, encoder=None, sigma_data=0.5, **attributes):
    """As EDM2's training code writes it, in float16, with its encoder beside the network."""
    wrapped = {f"unet.{name}": each.half() for name, each in state.items()}
    wrapped |= {"logvar_fourier.freqs": torch.ones(4).half(), "logvar_linear.weight": torch.ones(1, 4).half()}
    network = nvlabs.nvlabs_module(wrapped, "Precond", sigma_data=sigma_data)
    network.meta["state"]["_modules"]["unet"].meta["state"].update(attributes)
    nvlabs.nvlabs_save(path, {"encoder": encoder, "loss_fn": None, "ema": network})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("step", [2, 7, 15])
@pytest.mark.parametrize("suffix", ["pkl", "pt"])
def test_every_block_is_as_the_equations_have_it(layout, step, suffix, tmp_path):
    tiny.make_vae(levels=2).save_pretrained(tmp_path / "vae")
    state, path = random_state(LAYOUTS[layout]), tmp_path / f"edm2.{suffix}"
    state = {name: each.half().float() for name, each in state.items()}
    other = {"sigma_data": 0.7, "concat_balance": 0.3, "label_balance": 0.4}
    if suffix == "pkl":
        scale = nvlabs.Persistent("StabilityVAEEncoder", {"scale": np.ones(4, dtype=np.float32), "_vae": None})
        snapshot(path, state, scale, **other)
    else:
        torch.save(state, path)
        path.with_suffix(".json").write_text(json.dumps(other))
    backbone = load_backbone(str(path))
    x0, noise = torch.randn(2, 2, *backbone.encoder.shape)
    sigma = backbone.sigma(step)
    x = (x0 + sigma * noise) / math.hypot(sigma, 0.7)
    num_blocks = LAYOUTS[layout].get("num_blocks", 1)
    expected = maps_by_formula(state, x, math.log(sigma) / 4, num_blocks, {**BALANCES, **other})
    maps = backbone.activations(x0, noise, step, [block.name for block in backbone.blocks])
    for block, (name, map) in zip(backbone.blocks, expected.items(), strict=True):
        assert block.module == name
        torch.testing.assert_close(maps[block.name], map, rtol=1e-4, atol=1e-4)


def test_blocks_are_counted_as_in_ddpm_plus_plus(tmp_path):
    torch.save(random_state({"num_blocks": 2}), tmp_path / "edm2.pt")
    blocks = load_backbone(str(tmp_path / "edm2.pt")).blocks
    assert [block.name for block in blocks] == [
        "down.0.0", "down.0.1", "down.1.0", "down.1.1", "mid",
        "up.0.0", "up.0.1", "up.0.2", "up.1.0", "up.1.1", "up.1.2",
    ]  # fmt: skip
    assert [block.alias for block in blocks if block.alias] == [f"out_{k}" for k in range(1, 7)]
    assert [block.size for block in blocks] == [8, 8, 4, 4, 4, 4, 4, 4, 8, 8, 8]


def test_latents_are_those_of_pixels_from_0_to_1_with_standard_deviation_one_half(tmp_path):
    vae = tiny.make_vae(levels=4)
    vae.save_pretrained(tmp_path / "vae")
    torch.save(random_state({"channels": 4}), tmp_path / "edm2.pt")
    backbone = load_backbone(str(tmp_path / "edm2.pt"))
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        means = vae.encode(images / 255).latent_dist.mean
    mean, std = torch.tensor([5.81, 3.25, 0.12, -2.15]), torch.tensor([4.17, 4.62, 3.71, 3.28])
    expected = (means - mean[:, None, None]) / std[:, None, None] * 0.5
    torch.testing.assert_close(backbone.encode(images), expected, rtol=1e-4, atol=1e-5)


def test_all_that_nothing_tells_is_named(tmp_path, caplog):
    torch.save(random_state({}), tmp_path / "edm2.pt")
    load_backbone(str(tmp_path / "edm2.pt"))
    assert "res_balance=0.3, attn_balance=0.3, label_balance=0.5, concat_balance=0.5" in caplog.text
    assert "sigma_data=0.5; taking these" in caplog.text


@pytest.mark.parametrize(
    ("attributes", "options", "message"),
    [
        ({}, {"sigma_data": 1.0}, "says sigma_data=1.0, but the checkpoint 0.5"),
        ({"label_balance": 0.4}, {"label_balance": 0.5}, "says label_balance=0.5, but the checkpoint 0.4"),
        ({"resample_filter": [1, 3, 3, 1]}, {}, r"resamples with the filter \[1, 3, 3, 1\]"),
        ({}, {"label_balanced": 0.4}, "did you mean 'label_balance'"),
    ],
)
def test_what_does_not_fit_is_refused(attributes, options, message, tmp_path):
    snapshot(tmp_path / "edm2.pkl", random_state({}), **attributes)
    (tmp_path / "edm2.json").write_text(json.dumps(options))
    with pytest.raises(ValueError, match=message):
        load_backbone(str(tmp_path / "edm2.pkl"))


def test_nothing_in_a_snapshot_runs(tmp_path):
    ran = tmp_path / "ran"
    state = random_state({})
    network = nvlabs.nvlabs_module(
        {f"unet.{name}": each for name, each in state.items()}, "Precond", f"open({str(ran)!r}, 'w')"
    )
    nvlabs.nvlabs_save(tmp_path / "edm2.pkl", {"ema": network})
    assert b"open(" in (tmp_path / "edm2.pkl").read_bytes()
    assert load_backbone(str(tmp_path / "edm2.pkl")) and not ran.exists()
