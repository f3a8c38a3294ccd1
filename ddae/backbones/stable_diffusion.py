"""Stable Diffusion 1.x and 2.x in diffusers format (Rombach et al. 2022): a UNet on latents, given one text for all
images."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddae.backbones.base import Backbone, Settings, check_finite
from ddae.backbones.files import check_files, load_network, load_pretrained
from ddae.backbones.predictions import of_scheduler
from ddae.backbones.schedules import make_scheduler, noise_of
from ddae.backbones.unets import openai_specs, unet_inputs
from ddae.backbones.vae import latents_of, with_vae

logger = logging.getLogger("ddae")


@dataclass(frozen=True)
class TextInputs:
    """Makes the arguments of the UNet, with the same text for every image."""

    text: Tensor
    """[T, width]: the last hidden state of the text encoder, or a learned embedding instead."""

    def __call__(self, x_t: Tensor, timestep: int) -> dict[str, Any]:
        text = self.text.to(x_t.device).expand(len(x_t), -1, -1)
        return {**unet_inputs(x_t, timestep), "encoder_hidden_states": text}


def text_inputs(backbone: Backbone) -> TextInputs:
    """The inputs of a network that takes text. Raises ValueError for any other."""
    if not isinstance(backbone.inputs, TextInputs):
        raise ValueError(
            f"a {type(backbone.network).__name__} takes no text embedding; give a StableDiffusionPipeline as backbone"
        )
    return backbone.inputs


def load(folder: Path, fingerprint: str, settings: Settings) -> Backbone:
    """Loads a StableDiffusionPipeline. Blocks are counted as in guided diffusion: Stable Diffusion 1.5 has 25, and b18
    is up_blocks.1.attentions.1. Timesteps are 0..999."""
    from diffusers import UNet2DConditionModel

    unet = load_network(UNet2DConditionModel, folder / "unet", settings.precision)
    for condition in ("addition_embed_type", "class_embed_type", "num_class_embeds"):
        if unet.config[condition] is not None:
            raise ValueError(f"{folder}/unet wants more than a text ({condition}), which is not supported yet")
    if not isinstance(unet.config.sample_size, int):
        raise ValueError(f"{folder}/unet has sample_size={unet.config.sample_size}; a square size is needed")
    stride = 2 ** (len(unet.down_blocks) - 1)
    encoder = latents_of(folder, unet.config.in_channels, unet.config.sample_size, stride, settings)
    if settings.text_embedding:
        text = read_text(settings.text_embedding)
    elif (folder / "text_encoder").is_dir():
        text = null_text(folder)
    else:
        logger.warning("%s has no text encoder; its text is zeros, which it was not trained with", folder)
        text = torch.zeros(77, unet.config.cross_attention_dim)
    if text.shape[1] != unet.config.cross_attention_dim:
        raise ValueError(
            f"text_embedding={settings.text_embedding!r} is {text.shape[1]} wide and {folder} takes texts of "
            f"{unet.config.cross_attention_dim}; learn one for it with sweeps/learn_text.py"
        )
    inputs, fingerprint = TextInputs(text.to(settings.device)), with_vae(fingerprint, encoder)
    scheduler = make_scheduler(folder)
    schedule, specs = noise_of(scheduler, folder), openai_specs(unet)
    denoised = of_scheduler(scheduler, schedule)
    return Backbone(unet, specs, schedule, encoder, inputs, fingerprint, settings, denoised=denoised)


@torch.no_grad()
def null_text(folder: Path) -> Tensor:
    """[T, width]: an empty prompt, encoded by the pipeline's text encoder."""
    from transformers import CLIPTextModel, CLIPTokenizer

    if not (folder / "tokenizer").is_dir():
        raise ValueError(f"{folder} has text_encoder/ and lacks tokenizer/; put it there")
    check_files(folder / "text_encoder", "*model")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    prompt = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    encoder = load_pretrained(CLIPTextModel, folder / "text_encoder")
    check_finite(encoder)
    mask = prompt.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    return encoder(prompt.input_ids, attention_mask=mask).last_hidden_state[0]


def read_text(file: str) -> Tensor:
    """[T, width]: the tensor `text` of a file that sweeps/learn_text.py has written."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        text = load_file(file)["text"].float()
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(f"text_embedding={file!r} cannot be read; sweeps/learn_text.py makes one ({error})") from error
    if text.ndim != 2 or not text.isfinite().all():
        raise ValueError(f"text_embedding={file!r} is {list(text.shape)}; it must be [tokens, width], without NaN")
    return text
