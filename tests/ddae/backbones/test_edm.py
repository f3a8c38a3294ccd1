"""DDPM++ from the official layout, against the formulae of its paper and code written out here."""

import json
import math

import pytest
import torch
from torch.nn import functional

from ddae.backbones import Settings, edm, load_backbone
from tests.ddae.backbones import nvlabs, official

LAYOUTS = {
    "as the tiny ones": {},
    "as CIFAR-10": {"size": 16, "widths": (16, 16, 16), "attention": (8,), "num_blocks": 4},
    "as 64 px": {"size": 32, "widths": (8, 16, 16, 16), "attention": (8,), "num_blocks": 2},
    "attention at both ends": {"size": 16, "stem": 12, "widths": (12, 24, 20), "attention": (16, 4), "channels": 1},
    "no attention": {"size": 4, "widths": (24,), "attention": ()},
    "class-conditional, augmented": {"num_labels": 5, "num_augments": 9},
}

CIFAR10 = {"size": 32, "stem": 128, "widths": (256, 256, 256), "attention": (16,), "num_blocks": 4, "num_augments": 9}
PIXELS64 = CIFAR10 | {"size": 64, "widths": (128, 256, 256, 256)}


@pytest.fixture
def tiny_edm(tmp_path) -> str:
    state = official.random_state(official.song_unet_shapes())
    torch.save(state, tmp_path / "tiny-edm.pt")
    return str(tmp_path / "tiny-edm.pt")


def maps_by_formula(state, x, c_noise, num_blocks):
    """Every block's map, by its official name: DDPM++, NCSN++ or ADM, as the tensors show."""
    adm, image = "out_conv.weight" in state, x
    smooth = any(name.endswith(".resample_filter") and each.shape[-1] == 4 for name, each in state.items())
    scale = 1 if adm else math.sqrt(2)

    def convolve(name, x):
        weight = state[f"{name}.weight"]
        return functional.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def linear(name, x):
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, x):
        groups, eps = min(32, x.shape[1] // 4), 1e-5 if adm else 1e-6
        return functional.group_norm(x, groups, state[f"{name}.weight"], state[f"{name}.bias"], eps=eps)

    def halve(x, border=1):
        if not smooth:
            return functional.avg_pool2d(x, 2)
        taps = torch.tensor([1.0, 3, 3, 1]) / 8
        each = functional.pad(x, (border,) * 4).unfold(2, 4, 2).unfold(3, 4, 2)
        return torch.einsum("nchwij,i,j->nchw", each, taps, taps)

    def double(x):
        if not smooth:
            return functional.interpolate(x, scale_factor=2)
        for dim in (2, 3):  # each new pixel is 3/4 of the nearest and 1/4 of the next
            wide = functional.pad(x, (1, 1, 0, 0) if dim == 3 else (0, 0, 1, 1))
            before, here, after = (wide.narrow(dim, k, x.shape[dim]) for k in range(3))
            x = torch.stack([(before + 3 * here) / 4, (3 * here + after) / 4], dim + 1).flatten(dim, dim + 1)
        return x

    def block(name, x, resample=lambda x: x):
        hidden = convolve(f"{name}.conv0", resample(functional.silu(norm(f"{name}.norm0", x))))
        told = linear(f"{name}.affine", embedding)[:, :, None, None]
        if adm:
            gain, shift = told.chunk(2, dim=1)
            hidden = norm(f"{name}.norm1", hidden) * (1 + gain) + shift
        else:
            hidden = norm(f"{name}.norm1", hidden + told)
        hidden = convolve(f"{name}.conv1", functional.silu(hidden))
        x = resample(x)
        x = convolve(f"{name}.skip", x) if f"{name}.skip.weight" in state else x
        x = (x + hidden) / scale
        if f"{name}.qkv.weight" in state:
            heads = x.shape[1] // 64 if adm else 1
            qkv = convolve(f"{name}.qkv", norm(f"{name}.norm2", x)).flatten(2)
            query, key, value = qkv.unflatten(1, (heads, -1, 3)).unbind(3)
            attention = (query.transpose(2, 3) @ key / math.sqrt(query.shape[2])).softmax(dim=3)
            mixed = (value @ attention.transpose(2, 3)).reshape(x.shape)
            x = (x + convolve(f"{name}.proj", mixed)) / scale
        maps[name] = x
        return x

    half = state["map_layer0.weight"].shape[1] // 2
    angles = c_noise * 10_000 ** (-torch.arange(half) / (half if adm else half - 1))
    if "map_noise.freqs" in state:
        angles = 2 * math.pi * c_noise * state["map_noise.freqs"]
    embedding = torch.cat([angles.cos(), angles.sin()] if adm else [angles.sin(), angles.cos()])[None]
    if "map_label.weight" in state and not adm:
        no_label = torch.zeros(1, state["map_label.weight"].shape[1])
        embedding = embedding + linear("map_label", no_label)
    for name in ("map_layer0", "map_layer1"):
        embedding = functional.silu(linear(name, embedding))

    maps: dict[str, torch.Tensor] = {}
    stem = next(name.removesuffix(".weight") for name in state if name.endswith("_conv.weight"))
    x = convolve(stem, x)
    skips = [x]
    sides = list(dict.fromkeys(name.split(".")[1].split("_")[0] for name in state if name.startswith("enc.")))
    for level, side in enumerate(sides):
        if level:
            x = block(f"enc.{side}_down", x, halve)
            if f"enc.{side}_aux_residual.weight" in state:
                weight = state[f"enc.{side}_aux_residual.weight"]
                wide = halve(functional.conv2d(image, weight, padding=2), border=0)
                x = image = (x + wide + state[f"enc.{side}_aux_residual.bias"][:, None, None]) / scale
            skips.append(x)
        for j in range(num_blocks):
            x = block(f"enc.{side}_block{j}", x)
            skips.append(x)
    for level, side in enumerate(reversed(sides)):
        x = block(f"dec.{side}_up", x, double) if level else block(f"dec.{side}_in1", block(f"dec.{side}_in0", x))
        for j in range(num_blocks + 1):
            x = block(f"dec.{side}_block{j}", torch.cat([x, skips.pop()], dim=1))
    return maps


def assert_as_formulae(backbone, state, step, c_in, c_noise, num_blocks=1):
    torch.manual_seed(0)
    shape = (2, *backbone.encoder.shape)
    x0, noise = torch.rand(shape) * 2 - 1, torch.randn(shape)
    sigma = backbone.sigma(step)
    maps = maps_by_formula(state, c_in(sigma) * (x0 + sigma * noise), c_noise(sigma), num_blocks)
    expected = [map for name, map in maps.items() if not name.endswith(("_down", "_up", "_in0"))]
    found = backbone.activations(x0, noise, step, [block.name for block in backbone.blocks])
    for block, map in zip(backbone.blocks, expected, strict=True):
        torch.testing.assert_close(found[block.name], map, rtol=1e-4, atol=1e-4)


def edm_input(sigma):
    return 1 / math.hypot(sigma, 0.5)


def edm_noise(sigma):
    return math.log(sigma) / 4


NETWORKS = {
    "NCSN++": {"ncsn": True},
    "NCSN++ of three levels": {"ncsn": True, "size": 16, "widths": (8, 16, 16), "attention": (8,), "num_blocks": 2},
    "NCSN++, conditional": {"ncsn": True, "num_labels": 5, "num_augments": 9},
    "ADM": {},
    "ADM of three levels": {"size": 16, "widths": (64, 128, 192), "attention": (8, 4), "num_blocks": 2},
    "ADM, conditional": {"num_labels": 5, "num_augments": 9, "attention": ()},
}


def random_network(name):
    layout = NETWORKS[name]
    return (
        official.song_unet_state(**layout)
        if "NCSN" in name
        else official.random_state(official.dhariwal_shapes(**layout))
    )


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("step", "suffix"), [(4, "pkl"), (14, "pt")])
def test_the_other_networks_of_the_code_are_as_the_formulae_have_them(name, step, suffix, tmp_path):
    state, path = random_network(name), tmp_path / f"network.{suffix}"
    if suffix == "pkl":
        nvlabs.edm_snapshot(path, state, sigma_data=0.5)
    else:
        torch.save(state, path)
    assert_as_formulae(load_backbone(str(path)), state, step, edm_input, edm_noise, NETWORKS[name].get("num_blocks", 1))


def vp_time(sigma, slope=19.9, start=0.1):
    """t of the VP process at this noise, from sigma^2 + 1 = exp(slope t^2 / 2 + start t)."""
    return (math.sqrt(start**2 + 2 * slope * math.log(1 + sigma**2)) - start) / slope


def iddpm_levels(c_1=0.001, c_2=0.008, m=1000):
    """u_j of Karras et al. 2022, table 1."""
    share = [math.sin(math.pi / 2 * j / m / (c_2 + 1)) ** 2 for j in range(m + 1)]
    levels = [0.0]
    for j in range(m, 0, -1):
        levels.insert(0, math.sqrt((levels[0] ** 2 + 1) / max(share[j - 1] / share[j], c_1) - 1))
    return levels


def nearest(sigma):
    levels = iddpm_levels()
    return 999 - min(range(1000), key=lambda j: abs(levels[j] - sigma))


BASELINES = {
    "VPPrecond": (lambda sigma: 1 / math.hypot(sigma, 1), lambda sigma: 999 * vp_time(sigma)),
    "VEPrecond": (lambda sigma: 1, lambda sigma: math.log(sigma / 2)),
    "iDDPMPrecond": (lambda sigma: 1 / math.hypot(sigma, 1), nearest),
}
"""Class of the preconditioning -> (sigma -> c_in, sigma -> c_noise)."""


@pytest.mark.parametrize("class_name", BASELINES)
@pytest.mark.parametrize("step", [1, 4, 18])
@pytest.mark.parametrize("suffix", ["pkl", "pt"])
def test_baselines_get_the_inputs_that_they_were_trained_with(class_name, step, suffix, tmp_path):
    if class_name == "iDDPMPrecond":
        state = official.random_state(official.dhariwal_shapes(out_channels=6))
    else:
        state = official.song_unet_state(ncsn=class_name == "VEPrecond")
    path = tmp_path / f"baseline.{suffix}"
    if suffix == "pkl":
        nvlabs.edm_snapshot(path, state, class_name)
    else:
        torch.save(state, path)
        path.with_suffix(".json").write_text(json.dumps({"model_type": class_name}))
    backbone = load_backbone(str(path))
    assert_as_formulae(backbone, state, step, *BASELINES[class_name])
    if class_name == "VPPrecond":  # trained down to t = 1e-5
        assert backbone.sigma(1) == pytest.approx(0.002, rel=1e-3)
    elif class_name == "VEPrecond":
        assert [backbone.sigma(1), backbone.sigma(18)] == pytest.approx([0.02, 80])
    else:
        assert backbone.sigma(step) in [pytest.approx(level, rel=1e-3) for level in iddpm_levels()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "Precond"}, "model_type='Precond'; it must be 'EDMPrecond'"),
        ({"model_type": "VPPrecond"}, "says model_type=VPPrecond, but it is EDMPrecond"),
        ({"sigma_data": 1.0}, "says sigma_data=1.0, but the checkpoint 0.5"),
        ({"sigma_data": "0.5"}, "sigma_data='0.5'; it must be a number"),
        ({"sigma_maxx": 3}, "did you mean 'sigma_max'"),
    ],
)
def test_what_a_sidecar_says_against_a_pickle_is_refused(options, message, tmp_path):
    nvlabs.edm_snapshot(tmp_path / "network.pkl", official.song_unet_state(), sigma_data=0.5)
    (tmp_path / "network.json").write_text(json.dumps(options))
    with pytest.raises(ValueError, match=message):
        load_backbone(str(tmp_path / "network.pkl"))


def test_all_that_nothing_tells_is_named(tmp_path, caplog):
    state = official.song_unet_state()
    torch.save(state, tmp_path / "network.pt")
    load_backbone(str(tmp_path / "network.pt"))
    assert "nothing beside it says, model_type=EDMPrecond, sigma_data=0.5; taking" in caplog.text
    caplog.clear()
    nvlabs.edm_snapshot(tmp_path / "network.pkl", state, sigma_data=0.5)
    load_backbone(str(tmp_path / "network.pkl"))
    assert not caplog.text


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("step", [4, 14])
def test_every_block_is_as_the_formulae_have_it(layout, step, tmp_path):
    state = official.random_state(official.song_unet_shapes(**LAYOUTS[layout]))
    backbone = edm.from_state(state, tmp_path / "network.pt", "", Settings())
    assert_as_formulae(backbone, state, step, edm_input, edm_noise, LAYOUTS[layout].get("num_blocks", 1))


def test_a_snapshot_of_the_training_code_is_what_its_state_dict_is(tmp_path):
    state = official.random_state(official.song_unet_shapes())
    nvlabs.edm_snapshot(tmp_path / "network.pkl", state, sigma_data=0.5)
    torch.save({f"model.{name}": tensor for name, tensor in state.items()}, tmp_path / "network.pt")
    first, second = (load_backbone(str(tmp_path / name)).network for name in ("network.pkl", "network.pt"))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


def test_a_saved_folder_is_the_same_network(tmp_path):
    state = official.random_state(official.song_unet_shapes(num_labels=3))
    backbone = edm.from_state(state, tmp_path / "network.pt", "", Settings())
    backbone.network.save_pretrained(tmp_path / "folder")
    again = load_backbone(str(tmp_path / "folder"))
    assert again.blocks == backbone.blocks
    x0, noise = torch.rand(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    names = [block.name for block in backbone.blocks]
    first, second = (each.activations(x0, noise, 4, names) for each in (backbone, again))
    assert all(torch.equal(first[name], second[name]) for name in names)


@pytest.fixture
def meta(tmp_path):
    """A network of real size, without its numbers."""

    def make(layout):
        shapes = official.song_unet_shapes(**layout)
        state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        return edm.from_state(state, tmp_path / "network.pt", "", Settings(device="meta"))

    return make


def test_cifar10_has_the_papers_numbers(meta):
    backbone = meta(CIFAR10)
    blocks = {block.alias: block for block in backbone.blocks if block.alias}
    assert list(blocks) == [f"out_{k}" for k in range(1, 16)]
    best = blocks["out_6"]
    assert (best.name, best.module, best.channels, best.size) == ("up.1.0", "up_blocks.1.resnets.0", 256, 16)
    assert blocks["out_10"].module == "up_blocks.1.attentions.4"
    assert best.flops_share == pytest.approx(0.399, abs=1e-3)

    assert sum(parameter.numel() for parameter in backbone.network.parameters()) == 55_732_739
    shapes = official.song_unet_shapes(**CIFAR10 | {"num_augments": 0})
    sizes = {name: math.prod(shape) for name, shape in shapes.items() if not name.endswith("resample_filter")}
    up_to_best = list(sizes)[: 1 + list(sizes).index("dec.16x16_block0.skip.bias")]
    assert sum(sizes[name] for name in up_to_best) == pytest.approx(36.10e6, abs=5e3)


def test_64_pixels_have_20_decoder_blocks(meta):
    backbone = meta(PIXELS64)
    best = next(block for block in backbone.blocks if block.alias == "out_7")
    assert (best.name, best.module, best.size) == ("up.1.1", "up_blocks.1.resnets.1", 16)
    assert backbone.blocks[-1].alias == "out_20" and backbone.encoder.shape == (3, 64, 64)
    assert sum(parameter.numel() for parameter in backbone.network.parameters()) == 61_804_419


@pytest.mark.parametrize(
    ("num_steps", "step", "sigma"), [(18, 1, 0.002), (18, 4, 0.05995), (18, 18, 80), (50, 14, 0.2070)]
)
def test_timesteps_are_steps_of_the_sampler(num_steps, step, sigma, tiny_edm):
    backbone = load_backbone(tiny_edm, Settings(num_steps=num_steps))
    assert backbone.sigma(step) == pytest.approx(sigma, rel=1e-3)
    assert backbone.schedule.timesteps[-1] == num_steps
    inputs = backbone.inputs(torch.ones(2, 3, 8, 8), step)
    assert inputs["timestep"].tolist() == pytest.approx([math.log(sigma) / 4] * 2, rel=1e-3)
    assert inputs["sample"].flatten()[0].item() == pytest.approx((sigma**2 + 0.25) ** -0.5, rel=1e-3)


def test_a_schedule_has_two_steps(tiny_edm):
    with pytest.raises(ValueError, match=r"num_steps=1 .* 18 or 50"):
        load_backbone(tiny_edm, Settings(num_steps=1))


def test_an_edm_scheduler_tells_its_noise_and_preconditioning(tiny_edm, tmp_path):
    load_backbone(tiny_edm).network.save_pretrained(tmp_path)
    config = {"_class_name": "EDMEulerScheduler", "sigma_min": 0.01, "sigma_max": 40.0, "rho": 5.0, "sigma_data": 1.0}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    backbone = load_backbone(str(tmp_path))
    assert [backbone.sigma(step) for step in (1, 18)] == pytest.approx([0.01, 40])
    sigma = backbone.sigma(9)
    assert sigma == pytest.approx((0.01**0.2 + 8 / 17 * (40**0.2 - 0.01**0.2)) ** 5)
    assert backbone.inputs(torch.ones(1, 3, 8, 8), 9)["sample"].max().item() == pytest.approx((sigma**2 + 1) ** -0.5)


def test_sigma_data_comes_from_a_snapshot_or_a_sidecar(tmp_path):
    state = official.random_state(official.song_unet_shapes())
    nvlabs.edm_snapshot(tmp_path / "told.pkl", state, sigma_data=1.0)
    torch.save(state, tmp_path / "beside.pt")
    (tmp_path / "beside.yaml").write_text("sigma_data: 1.0")
    for name in ("told.pkl", "beside.pt"):
        backbone = load_backbone(str(tmp_path / name))
        expected = (backbone.sigma(9) ** 2 + 1) ** -0.5
        assert backbone.inputs(torch.ones(1, 3, 8, 8), 9)["sample"].max().item() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["enc.4x4_aux_skip.weight", "enc.4x4_aux_down.filter", "dec.4x4_aux_up.weight"])
def test_other_networks_of_its_code_are_refused(name, tmp_path):
    torch.save(official.song_unet_state() | {name: torch.zeros(1, 1, 2, 2)}, tmp_path / "network.pt")
    with pytest.raises(ValueError, match=rf"network.pt is not DDPM\+\+ or NCSN\+\+, as {name} shows"):
        load_backbone(str(tmp_path / "network.pt"))


def test_another_resampling_filter_is_refused(tmp_path):
    state = official.random_state(official.song_unet_shapes())
    torch.save(state | {"enc.4x4_down.conv0.resample_filter": torch.ones(1, 1, 4, 4)}, tmp_path / "network.pt")
    with pytest.raises(ValueError, match=r"not DDPM\+\+, as enc.4x4_down.conv0.resample_filter shows"):
        load_backbone(str(tmp_path / "network.pt"))


@pytest.mark.parametrize("missing", ["enc.4x4_down.", "dec.8x8_aux_conv.", "map_layer1.", "enc."])
def test_half_a_network_is_refused(missing, tmp_path):
    state = official.random_state(official.song_unet_shapes())
    torch.save({name: state[name] for name in state if not name.startswith(missing)}, tmp_path / "network.pt")
    with pytest.raises(ValueError, match=f"has no {missing.rstrip('.')}"):
        load_backbone(str(tmp_path / "network.pt"))


def test_another_preconditioning_is_refused(tmp_path):
    nvlabs.edm_snapshot(tmp_path / "baseline.pkl", official.song_unet_state(), "MyPrecond")
    with pytest.raises(ValueError, match=r"holds MyPrecond; of NVlabs' networks EDMPrecond, .* are supported"):
        load_backbone(str(tmp_path / "baseline.pkl"))
