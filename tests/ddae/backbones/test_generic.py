import json
import logging
import shutil

import pytest
import torch

from ddae.backbones import Settings, load_backbone
from ddae.backbones.base import Pixels
from ddae.noise import VP, Flow
from tests.ddae.backbones import tiny

TRANSFORMERS = (
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "ChromaTransformer2DModel",
    "AuraFlowTransformer2DModel",
    "SanaTransformer2DModel",
    "CogView3PlusTransformer2DModel",
)
SMALL = Settings(image_size=16)
"""Flux's configurations do not say how large its images are."""


@torch.no_grad()
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_the_last_blocks_map_is_what_the_output_layers_read_as_the_image(tmp_path, kind):
    backbone = load_backbone(tiny.network_folder(tmp_path, kind), SMALL)
    read = []
    backbone.network.norm_out.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    x_t = torch.randn(2, *backbone.encoder.shape)
    backbone.network(**backbone.inputs(x_t, 50))
    name, size = backbone.blocks[-1].name, backbone.blocks[-1].size
    map = backbone.capture(x_t, 50, [name], lambda map: map)[name]
    assert torch.equal(map, read[0].transpose(1, 2).unflatten(2, (size, size)))
    assert [block.name for block in backbone.blocks] == [f"block.{i}" for i in range(len(backbone.blocks))]
    assert [block.module for block in backbone.blocks] == [spec.module for spec in backbone.specs]


@torch.no_grad()
def test_tokens_lie_row_by_row(tmp_path):
    """Blocks that add nothing show the patches."""
    backbone = load_backbone(tiny.network_folder(tmp_path, "PixArtTransformer2DModel"))
    for block in backbone.network.transformer_blocks:
        for layer in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]):
            layer.weight.zero_()
            layer.bias.zero_()
    embed = backbone.network.pos_embed
    x_t = torch.randn(1, 4, 8, 8)
    expected = embed.proj(x_t) + embed.pos_embed.transpose(1, 2).unflatten(2, (4, 4))
    map = backbone.capture(x_t, 10, ["block.1"], lambda map: map)["block.1"]
    torch.testing.assert_close(map, expected)


def test_flux_is_fed_as_by_its_pipeline(tmp_path):
    from diffusers import FluxPipeline

    backbone = load_backbone(tiny.network_folder(tmp_path, "FluxTransformer2DModel"), SMALL)
    x_t = torch.randn(2, 4, 8, 8)
    inputs = backbone.inputs(x_t, 250)
    assert torch.equal(inputs["hidden_states"], FluxPipeline._pack_latents(x_t, 2, 4, 8, 8))
    assert torch.equal(inputs["img_ids"], FluxPipeline._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float32))
    assert inputs["timestep"].tolist() == [0.25, 0.25] and inputs["guidance"].tolist() == [1, 1]
    assert [block.module for block in backbone.blocks][1:3] == ["transformer_blocks.1", "single_transformer_blocks.0"]
    assert isinstance(backbone.schedule, Flow)


@pytest.mark.parametrize(
    ("kind", "timestep"),
    [
        ("SD3Transformer2DModel", 250),
        ("AuraFlowTransformer2DModel", 0.25),
        ("ChromaTransformer2DModel", 0.25),
        ("SanaTransformer2DModel", 250),
        ("PixArtTransformer2DModel", 250),
    ],
)
def test_timesteps_reach_networks_in_their_own_units(tmp_path, kind, timestep):
    backbone = load_backbone(tiny.network_folder(tmp_path, kind), SMALL)
    assert backbone.inputs(torch.zeros(1, 4, 8, 8), 250)["timestep"].tolist() == [timestep]
    assert isinstance(backbone.schedule, VP if kind.startswith("PixArt") else Flow)


def test_a_timestep_scale_in_the_configuration_goes_first(tmp_path):
    folder = tiny.network_folder(tmp_path, "SanaTransformer2DModel", timestep_scale=0.001)
    assert load_backbone(folder).inputs(torch.zeros(1, 4, 8, 8), 250)["timestep"].tolist() == [0.25]


@torch.no_grad()
def test_a_stable_diffusion_xl_is_told_the_size_of_its_image(tmp_path):
    folder = tiny.network_folder(
        tmp_path, "UNet2DConditionModel", addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=34,
    )  # fmt: skip
    backbone = load_backbone(folder)
    added = backbone.inputs(torch.zeros(2, 4, 8, 8), 10)["added_cond_kwargs"]
    assert added["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2 and added["text_embeds"].shape == (2, 10)
    assert [block.alias for block in backbone.blocks] == [f"b{i + 1}" for i in range(len(backbone.blocks))]


def test_zeros_stand_for_text_and_it_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "ddae"):
        backbone = load_backbone(tiny.network_folder(tmp_path, "PixArtTransformer2DModel"))
    assert caplog.text.count("PixArtTransformer2DModel takes text; it gets zeros") == 1
    text = backbone.inputs(torch.zeros(2, 4, 8, 8), 10)["encoder_hidden_states"]
    assert text.shape == (2, 1, 12) and not text.any()


@pytest.mark.parametrize(
    ("scheduler", "schedule", "num_timesteps"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 500, "shift": 3.0}, Flow, 499),
        ({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction",
          "beta_schedule": "linear", "num_train_timesteps": 1000}, Flow, 999),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "linear", "num_train_timesteps": 100}, VP, 100),
    ],
)  # fmt: skip
def test_the_noise_is_that_of_the_pipelines_scheduler(tmp_path, scheduler, schedule, num_timesteps):
    tiny.network_folder(tmp_path, "SD3Transformer2DModel")
    (tmp_path / "model").rename(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text('{"_class_name": "SomePipeline"}')
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    backbone = load_backbone(str(tmp_path))
    assert isinstance(backbone.schedule, schedule) and len(backbone.schedule.timesteps) == num_timesteps


def test_a_network_of_pixels_gets_pixels(tmp_path):
    folder = tiny.network_folder(tmp_path, "UNet2DConditionModel", in_channels=3, out_channels=3, sample_size=16)
    assert load_backbone(folder).encoder == Pixels(16)


def test_a_ddpm_in_a_pipeline_of_another_name_is_a_ddpm(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "pndm")
    (tmp_path / "pndm" / "model_index.json").write_text('{"_class_name": "PNDMPipeline"}')
    known, found = load_backbone(tiny_model), load_backbone(str(tmp_path / "pndm"))
    assert found.blocks == known.blocks
    (tmp_path / "pndm" / "vqvae").mkdir()
    with pytest.raises(ValueError, match=r"pndm encodes images with its vqvae; the only supported VAE is Autoenc"):
        load_backbone(str(tmp_path / "pndm"))


@pytest.mark.parametrize("name", ["MadeUpTransformer2DModel", "FluxPipeline", "DDIMScheduler"])
def test_what_is_no_network_of_diffusers(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(ValueError, match=rf"is a {name}, which is no network of diffusers \d"):
        load_backbone(str(tmp_path))


def test_networks_that_need_what_is_not_known(tmp_path):
    import diffusers

    tiny.make_vae().save_pretrained(tmp_path / "vae")
    diffusers.Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=3,
        num_kv_heads=1, multiple_of=2, axes_dim_rope=(4, 2, 2), axes_lens=(32, 32, 32), cap_feat_dim=12,
    ).save_pretrained(tmp_path / "lumina")  # fmt: skip
    with pytest.raises(ValueError, match=r"lumina.*: a Lumina2Transformer2DModel needs encoder_\w+, and it is not"):
        load_backbone(str(tmp_path / "lumina"))
    diffusers.HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, patch_size=2, hidden_size=16, num_layers=2,
        sample_size=8, cross_attention_dim=16, cross_attention_dim_t5=16, pooled_projection_dim=8, text_len=4,
        text_len_t5=4,
    ).save_pretrained(tmp_path / "hunyuan")  # fmt: skip
    with pytest.raises(ValueError, match=r"is a HunyuanDiT2DModel, which does not run on the inputs .* known: .+"):
        load_backbone(str(tmp_path / "hunyuan"))
    diffusers.AutoencoderTiny().save_pretrained(tmp_path / "tiny")
    with pytest.raises(ValueError, match=r"AutoencoderTiny whose configuration says sample_size=None"):
        load_backbone(str(tmp_path / "tiny"))
