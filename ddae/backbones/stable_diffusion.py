"""Stable Diffusion 1.x and 2.x in diffusers format (Rombach et al. 2022): latents, with one text for all images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddae.backbones.adm import openai_places
from ddae.backbones.base import Backbone, Settings, check_finite
from ddae.backbones.ddpm import read_schedule
from ddae.backbones.files import check_whole, load_network
from ddae.backbones.vae import latents_of, with_vae


@dataclass(frozen=True)
class TextInputs:
    """What the UNet takes, with the same text for every image."""

    text: Tensor
    """[T, width]: the text encoder's last hidden state, or what was learned in its place."""

    def __call__(self, x_t: Tensor, timestep: int) -> dict[str, Any]:
        return {
            "sample": x_t,
            "timestep": torch.full((len(x_t),), timestep, device=x_t.device),
            "encoder_hidden_states": self.text.to(x_t.device).expand(len(x_t), -1, -1),
        }


def text_inputs(backbone: Backbone) -> TextInputs:
    """Raises ValueError for a network that takes no text."""
    if not isinstance(backbone.inputs, TextInputs):
        raise ValueError(
            f"a {type(backbone.network).__name__} takes no text embedding; give a StableDiffusionPipeline as backbone"
        )
    return backbone.inputs


def load(folder: Path, fingerprint: str, settings: Settings) -> Backbone:
    """A StableDiffusionPipeline. Blocks by guided diffusion's counting, 25 in Stable Diffusion 1.5: b18 is
    up_blocks.1.attentions.1. Timesteps 0..999."""
    from diffusers import UNet2DConditionModel

    unet = load_network(UNet2DConditionModel, folder / "unet")
    for condition in ("addition_embed_type", "class_embed_type", "num_class_embeds"):
        if unet.config[condition] is not None:
            raise ValueError(f"{folder}/unet wants more than a text ({condition}), which is not supported yet")
    if not isinstance(unet.config.sample_size, int):
        raise ValueError(f"{folder}/unet has sample_size={unet.config.sample_size}; a square size is needed")
    stride = 2 ** (len(unet.down_blocks) - 1)
    encoder = latents_of(folder, unet.config.in_channels, unet.config.sample_size, stride, settings)
    text = read_text(settings.text_embedding) if settings.text_embedding else null_text(folder)
    if text.shape[1] != unet.config.cross_attention_dim:
        raise ValueError(
            f"text_embedding={settings.text_embedding!r} is {text.shape[1]} wide and {folder} takes texts of "
            f"{unet.config.cross_attention_dim}; learn one for it with sweeps/learn_text.py"
        )
    return Backbone(
        unet,
        openai_places(unet),
        read_schedule(folder),
        encoder,
        TextInputs(text.to(settings.device)),
        with_vae(fingerprint, encoder),
        settings,
    )


@torch.no_grad()
def null_text(folder: Path) -> Tensor:
    """[T, width], what the pipeline's text encoder makes of an empty prompt."""
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    prompt = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        loaded: Any = CLIPTextModel.from_pretrained(folder / "text_encoder", output_loading_info=True)
    finally:
        if shown:
            logging.enable_progress_bar()
    encoder, found = loaded
    check_whole(found, folder / "text_encoder")
    check_finite(encoder.float().eval())
    mask = prompt.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    return encoder(prompt.input_ids, attention_mask=mask).last_hidden_state[0]


def read_text(file: str) -> Tensor:
    """[T, width], the tensor `text` of a file that sweeps/learn_text.py has written."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        text = load_file(file)["text"].float()
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(f"text_embedding={file!r} cannot be read; sweeps/learn_text.py makes one ({error})") from error
    if text.ndim != 2 or not text.isfinite().all():
        raise ValueError(f"text_embedding={file!r} is {list(text.shape)}; it must be [tokens, width], without NaN")
    return text
