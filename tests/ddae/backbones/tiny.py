"""Tiny random networks of every family, in the format in which they are published."""

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.ddae.backbones.nvlabs import edm_snapshot, nvlabs_module, nvlabs_save
from tests.ddae.backbones.official import (
    adm_shapes,
    ddae_shapes,
    dit_shapes,
    edm2_shapes,
    random_state,
    song_unet_shapes,
)


def ddpm_folder(folder: Path, tiny_model: str) -> str:
    return tiny_model


def edm_pickle(folder: Path, tiny_model: str) -> str:
    path = folder / "network-snapshot.pkl"
    edm_snapshot(path, random_state(song_unet_shapes()), sigma_data=0.5)
    return str(path)


def edm_folder(folder: Path, tiny_model: str) -> str:
    from ddae.backbones.song_unet import SongUNet2DModel

    SongUNet2DModel(
        sample_size=8,
        stem_channels=8,
        block_out_channels=(16, 8),
        layers_per_block=1,
        attention_resolutions=(4,),
        noise_channels=8,
        time_embedding_dim=32,
    ).save_pretrained(folder)
    return str(folder)


def adm_file(folder: Path, tiny_model: str) -> str:
    torch.save(random_state(adm_shapes()), folder / "model.pt")
    (folder / "model.json").write_text(json.dumps({"image_size": 16, "num_head_channels": 32}))
    return str(folder / "model.pt")


def ddae_file(folder: Path, tiny_model: str) -> str:
    """With the moving average and the YAML that the DDAE code writes and reads."""
    state = random_state(ddae_shapes())
    wrapped = {"step": torch.tensor(1)} | {f"ema_model.nn_model.{name}": tensor for name, tensor in state.items()}
    online = {f"online_model.nn_model.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    ddp = {f"module.nn_model.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save({"MODEL": ddp, "EMA": wrapped | online, "opt": {}}, folder / "model_800.pth")
    (folder / "model_800.yaml").write_text(
        "model_type: 'DDPM'\ndiffusion:\n  n_T: 1000\n  betas: [1.0e-4, 0.02]\nnetwork:\n  image_shape: [3, 16, 16]\n"
    )
    return str(folder / "model_800.pth")


def ddae_edm_file(folder: Path, tiny_model: str) -> str:
    """Without its YAML: told by its folder."""
    path = folder / "output_EDM_ddpmpp" / "model.pth"
    path.parent.mkdir()
    torch.save(random_state(ddae_shapes(ch_mults=(2, 2), use_res_for_updown=True, augment_dim=9)), path)
    return str(path)


def edm2_pickle(folder: Path, tiny_model: str) -> str:
    """Without the attributes that its classes have."""
    state = {f"unet.{name}": each for name, each in random_state(edm2_shapes()).items()}
    nvlabs_save(folder / "edm2.pkl", {"ema": nvlabs_module(state, "Precond", sigma_data=0.5)})
    return str(folder / "edm2.pkl")


def make_vae(levels: int = 2, **options: Any) -> Any:
    """A random AutoencoderKL. Every level but one halves the side of an image."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        **{
            "block_out_channels": (4,) * (levels - 1) + (8,),
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "norm_num_groups": 4,
            "latent_channels": 4,
            **options,
        }
    )


def dit_file(folder: Path, tiny_model: str) -> str:
    """As DiT's training script writes it, with the VAE beside it."""
    state = random_state(dit_shapes())
    model = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save({"model": model, "ema": state, "opt": {}, "args": Namespace(model="tiny")}, folder / "0050000.pt")
    (folder / "0050000.json").write_text(json.dumps({"num_heads": 2}))
    make_vae().save_pretrained(folder / "vae")
    return str(folder / "0050000.pt")


def sit_file(folder: Path, tiny_model: str) -> str:
    make_vae().save_pretrained(folder / "vae")
    torch.save(random_state(dit_shapes()), folder / "SiT-tiny.pt")
    (folder / "SiT-tiny.json").write_text(json.dumps({"num_heads": 2}))
    return str(folder / "SiT-tiny.pt")


def dit_folder(folder: Path, tiny_model: str) -> str:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    vae = make_vae()
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, out_channels=8, num_layers=2, sample_size=8, num_embeds_ada_norm=3
    )
    DiTPipeline(transformer, vae, DDIMScheduler(beta_start=1e-4, beta_end=0.02)).save_pretrained(folder)
    return str(folder)


HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
NETWORKS: dict[str, dict[str, Any]] = {
    "PixArtTransformer2DModel": {
        **HEADS, "out_channels": 8, "num_layers": 2, "cross_attention_dim": 16, "caption_channels": 12,
        "sample_size": 8,
    },
    "SD3Transformer2DModel": {
        **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "joint_attention_dim": 12, "sample_size": 8,
        "caption_projection_dim": 16, "pooled_projection_dim": 10, "pos_embed_max_size": 8,
    },
    "UNet2DConditionModel": {
        "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 12, "attention_head_dim": 4,
    },
    "FluxTransformer2DModel": {
        **HEADS, "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 12,
        "pooled_projection_dim": 10, "axes_dims_rope": (2, 2, 4), "guidance_embeds": True,
    },
    "ChromaTransformer2DModel": {
        **HEADS, "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 12,
        "axes_dims_rope": (2, 2, 4), "approximator_num_channels": 8, "approximator_hidden_dim": 16,
        "approximator_layers": 1,
    },
    "AuraFlowTransformer2DModel": {
        **HEADS, "in_channels": 4, "out_channels": 4, "num_mmdit_layers": 2, "num_single_dit_layers": 2,
        "joint_attention_dim": 12, "caption_projection_dim": 16, "sample_size": 8, "pos_embed_max_size": 64,
    },
    "CogView3PlusTransformer2DModel": {
        **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "text_embed_dim": 12, "time_embed_dim": 16,
        "condition_dim": 4, "pos_embed_max_size": 8, "sample_size": 8,
    },
}  # fmt: skip
"""Classes of diffusers that no file of ours is about -> a tiny configuration."""


def network_folder(folder: Path, kind: str, **options: Any) -> str:
    """The network alone, with its VAE beside it."""
    import diffusers

    torch.manual_seed(0)
    network = getattr(diffusers, kind)(**NETWORKS[kind] | options)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder / "model")
    make_vae().save_pretrained(folder / "vae")
    return str(folder / "model")


def generic_folder(kind: str) -> Callable[[Path, str], str]:
    return lambda folder, tiny_model: network_folder(folder, kind)


def dinov2_folder(folder: Path, tiny_model: str) -> str:
    """With four registers, and the image processor that such a model is published with."""
    from transformers import BitImageProcessor, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    torch.manual_seed(0)
    config = Dinov2WithRegistersConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=42, patch_size=14
    )
    Dinov2WithRegistersModel(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}
    BitImageProcessor(**size).save_pretrained(folder)
    return f"transformers:{folder}"


TINY: dict[str, Callable[[Path, str], str] | str] = {
    "ddpm": ddpm_folder,
    "adm": adm_file,
    "edm": edm_pickle,
    "edm-folder": edm_folder,
    "ddae": ddae_file,
    "ddae-edm": ddae_edm_file,
    "stable-diffusion": "tiny_stable_diffusion",
    "edm2": edm2_pickle,
    "sit": sit_file,
    "dit": dit_file,
    "dit-folder": dit_folder,
    "generic-pixart": generic_folder("PixArtTransformer2DModel"),
    "generic-sd3": generic_folder("SD3Transformer2DModel"),
    "generic-unet": generic_folder("UNet2DConditionModel"),
    "torchvision": lambda folder, tiny_model: "torchvision:squeezenet1_1@random",
    "timm": lambda folder, tiny_model: "timm:test_vit@random",
    "transformers": dinov2_folder,
}
"""Family -> (an empty folder, the tiny DDPM of all tests) -> a name that load_backbone takes; or a fixture that
is such a name."""
