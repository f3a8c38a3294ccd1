import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ddae.backbones import Settings, load_backbone
from ddae.backbones.base import Backbone, Pixels
from ddae.backbones.stable_diffusion import TextInputs
from ddae.backbones.unets import openai_specs
from ddae.noise import VP


@pytest.fixture(scope="module")
def backbone(tiny_stable_diffusion) -> Backbone:
    return load_backbone(tiny_stable_diffusion)


@pytest.fixture(scope="module")
def pipeline(tiny_stable_diffusion):
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(tiny_stable_diffusion, safety_checker=None)


def test_the_null_text_is_what_the_pipeline_makes_of_an_empty_prompt(backbone, pipeline):
    text, _ = pipeline.encode_prompt("", "cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    assert torch.equal(backbone.inputs.text, text[0])
    other, _ = pipeline.encode_prompt("a b", "cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    assert not torch.allclose(other, text)


@torch.no_grad()
@pytest.mark.parametrize("timestep", [0, 150, 999])
def test_features_are_what_the_pipelines_own_parts_compute(backbone, pipeline, timestep):
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    names = [block.name for block in backbone.blocks]
    maps = backbone.activations(backbone.encode(images), noise, timestep, names)

    vae = pipeline.vae
    latents = vae.encode(pipeline.image_processor.preprocess(images / 255)).latent_dist.mean * vae.config.scaling_factor
    x_t = pipeline.scheduler.add_noise(latents, noise, torch.tensor([timestep] * 2))
    text, _ = pipeline.encode_prompt(["", ""], "cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    expected = {}
    for block in backbone.blocks:
        hook = lambda module, inputs, output, name=block.name: expected.__setitem__(name, output)  # noqa: E731
        pipeline.unet.get_submodule(block.module).register_forward_hook(hook)
    pipeline.unet(x_t, timestep, encoder_hidden_states=text)
    for name, output in expected.items():
        map = output if isinstance(output, torch.Tensor) else output[0]
        torch.testing.assert_close(maps[name], map, rtol=1e-5, atol=1e-5)


def test_noise_is_the_scaled_linear_schedule(backbone):
    alphas = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    assert backbone.schedule.timesteps == range(1000)
    for timestep in (0, 150, 999):
        sigma = ((1 - alphas[timestep]) / alphas[timestep]) ** 0.5
        assert backbone.sigma(timestep) == pytest.approx(sigma, rel=1e-4)  # float32


def full_size(image_size: int) -> Backbone:
    """Stable Diffusion 1.5 as its published configuration has it, without weights."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            layers_per_block=2,
            attention_head_dim=8,
            cross_attention_dim=768,
        )
        inputs = TextInputs(torch.empty(77, 768))
    latents = Pixels(image_size // 8, channels=4)
    return Backbone(unet, openai_specs(unet), VP([0.9]), latents, inputs, "", Settings(device="meta"))


@pytest.mark.parametrize(("image_size", "side"), [(512, 16), (256, 8)])
def test_blocks_of_stable_diffusion_1_5(image_size, side):
    backbone = full_size(image_size)
    assert sum(parameter.numel() for parameter in backbone.network.parameters()) == 859_520_964
    assert [block.alias for block in backbone.blocks] == [f"b{b}" for b in range(1, 26)]
    blocks = {block.alias: block for block in backbone.blocks}
    b18, b15, b13 = blocks["b18"], blocks["b15"], blocks["b13"]
    assert (b18.name, b18.module) == ("up.1.1", "up_blocks.1.attentions.1")
    assert (b18.channels, b18.size) == (1280, side)
    assert (b15.name, b15.module) == ("up.0.1", "up_blocks.0.resnets.1")
    assert (b15.channels, b15.size) == (1280, side // 2)
    assert (b13.name, b13.size) == ("mid", side // 2)
    assert [(blocks[b].channels, blocks[b].size) for b in ("b1", "b25")] == [(320, 4 * side)] * 2


def test_other_image_sizes(backbone, tiny_stable_diffusion):
    larger = load_backbone(tiny_stable_diffusion, Settings(image_size=128))
    assert (backbone.image_size, larger.image_size) == (64, 128)
    assert [block.size for block in larger.blocks] == [2 * block.size for block in backbone.blocks]
    assert larger.fingerprint != backbone.fingerprint
    with pytest.raises(ValueError, match=r"image_size=96 .* multiples of 64"):
        load_backbone(tiny_stable_diffusion, Settings(image_size=96))


@pytest.mark.parametrize("num_tokens", [1, 8])
def test_a_text_embedding_takes_the_place_of_the_null_text(backbone, tiny_stable_diffusion, tmp_path, num_tokens):
    file = str(tmp_path / "text.safetensors")
    save_file({"text": torch.randn(num_tokens, 32)}, file)
    other = load_backbone(tiny_stable_diffusion, Settings(text_embedding=file))
    assert other.fingerprint != backbone.fingerprint
    x0, noise = torch.randn(2, 2, 4, 8, 8)
    for name, depends in (("in", False), ("down.0.0", True), ("up.1.1", True)):
        null, learned = (each.activations(x0, noise, 150, [name])[name] for each in (backbone, other))
        assert torch.equal(null, learned) is not depends


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"text": torch.zeros(8, 16)}, "is 16 wide and .* takes texts of 32"),
        ({"text": torch.zeros(1, 8, 32)}, r"is \[1, 8, 32\]; it must be \[tokens, width\]"),
        ({"emb_params": torch.zeros(8, 32)}, "cannot be read; sweeps/learn_text.py makes one"),
    ],
)
def test_unsuitable_text_embeddings(tiny_stable_diffusion, tmp_path, tensors, expected):
    file = tmp_path / "text.safetensors"
    save_file(tensors, file)
    with pytest.raises(ValueError, match=f"text_embedding='{file}' {expected}"):
        load_backbone(tiny_stable_diffusion, Settings(text_embedding=str(file)))


def test_a_text_embedding_that_is_no_file_or_no_safetensors(tiny_stable_diffusion, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.safetensors"):
        load_backbone(tiny_stable_diffusion, Settings(text_embedding=str(tmp_path / "nowhere.safetensors")))
    (tmp_path / "text.pt").write_bytes(b"broken")
    with pytest.raises(ValueError, match="cannot be read"):
        load_backbone(tiny_stable_diffusion, Settings(text_embedding=str(tmp_path / "text.pt")))


def test_conditions_beside_the_text_are_refused(tiny_stable_diffusion, tmp_path):
    from diffusers import UNet2DConditionModel

    folder = Path(shutil.copytree(tiny_stable_diffusion, tmp_path / "model"))
    config = UNet2DConditionModel.load_config(folder / "unet")
    UNet2DConditionModel.from_config({**config, "num_class_embeds": 10}).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match="wants more than a text"):
        load_backbone(str(folder))


def test_loading_writes_nothing_to_the_terminal(tiny_stable_diffusion, capfd):
    load_backbone(tiny_stable_diffusion)
    assert capfd.readouterr() == ("", "")
