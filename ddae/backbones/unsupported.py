"""Checkpoints of public codes that are known and not loaded: what they are, and what to do instead."""

import re
from collections.abc import Collection
from pathlib import Path

CONVERT = "convert it with diffusers (`{}.from_single_file(path).save_pretrained(folder)`) and give the folder"
NO_LOADER = "it is not supported; the networks that are stand in docs/what-was-verified.md"

LATENT = r"(input_blocks|output_blocks|middle_block)\.(\d+\.)?1\.transformer_blocks\.0\..*"

UNSUPPORTED: dict[str, tuple[str, str]] = {
    r"in_blocks\.0\.attn\.qkv\.weight": ("a U-ViT", NO_LOADER),
    r"en_inblocks\.0\..*": ("an MDT (Masked Diffusion Transformer)", NO_LOADER),
    r"decoder_layer\.adaLN_modulation\..*|decoder_pos_embed": ("a MaskDiT", NO_LOADER),
    r"feat_rope\.freqs_cos|blocks\.0\.mlp\.w12\.weight": ("a LightningDiT, or another DiT with gated units", NO_LOADER),
    r"blocks\.0\.(mlp|ff)\.(w1|gate_proj)\.weight": ("a transformer with gated units", NO_LOADER),
    LATENT: (
        "the UNet of a latent diffusion model (Stable Diffusion, LDM)",
        "convert it with diffusers (`StableDiffusionPipeline.from_single_file(path).save_pretrained(folder)`, or "
        "scripts/convert_ldm_original_checkpoint_to_diffusers.py where there is no text) and give the folder",
    ),
    r"double_blocks\.0\.img_attn\.qkv\.weight": ("a FLUX", CONVERT.format("FluxTransformer2DModel")),
    r"joint_blocks\.0\.x_block\.attn\.qkv\.weight": (
        "a Stable Diffusion 3",
        CONVERT.format("SD3Transformer2DModel"),
    ),
    r"t_block\.1\.weight": (
        "a PixArt",
        "give the diffusers folder of the same network, such as those of PixArt-alpha on the hub",
    ),
    r"all_modules\.0\.(W|weight)": (
        "a network of score_sde (NCSN++ or DDPM++)",
        "EDM publishes the same networks as baseline/*.pkl, which are loaded",
    ),
    r"temb\.dense\.0\.weight": (
        "a DDPM of the DDIM code",
        "give the diffusers folder of the same network, such as google/ddpm-cifar10-32",
    ),
    r"init_conv\.weight": ("a UNet of denoising-diffusion-pytorch or of a code like it", NO_LOADER),
    r"(encoder|decoder)\.conv_in\.weight": (
        "an autoencoder",
        "name it as `vae` beside the network that denoises its latents, and give that network",
    ),
    r"down_blocks\.0\.resnets\.0\.conv1\.weight|transformer_blocks\.0\.attn1\.to_q\.weight": (
        "the weights of a diffusers folder without their config.json",
        "give the folder, with the config.json in it",
    ),
    r"(vision_model|visual)\..*|cls_token|class_token|conv1\.weight": (
        "a classifier or an image encoder",
        "give classifiers by library and name, as timm:NAME, torchvision:NAME or transformers:NAME",
    ),
}
"""Names of tensors, as patterns -> (what the file is, what to do instead). The first that fits decides."""


def refuse_unsupported(names: Collection[str], beside: Collection[str], path: Path) -> None:
    """Raises ValueError, which calls the network by its name, if these tensors are of a known one that is not loaded.
    beside: keys of what else is in the file."""
    if "input_blocks.0.0.weight" in names and any("first_stage_model" in key for key in beside):
        what, remedy = UNSUPPORTED[LATENT]
        raise ValueError(f"{path} is {what}, as the autoencoder (first_stage_model) in it shows; {remedy}")
    for pattern, (what, remedy) in UNSUPPORTED.items():
        if name := next(filter(re.compile(pattern).fullmatch, names), None):
            raise ValueError(f"{path} is {what}, as its tensor {name} shows; {remedy}")
