import copy
import json
import logging
import shutil

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, EulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from ddae.backbones import Settings, load_backbone
from ddae.backbones.base import Pixels
from ddae.backbones.vae import Latents, load_vae
from ddae.noise import VP, Flow
from tests.ddae.backbones import tiny
from tests.ddae.backbones.every_class import FOLDERS

TRANSFORMERS = (
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "ChromaTransformer2DModel",
    "AuraFlowTransformer2DModel",
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


def test_zeros_stand_for_text_and_it_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "ddae"):
        backbone = load_backbone(tiny.network_folder(tmp_path, "PixArtTransformer2DModel"))
    assert caplog.text.count("has no text encoder; its text is zeros") == 1
    text = backbone.inputs(torch.zeros(2, 4, 8, 8), 10)["encoder_hidden_states"]
    assert text.shape[::2] == (2, 12) and not text.any()


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
    folder = tiny.network_folder(tmp_path, "UNet2DConditionModel", in_channels=3, out_channels=6, sample_size=16)
    assert load_backbone(folder).encoder == Pixels(16)


def test_a_ddpm_in_a_pipeline_of_another_name_is_a_ddpm(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "pndm")
    (tmp_path / "pndm" / "model_index.json").write_text('{"_class_name": "PNDMPipeline"}')
    known, found = load_backbone(tiny_model), load_backbone(str(tmp_path / "pndm"))
    assert found.blocks == known.blocks


def test_a_unet_with_a_vae_beside_it_gets_latents(tmp_path):
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        8, in_channels=4, out_channels=4, block_out_channels=(8,), down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), norm_num_groups=4,
    )  # fmt: skip
    unet.save_pretrained(tmp_path / "unet")
    tiny.make_vae(scaling_factor=0.5).save_pretrained(tmp_path / "vae")
    backbone = load_backbone(str(tmp_path / "unet"))
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    vae = load_vae(str(tmp_path / "vae"), Settings())
    assert backbone.encoder.shape == (4, 8, 8)
    torch.testing.assert_close(backbone.encode(images), Latents(vae, 16)(images))


def test_a_network_is_run_with_what_lies_beside_it_in_its_pipeline(tmp_path, caplog):
    FOLDERS["StableDiffusion3Pipeline"](tmp_path)
    whole = load_backbone(str(tmp_path))
    part = load_backbone(str(tmp_path / "transformer"))
    assert part.fingerprint == whole.fingerprint
    assert "transformer is taken with what lies beside it in" in caplog.text


@pytest.mark.parametrize("name", ["MadeUpTransformer2DModel", "FluxPipeline", "DDIMScheduler"])
def test_what_is_no_network_of_diffusers(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(ValueError, match=rf"is a {name}, which is no network of diffusers \d"):
        load_backbone(str(tmp_path))


def test_what_cannot_be_run(tmp_path):
    import diffusers

    diffusers.AutoencoderTiny().save_pretrained(tmp_path / "tiny")
    with pytest.raises(ValueError, match=r"AutoencoderTiny, which no pipeline of diffusers \d\S+ runs"):
        load_backbone(str(tmp_path / "tiny"))
    folder = tiny.network_folder(tmp_path, "SD3Transformer2DModel")
    (tmp_path / "vae").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"model needs its VAE; put the VAE's folder into it as \S+/vae, or beside it"):
        load_backbone(folder)
    (tmp_path / "elsewhere").rename(tmp_path / "vae")
    with pytest.raises(ValueError, match=r"model is a SD3\w+, and StableDiffusion3Pipeline does not run it alone"):
        load_backbone(folder, Settings(image_size=17))


def test_a_copy_of_a_network_is_given_what_the_network_is_given(tmp_path):
    """As training copies it before it cuts it."""
    backbone = load_backbone(tiny.network_folder(tmp_path, "SD3Transformer2DModel"))
    x_t, name = torch.randn(2, *backbone.encoder.shape), backbone.blocks[-1].name
    maps = [each.capture(x_t, 40, [name], lambda map: map)[name] for each in (backbone, copy.deepcopy(backbone))]
    assert torch.equal(*maps)


@torch.no_grad()
def test_any_module_is_a_block_by_its_path(tmp_path):
    FOLDERS["FluxPipeline"](tmp_path)
    backbone = load_backbone(str(tmp_path), Settings(image_size=32))
    names = [block.name for block in backbone.blocks]
    x_t = torch.randn(2, *backbone.encoder.shape)
    query, whole = "transformer_blocks.1.attn.to_q", "block.1"
    before = backbone.capture(x_t, 250, [whole], lambda map: map)[whole]
    block = backbone.block(query)
    assert (block.channels, block.size) == (16, 8) and 0 < block.flops_share < 1
    maps = backbone.activations(x_t, None, 250, [query, whole])
    assert torch.equal(maps[whole], before)
    kept = []
    backbone.network.get_submodule(query).register_forward_hook(lambda module, inputs, output: kept.append(output))
    backbone.network(**backbone.inputs(x_t, 250))
    assert torch.equal(maps[query], kept[0].transpose(1, 2).unflatten(2, (8, 8)))
    assert [block.name for block in backbone.blocks if block.name in names] == names
    for text in ("transformer_blocks.1.attn.add_q_proj", "time_text_embed"):
        with pytest.raises(ValueError, match=rf"block='{text}' returns no map of the image, or runs more than once; "):
            backbone.block(text)
    with pytest.raises(ValueError, match=r"block='nothing.there' is not in this backbone; it has: "):
        backbone.block("nothing.there")


def test_a_module_that_runs_more_than_once_is_no_block():
    backbone = load_backbone("torchvision:resnet18@random")
    backbone.add_modules(path for path, _ in backbone.network.named_modules())
    assert "layer1.0.bn2" in backbone.modules and "layer1.0.relu" not in backbone.modules


def test_a_network_alone_has_the_noise_of_the_scheduler_beside_it(tmp_path):
    folder = tiny.network_folder(tmp_path, "CogView3PlusTransformer2DModel")
    scheduler = CogVideoXDDIMScheduler(snr_shift_scale=4.0, rescale_betas_zero_snr=True)
    scheduler.save_pretrained(tmp_path / "scheduler")
    backbone = load_backbone(folder)
    a = float(scheduler.alphas_cumprod[100])
    assert backbone.sigma(100) == pytest.approx(((1 - a) / a) ** 0.5)


def test_noise_in_sigmas_is_not_taken_for_variance_preserving(tmp_path):
    folder = tiny.network_folder(tmp_path, "UNet2DConditionModel")
    EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction").save_pretrained(
        tmp_path / "scheduler"
    )
    with pytest.raises(ValueError, match="EulerDiscreteScheduler, in sigmas; what can be read"):
        load_backbone(folder)


@pytest.mark.parametrize("channels", [2, 5, 16])
def test_a_vae_of_other_channels_is_refused(tmp_path, channels):
    folder = tiny.network_folder(tmp_path, "UNet2DConditionModel", in_channels=channels, out_channels=channels)
    with pytest.raises(ValueError, match=rf"decodes {channels} channels, and its VAE makes 4"):
        load_backbone(folder)


def test_a_pipeline_of_an_unknown_name_keeps_its_text_encoders(tmp_path, caplog):
    FOLDERS["FluxPipeline"](tmp_path)
    known = load_backbone(str(tmp_path), Settings(image_size=32))
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"_class_name": "MyPipeline"}))
    found = load_backbone(str(tmp_path), Settings(image_size=32))
    x_t = torch.zeros(1, *known.encoder.shape)
    ours, theirs = (each.inputs(x_t, 250)["encoder_hidden_states"] for each in (found, known))
    assert torch.equal(ours, theirs) and ours.any()
    assert "is a MyPipeline; it is run as FluxPipeline runs it" in caplog.text


def test_weights_of_one_half_precision_alone_are_found_and_stay_in_it(tmp_path):
    FOLDERS["StableDiffusion3Pipeline"](tmp_path)
    whole = load_backbone(str(tmp_path), Settings(precision="float16"))
    for folder in ("transformer", "vae"):
        [file] = (tmp_path / folder).glob("*.safetensors")
        half = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(half, file.with_name("diffusion_pytorch_model.fp16.safetensors"), {"format": "pt"})
        file.unlink()
    half = load_backbone(str(tmp_path), Settings(precision="float16"))
    assert half.network.transformer_blocks[0].attn.to_q.weight.dtype == torch.float16
    assert next(half.encoder.vae.parameters()).dtype == torch.float32
    upcast = load_backbone(str(tmp_path))
    assert {tensor.dtype for tensor in upcast.network.parameters()} == {torch.float32}
    x_t, name = torch.randn(1, *half.encoder.shape), half.blocks[-1].name
    ours, theirs = (each.capture(x_t, 250, [name], lambda map: map)[name].float() for each in (half, whole))
    assert (ours - theirs).norm() < 0.02 * theirs.norm()
