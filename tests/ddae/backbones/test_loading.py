import json
import shutil
from pathlib import Path

import pytest
import torch

from ddae.backbones import load_backbone
from ddae.backbones.base import Settings
from ddae.backbones.ddpm import make_backbone
from ddae.backbones.unets import unet_inputs
from ddae.noise import VP

GOOGLE_DDPM_CIFAR10 = {
    "sample_size": 32, "in_channels": 3, "out_channels": 3, "layers_per_block": 2,
    "block_out_channels": (128, 256, 256, 256), "norm_eps": 1e-6, "downsample_padding": 0,
    "flip_sin_to_cos": False, "freq_shift": 1, "attention_head_dim": None,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip


@pytest.fixture(scope="module")
def backbone(tiny_model):
    return load_backbone(tiny_model)


@pytest.fixture(scope="module")
def batch(backbone):
    torch.manual_seed(1)
    return torch.rand(3, 1, 16, 16) * 2 - 1, torch.randn(3, 1, 16, 16)


def test_blocks_have_stable_names_and_the_papers(backbone):
    names = ["down.0.0", "down.1.0", "down.2.0", "mid", "up.0.0", "up.0.1", "up.1.0", "up.1.1", "up.2.0", "up.2.1"]
    assert [block.name for block in backbone.blocks] == names
    assert [block.alias for block in backbone.blocks if block.stage == "up"] == [f"out_{k}" for k in range(1, 7)]


def test_the_forward_pass_stops_after_the_deepest_block(backbone, batch):
    reached = []
    handle = backbone.network.up_blocks[-1].register_forward_hook(lambda *_: reached.append(True))
    backbone.activations(*batch, 10, ["mid"])
    handle.remove()
    assert not reached


def test_unknown_block_names_what_there_is(backbone, batch):
    with pytest.raises(ValueError, match=r"block='up.9' is not in this backbone; it has: down.0.0, .*up.2.1"):
        backbone.activations(*batch, 10, ["up.9"])


def test_paper_counting_on_the_cifar10_network():
    from diffusers import DDPMScheduler, UNet2DModel

    unet = UNet2DModel(**GOOGLE_DDPM_CIFAR10)
    assert sum(p.numel() for p in unet.parameters()) == pytest.approx(35.7e6, rel=0.01)
    backbone = make_backbone(unet, VP(DDPMScheduler().alphas_cumprod), unet_inputs, "random", Settings())
    up = [block for block in backbone.blocks if block.stage == "up"]
    assert [block.size for block in up] == [4] * 3 + [8] * 3 + [16] * 3 + [32] * 3
    out_7 = up[6]  # the paper's best for CIFAR-10, 7/12
    assert (out_7.name, out_7.index, out_7.channels) == ("up.2.0", 7, 256)
    assert backbone.modules["up.2.0"] is unet.up_blocks[2].attentions[0]
    assert out_7.flops_share == pytest.approx(0.465, abs=0.01)


def test_timesteps_are_diffusers_own(backbone):
    beta_0 = 0.0001
    assert backbone.sigma(0) == pytest.approx((beta_0 / (1 - beta_0)) ** 0.5, rel=1e-3)
    sigmas = [backbone.sigma(t) for t in range(0, 1000, 50)]
    assert sigmas == sorted(sigmas)


def test_encode_scales_greys_and_resizes(backbone):
    images = torch.full((2, 3, 40, 40), 255, dtype=torch.uint8)
    encoded = backbone.encode(images)
    assert encoded.shape == (2, 1, 16, 16)
    assert torch.allclose(encoded, torch.ones(()))
    assert backbone.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).unique() == -1


def test_a_bare_unet_folder_loads_with_ddpm_schedule(tiny_model, tmp_path, caplog):
    shutil.copytree(Path(tiny_model) / "unet", tmp_path, dirs_exist_ok=True)
    backbone = load_backbone(str(tmp_path))
    assert len(backbone.blocks) == 10
    assert "has no scheduler" in caplog.text


def test_the_hub_cache_is_used(tiny_model, tmp_path, monkeypatch):
    repo = tmp_path / "models--lab--tiny-ddpm"
    shutil.copytree(tiny_model, repo / "snapshots" / "abc123")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_backbone("lab/tiny-ddpm").fingerprint == load_backbone(tiny_model).fingerprint


def test_other_weights_are_another_fingerprint(tiny_model, tmp_path, backbone):
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    scheduler = tmp_path / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "beta_end": 0.01}))
    assert load_backbone(str(tmp_path)).fingerprint != backbone.fingerprint


def test_pickled_weights_count_too(tiny_model, tmp_path):
    from diffusers import UNet2DModel

    fingerprints = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        unet = UNet2DModel.from_config(UNet2DModel.load_config(f"{tiny_model}/unet"))
        unet.save_pretrained(tmp_path / str(seed), safe_serialization=False)
        fingerprints.add(load_backbone(str(tmp_path / str(seed))).fingerprint)
    assert len(fingerprints) == 2


def test_unknown_model():
    with pytest.raises(ValueError, match=r"backbone='no/such-model' is neither a folder or file here nor"):
        load_backbone("no/such-model")


def test_unsupported_class(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "NoSuchTransformer"}')
    with pytest.raises(ValueError, match="NoSuchTransformer, which is no network of diffusers"):
        load_backbone(str(tmp_path))


def test_folder_that_holds_no_model(tmp_path):
    with pytest.raises(ValueError, match="is not a diffusers folder"):
        load_backbone(str(tmp_path))


def test_damaged_weights(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_backbone(str(tmp_path))


def test_a_text_that_is_not_there_or_of_no_use(tiny_model, tmp_path):
    with pytest.raises(ValueError, match=r"text_embedding='none.safetensors' is no file; sweeps/learn_text.py makes"):
        load_backbone(tiny_model, Settings(text_embedding="none.safetensors"))
    (tmp_path / "text.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="a UNet2DModel takes no text embedding; give a StableDiffusionPipeline"):
        load_backbone(tiny_model, Settings(text_embedding=str(tmp_path / "text.safetensors")))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_attention_under_the_names_that_old_checkpoints_have(tiny_model, tmp_path, suffix, backbone, batch):
    """As those of google/ddpm-cifar10-32."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    for new, old in ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")):
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    assert any(".query." in name for name in state)
    weights.unlink()
    if suffix == ".bin":
        torch.save(state, weights.with_suffix(suffix))
    else:
        save_file(state, weights)
    old = load_backbone(str(tmp_path)).activations(*batch, 10, ["mid", "up.2.1"])
    expected = backbone.activations(*batch, 10, ["mid", "up.2.1"])
    assert all(torch.equal(old[name], expected[name]) for name in expected)
