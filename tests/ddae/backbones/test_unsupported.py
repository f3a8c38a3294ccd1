"""Networks that are known and not loaded are refused by their own names, in whatever wrapper they come."""

import pytest
import torch

from ddae.backbones import load_backbone
from tests.ddae.backbones import official

DIT = official.dit_shapes()
ADM = official.adm_shapes()
LDM = {
    **ADM,
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 768),
    "middle_block.1.transformer_blocks.0.attn2.to_k.weight": (32, 768),
}
KNOWN = {
    "a U-ViT": {"in_blocks.0.attn.qkv.weight": (24, 8), "patch_embed.proj.weight": (8, 4, 2, 2)},
    "an MDT": DIT | {"en_inblocks.0.attn.qkv.weight": (24, 8), "sideblocks.0.attn.qkv.weight": (24, 8)},
    "a MaskDiT": DIT | {"decoder_pos_embed": (1, 16, 8), "mask_token": (1, 1, 8)},
    "a LightningDiT": DIT | {"blocks.0.mlp.w12.weight": (32, 16), "feat_rope.freqs_cos": (16, 8)},
    "the UNet of a latent diffusion model": LDM,
    "a FLUX": {"double_blocks.0.img_attn.qkv.weight": (24, 8), "img_in.weight": (8, 8)},
    "a Stable Diffusion 3": DIT | {"joint_blocks.0.x_block.attn.qkv.weight": (24, 8)},
    "a PixArt": DIT | {"t_block.1.weight": (96, 16)},
    "a network of score_sde": {"all_modules.0.weight": (8, 8), "all_modules.1.weight": (8, 8)},
    "a DDPM of the DDIM code": {"temb.dense.0.weight": (8, 8), "conv_in.weight": (8, 3, 3, 3)},
    "a UNet of denoising-diffusion-pytorch": {"init_conv.weight": (8, 3, 7, 7), "time_mlp.1.weight": (8, 8)},
    "an autoencoder": {"encoder.conv_in.weight": (8, 3, 3, 3), "decoder.conv_in.weight": (8, 3, 3, 3)},
    "the weights of a diffusers folder": {"down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)},
    "a classifier or an image encoder": {"conv1.weight": (8, 3, 7, 7), "layer1.0.conv1.weight": (8, 8, 3, 3)},
}  # fmt: skip
"""How a network is called -> some of its tensors."""


@pytest.mark.parametrize("prefix", ["", "module.", "model.diffusion_model."])
@pytest.mark.parametrize("name", KNOWN)
def test_known_networks_are_called_by_their_names(name, prefix, tmp_path):
    state = official.random_state(KNOWN[name])
    torch.save({"ema": {prefix + tensor: value for tensor, value in state.items()}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=f"model.pt is {name}.*, as its tensor .* shows; .*") as refusal:
        load_backbone(str(tmp_path / "model.pt"))
    assert "\n" not in str(refusal.value)


def test_the_unet_of_a_latent_model_without_text_is_no_adm(tmp_path):
    """Its tensors have ADM's names and three channels, which are latents."""
    state = {f"model.diffusion_model.{name}": tensor for name, tensor in official.random_state(ADM).items()}
    state |= {"first_stage_model.encoder.conv_in.weight": torch.ones(8, 3, 3, 3), "betas": torch.ones(1000)}
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    (tmp_path / "model.json").write_text('{"image_size": 16, "num_head_channels": 32}')
    with pytest.raises(ValueError, match=r"the UNet of a latent diffusion model .* \(first_stage_model\) in it shows"):
        load_backbone(str(tmp_path / "model.ckpt"))


def test_an_unknown_network_is_refused_with_what_is_known(tmp_path):
    torch.save({"a.weight": torch.ones(2, 2)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"holds no network that is known.* its first are a.weight"):
        load_backbone(str(tmp_path / "model.pt"))
