"""SiT and REPA are run as flows, and no DiT, SiT or REPA is taken for another."""

import json
import math
import re
from argparse import Namespace

import pytest
import torch

from ddae.backbones import load_backbone
from tests.ddae.backbones import official, tiny
from tests.ddae.backbones.formulae import dit

SIT = Namespace(model="SiT-S/2", path_type="Linear", prediction="velocity", loss_weight=None, num_classes=3)
REPA = Namespace(model="SiT-S/2", path_type="linear", prediction="v", enc_type="dinov2-vit-b", proj_coeff=0.5)


def repa_state(depth=3, **shapes):
    projectors = official.weights("projectors.0.0", 8, 16) | official.weights("projectors.0.2", 8, 8)
    projectors |= official.weights("projectors.0.4", 6, 8)
    return official.random_state(official.dit_shapes(depth=depth, out_channels=4, **shapes) | projectors)


@pytest.fixture
def load(tmp_path):
    """(what is saved, name, sidecar) -> Backbone."""
    tiny.make_vae().save_pretrained(tmp_path / "vae")

    def make(data, name="model.pt", options=None):
        torch.save(data, tmp_path / name)
        (tmp_path / name).with_suffix(".json").write_text(json.dumps({"num_heads": 2, **(options or {})}))
        return load_backbone(str(tmp_path / name))

    return make


def parts_of(path_type, s):
    """(share of the image, share of the noise), s of the way to noise."""
    if path_type in ("cosine", "GVP"):
        return math.cos(math.pi * s / 2), math.sin(math.pi * s / 2)
    if path_type == "VP":
        log_mean = -0.25 * s**2 * (20 - 0.1) - 0.5 * s * 0.1
        return math.exp(log_mean), (1 - math.exp(2 * log_mean)) ** 0.5
    return 1 - s, s


@torch.no_grad()
@pytest.mark.parametrize(
    ("arguments", "time"),
    [
        (SIT, lambda s: 1 - s),
        (Namespace(**vars(SIT) | {"path_type": "GVP"}), lambda s: 1 - s),
        (Namespace(**vars(SIT) | {"path_type": "VP", "prediction": "noise"}), lambda s: 1 - s),
        (REPA, lambda s: s),
        (Namespace(**vars(REPA) | {"path_type": "cosine"}), lambda s: s),
    ],
    ids=["SiT", "SiT on GVP", "SiT on VP", "REPA", "REPA on cosine"],
)
@pytest.mark.parametrize("timestep", [50, 480, 999])
def test_inputs_and_blocks_are_those_of_the_official_training(load, arguments, time, timestep):
    state = repa_state() if hasattr(arguments, "enc_type") else official.random_state(official.dit_shapes(depth=3))
    other = {name: tensor + 1 for name, tensor in state.items()}
    backbone = load({"model": other, "ema": state, "opt": {}, "args": arguments})
    x0, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    share, rest = parts_of(arguments.path_type, timestep / 1000)
    expected = dit(state, share * x0 + rest * noise, time(timestep / 1000), 3, 2)
    maps = backbone.activations(x0, noise, timestep, [block.name for block in backbone.blocks])
    assert list(maps) == list(expected)
    for name, map in maps.items():
        torch.testing.assert_close(map, expected[name], rtol=1e-4, atol=1e-4)
    assert backbone.sigma(timestep) == pytest.approx(rest / share)


@torch.no_grad()
def test_older_files_of_repa_count_their_last_blocks_anew(load):
    state = repa_state(depth=3)
    older = {
        re.sub(r"^blocks\.([12])\.", lambda found: f"decoder_blocks.{int(found[1]) - 1}.", name): tensor
        for name, tensor in state.items()
    }
    backbone, again = load(state, options={"model_type": "REPA"}), load(older, "older.pt", {"model_type": "REPA"})
    x0, noise = torch.randn(2, 1, 4, 8, 8)
    for name, map in backbone.activations(x0, noise, 300, ["block.0", "block.2"]).items():
        assert torch.equal(again.activations(x0, noise, 300, [name])[name], map)


SAME = official.random_state(official.dit_shapes())


@pytest.mark.parametrize(
    ("data", "name", "options", "is_flow"),
    [
        (SAME, "DiT-XL-2-256x256.pt", {}, False),
        (SAME, "SiT-XL-2-256x256.pt", {}, True),
        (SAME, "sit_s2.pt", {}, True),
        (SAME, "model.pt", {"model_type": "DiT"}, False),
        (SAME, "model.pt", {"model_type": "SiT"}, True),
        (SAME, "SiT.pt", {"model_type": "DiT"}, False),
        ({"ema": SAME, "args": Namespace(model="DiT-XL/2", vae="ema")}, "0050000.pt", {}, False),
        ({"ema": SAME, "args": Namespace(model="SiT-XL/2")}, "0050000.pt", {}, True),
        ({"ema": SAME, "args": {"model": "anything", "path_type": "Linear"}}, "0050000.pt", {}, True),
        (repa_state(), "last.pt", {}, True),
        ({"ema": repa_state(), "args": Namespace(model="SiT-XL/2", path_type="linear")}, "last.pt", {}, True),
    ],
)
def test_what_tells_a_flow_from_a_diffusion(load, data, name, options, is_flow):
    backbone = load(data, name, options)
    assert backbone.schedule.timesteps == (range(1, 1000) if is_flow else range(1000))
    assert backbone.sigma(500) == pytest.approx(1.0 if is_flow else 3.443, rel=1e-3)


def test_the_name_of_a_folder_tells_too(tmp_path):
    folder = tmp_path / "003-SiT-S-2-Linear-velocity-None" / "checkpoints"
    folder.mkdir(parents=True)
    tiny.make_vae().save_pretrained(folder / "vae")
    torch.save(SAME, folder / "0050000.pt")
    (folder / "0050000.json").write_text('{"num_heads": 2}')
    assert load_backbone(str(folder / "0050000.pt")).schedule.timesteps == range(1, 1000)


@pytest.mark.parametrize("name", ["model.pt", "0050000.pt", "deposit.pt", "lightningdit.pt"])
def test_what_nothing_tells_is_refused(load, name):
    with pytest.raises(ValueError, match=r"is a DiT .* or a SiT .* nothing tells which. Give `model_type`"):
        load(SAME, name)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (
            {"ema": SAME, "args": SIT},
            {"model_type": "DiT"},
            "beside it means DiT, path_type in it means SiT",
        ),
        (SAME, {"model_type": "Sit"}, "says model_type='Sit'; it must be 'DiT' or 'SiT' or 'REPA'"),
        (SAME, {"model_type": "SiT", "path_type": "linaer"}, "path_type='linaer'; it must be 'linear'"),
        ({"ema": SAME, "args": Namespace(path_type="sigmoid")}, {}, "path_type='sigmoid'; the known ones"),
        (repa_state(), {"model_type": "DiT"}, "REPA's projectors in it means REPA"),
        (repa_state(), {"model_type": "SiT"}, "contradicts what is said of it"),
        ({"ema": SAME, "args": Namespace(path_type="VP", num_classes=4)}, {}, "no null class"),
    ],
)
def test_what_contradicts_itself_is_refused(load, data, options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        load(data, options=options)
    assert "\n" not in str(refusal.value)


def test_a_path_that_nothing_says_is_named(load, caplog):
    load(SAME, "SiT.pt")
    assert "does not say, and nothing beside it says, path_type=linear" in caplog.text
