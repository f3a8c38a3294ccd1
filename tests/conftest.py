import json
import os
import shutil

import pytest
import torch

# before diffusers and Ray load, and for child processes; the last puts Ray on loopback
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def environment():
    """A command that runs in this process leaves no variable behind."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def fork():
    """A function that starts a command, soon there, on a Ray of one CPU that all of them share."""
    from ray.cluster_utils import Cluster

    from tests.commands import Fork

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 2**28}
    )

    def start(command, *args, cwd, **env):
        return Fork(command, *args, cwd=cwd, RAY_ADDRESS=cluster.address, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", **env)

    yield start
    cluster.shutdown()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """A diffusers pipeline folder with a random UNet of 16x16 images: 8 blocks, attention in the middle."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    folder = tmp_path_factory.mktemp("model")
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=1000)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_stable_diffusion(tmp_path_factory) -> str:
    """A Stable Diffusion 1.x folder with random networks: 64x64 images, latents of 4x8x8, texts of 8 tokens of 32."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16, 16),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=32,
    )
    vae = AutoencoderKL(
        sample_size=64,
        block_out_channels=(4, 4, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    start, end = "<|startoftext|>", "<|endoftext|>"
    text = CLIPTextConfig(
        vocab_size=4, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=2, eos_token_id=3, pad_token_id=3,
    )  # fmt: skip
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    (tokenizer / "vocab.json").write_text(json.dumps({"a</w>": 0, "b</w>": 1, start: 2, end: 3}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 8, **special}))
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    folder = tmp_path_factory.mktemp("stable-diffusion")
    StableDiffusionPipeline(
        vae, CLIPTextModel(text), CLIPTokenizer.from_pretrained(tokenizer), unet, scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    (folder / "tokenizer" / "tokenizer.json").unlink()  # the published folders have vocabulary and merges alone
    return str(folder)
