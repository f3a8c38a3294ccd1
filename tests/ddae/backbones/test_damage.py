"""Whatever bytes a file of weights or options holds: a sound network, or a ValueError of one line."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ddae.backbones import load_backbone
from ddae.backbones.checkpoints import read_checkpoint
from ddae.features import check_timestep
from tests.ddae.backbones import tiny

CHANGES = st.one_of(st.binary(max_size=8), st.integers(-64, 64))
PIECES = st.lists(st.tuples(st.floats(0, 1), CHANGES), min_size=1, max_size=4)
"""(where in the file, the bytes to put there, or how many to drop (or, below zero, to double))."""


def damaged(content, pieces):
    for where, change in pieces:
        start = int(where * len(content))
        if isinstance(change, bytes):
            content = content[:start] + change + content[start + len(change) :]
        else:
            content = content[: max(0, start - min(change, 0))] + content[start + max(change, 0) :]
    return content


def fuzzed(num_examples):
    """Alike on every machine."""
    alike = {"derandomize": True, "database": None, "deadline": None}
    return settings(max_examples=num_examples, suppress_health_check=list(HealthCheck), **alike)


def sound_or_one_line(path):
    try:
        backbone = load_backbone(str(path))
        backbone.sigma(backbone.schedule.timesteps[-1])
        check_timestep(backbone, backbone.schedule.defaults[0])
    except ValueError as error:
        assert len(str(error).splitlines()) == 1 and str(path) in str(error)
        return
    assert all(tensor.isfinite().all() for tensor in backbone.network.state_dict().values())


@pytest.fixture(
    scope="module", params=["adm.pt", "ddae.pth", "edm.pkl", "edm2.pkl", "dit.pt", "sit.pt", "adm.safetensors"]
)
def checkpoint(request, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    family, _, suffix = request.param.partition(".")
    path = Path(tiny.TINY[family](folder, tiny_model))
    if suffix == "safetensors":
        state = read_checkpoint(path)
        path = path.with_suffix(".safetensors")
        save_file(state, path)
    assert load_backbone(str(path))
    return path


@fuzzed(8)
@given(pieces=PIECES)
def test_damaged_checkpoints(checkpoint, pieces):
    content = checkpoint.read_bytes()
    try:
        checkpoint.write_bytes(damaged(content, pieces))
        sound_or_one_line(checkpoint)
    finally:
        checkpoint.write_bytes(content)


@fuzzed(20)
@given(content=st.one_of(st.binary(max_size=40), st.binary(max_size=40).map(lambda tail: b"\x80\x02}q\x00(" + tail)))
@pytest.mark.parametrize("suffix", [".pt", ".pkl", ".safetensors"])
def test_any_bytes(tmp_path_factory, suffix, content):
    path = tmp_path_factory.mktemp("any") / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged, cut short|holds no tensors|asks for|is (a|an|JSON)\b"):
        load_backbone(str(path))


VALUES = st.one_of(st.none(), st.integers(-2, 2), st.floats(), st.text(max_size=2), st.lists(st.integers(), max_size=2))
OPTIONS = st.sampled_from(["image_size", "num_heads", "num_head_channels", "diffusion_steps", "noise_schedule"])


@fuzzed(20)
@given(option=OPTIONS, value=VALUES)
def test_odd_options_beside_a_checkpoint(tiny_model, tmp_path_factory, option, value):
    path = Path(tiny.TINY["adm"](tmp_path_factory.mktemp("options"), tiny_model))
    options = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**options, option: value}))
    sound_or_one_line(path)


@fuzzed(20)
@given(pieces=PIECES, file=st.sampled_from(["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"]))
def test_damaged_configuration(tiny_model, tmp_path_factory, file, pieces):
    folder = tmp_path_factory.mktemp("configuration") / "model"
    shutil.copytree(tiny_model, folder)
    (folder / file).write_bytes(damaged((folder / file).read_bytes(), pieces))
    sound_or_one_line(folder)
