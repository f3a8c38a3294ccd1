"""Components of tiny pipelines: tokenizers and text encoders, autoencoders, schedulers as published.

A component is (the name of a class of diffusers or transformers, its configuration) or a function that makes one.
"""

import string
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch

Component = tuple[str, dict[str, Any]] | Callable[[], Any] | None
Components = dict[str, Component]


@dataclass(frozen=True)
class Tiny:
    """A pipeline whose class is the first word of its id."""

    components: Components
    options: dict[str, Any] = field(default_factory=dict)
    """Given to its constructor beside the components."""
    call: dict[str, Any] = field(default_factory=dict)
    """Given to its call beside a prompt; a function is called for its value, None takes the prompt away."""
    load: dict[str, Any] = field(default_factory=dict)
    """Given to `from_pretrained`, where a part is not in the folder."""
    published_as: dict[str, str] = field(default_factory=dict)
    """Component -> the class that published folders name, where it has another name by now."""


LETTERS = [*string.ascii_letters, *string.digits, *string.punctuation]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part.get('text', '') }}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template of Qwen: every message between <|im_start|> and <|im_end|>."""
QWEN_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<think>", "</think>"),
]


def make(component: Component, seed: int = 0) -> Any:
    if not isinstance(component, tuple):
        return component() if callable(component) else component
    import diffusers
    import transformers

    name, config = component
    kind = getattr(diffusers, name, None) or getattr(transformers, name)
    of_transformers = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    made = kind(kind.config_class(**config)) if of_transformers else kind(**config)
    if isinstance(made, torch.nn.Module):
        randomise(made.eval(), seed)
    return made


def randomise(network: torch.nn.Module, seed: int) -> None:
    """Every parameter random, so that every input matters: gates and last layers often start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        norm = parameter.ndim == 1 and bool((parameter == 1).all())
        std = max(1, prod(parameter.shape[1:])) ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = torch.randn(parameter.shape, generator=generator) * std + norm


def numbered(tokens: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def clip_tokenizer(length: int = 77) -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    bytes_ = sorted(ByteLevel.alphabet())
    vocabulary = numbered([*bytes_, *(f"{byte}</w>" for byte in bytes_), "<|startoftext|>", "<|endoftext|>"])
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)


def t5_tokenizer(length: int = 512) -> Any:
    from transformers import T5TokenizerFast

    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    return T5TokenizerFast(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=length)


def qwen_tokenizer(**options: Any) -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2TokenizerFast

    vocabulary = numbered([*QWEN_TOKENS, *sorted(ByteLevel.alphabet())])
    extra = {"extra_special_tokens": QWEN_TOKENS[1:8]}
    return Qwen2TokenizerFast(vocab=vocabulary, merges=[], chat_template=CHAT, **extra | options)


def qwen_processor(family: str) -> Any:
    """Of "Qwen2VL" or "Qwen3VL", for images of 4 to 64 tokens."""
    import transformers

    tokenizer = qwen_tokenizer()
    images = transformers.Qwen2VLImageProcessor(patch_size=4, min_pixels=64, max_pixels=1024)
    videos = getattr(transformers, f"{family}VideoProcessor")()
    kind = getattr(transformers, f"{family}Processor")
    return kind(images, tokenizer, videos, chat_template=tokenizer.chat_template)


def gemma_tokenizer(**options: Any) -> Any:
    from transformers import GemmaTokenizerFast

    vocabulary = numbered(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS])
    return GemmaTokenizerFast(vocab=vocabulary, merges=[], add_bos_token=True, **options)


def llama_tokenizer() -> Any:
    from transformers import LlamaTokenizerFast

    vocabulary = numbered(["<unk>", "<s>", "</s>", "▁", *LETTERS])
    return LlamaTokenizerFast(vocab=vocabulary, merges=[], model_max_length=128, add_bos_token=True)


def bert_tokenizer() -> Any:
    from transformers import BertTokenizer

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
    return BertTokenizer(vocab=numbered(tokens), model_max_length=77)


def word_tokenizer(start: str = "", **options: Any) -> Any:
    """Words apart, all but a few unknown, after the tokens of `start`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = numbered(["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "[IMG]", "[gMASK]", "<sop>", *LETTERS])
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if start:
        tokens = [(token, vocabulary[token]) for token in start.split()]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A", special_tokens=tokens)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "chat_template": CHAT, "model_max_length": 512}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names | options)


ATTENTION = {"num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16}
CAUSAL = {**ATTENTION, "num_key_value_heads": 1, "vocab_size": 320, "max_position_embeddings": 2048}


def clip(suffix: str = "", width: int = 12, kind: str = "CLIPTextModel", length: int = 77) -> Components:
    config = {**ATTENTION, "hidden_size": width, "projection_dim": width, "vocab_size": 514}
    config["max_position_embeddings"] = length
    ends = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    return {f"tokenizer{suffix}": lambda: clip_tokenizer(length), f"text_encoder{suffix}": (kind, config | ends)}


def t5(suffix: str = "", width: int = 12, kind: str = "T5EncoderModel", length: int = 512) -> Components:
    config = {"d_model": width, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 128}
    return {f"tokenizer{suffix}": lambda: t5_tokenizer(length), f"text_encoder{suffix}": (kind, config)}


def qwen3(width: int = 12, layers: int = 2, kind: str = "Qwen3Model") -> Components:
    config = {**CAUSAL, "hidden_size": width, "num_hidden_layers": layers, "head_dim": 8}
    return {"tokenizer": qwen_tokenizer, "text_encoder": (kind, config)}


VISION_IDS = {"vision_start_token_id": 3, "vision_end_token_id": 4, "image_token_id": 6, "video_token_id": 7}


def qwen25_vl(width: int = 16) -> Components:
    rope = {"type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    text = {**CAUSAL, "hidden_size": width, "rope_parameters": rope | {"rope_type": "default"}}
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": width}
    config = {"text_config": text, "vision_config": vision, **VISION_IDS}
    return {"tokenizer": qwen_tokenizer, "text_encoder": ("Qwen2_5_VLForConditionalGeneration", config)}


def gemma(kind: str = "Gemma2Model", width: int = 12, layers: int = 2) -> Components:
    config = {**CAUSAL, "hidden_size": width, "num_hidden_layers": layers, "head_dim": 8, "vocab_size": 128}
    return {"tokenizer": gemma_tokenizer, "text_encoder": (kind, config)}


def image_encoder(width: int = 12, kind: str = "CLIPVisionModelWithProjection") -> Components:
    config = {**ATTENTION, "hidden_size": 16, "projection_dim": width, "image_size": 16, "patch_size": 8}
    sides = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    return {"image_encoder": (kind, config), "feature_extractor": ("CLIPImageProcessor", sides)}


def kl(channels: int = 4, scale: float = 0.18215, shift: float | None = None, levels: int = 2, **options: Any) -> Any:
    """An AutoencoderKL that makes sides 2^(levels - 1) times smaller. With a shift it has no quantisation
    convolutions, as those of flow models."""
    config = {
        "block_out_channels": (4,) * (levels - 1) + (8,),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "norm_num_groups": 4,
        "latent_channels": channels,
        "scaling_factor": scale,
        "sample_size": 16,
    }
    if shift is not None:
        config |= {"shift_factor": shift, "use_quant_conv": False, "use_post_quant_conv": False}
    return "AutoencoderKL", config | options


FLUX_VAE = kl(4, 0.3611, 0.1159)
DC_VAE: Component = (
    "AutoencoderDC",
    {
        "latent_channels": 4,
        "attention_head_dim": 2,
        "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "encoder_qkv_multiscales": ((), (5,)),
        "decoder_qkv_multiscales": ((), (5,)),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "downsample_block_type": "conv",
        "upsample_block_type": "interpolate",
        "decoder_norm_types": "rms_norm",
        "decoder_act_fns": "silu",
        "scaling_factor": 0.41407,
    },
)
QWEN_VAE: Component = (
    "AutoencoderKLQwenImage",
    {
        "base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False],
        "latents_mean": [0.4, -0.3, 0.2, -0.1],
        "latents_std": [1.5, 2.0, 0.7, 1.2],
    },
)
"""The video VAE of Qwen-Image (that of Wan, for one frame), whose latents are (N, channels, 1, height, width)."""


def wan(**options: Any) -> Component:
    """The VAE of Wan 2.1, with its published means and deviations of latents; sides are 8 times smaller."""
    config = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    return "AutoencoderKLWan", config | options


def flux2_vae() -> Any:
    """Its latents are normalised after packing 2 x 2, by the running statistics of a batch norm."""
    config = kl(4)[1]
    del config["scaling_factor"]
    vae = make(("AutoencoderKLFlux2", config))
    vae.bn.running_mean.copy_(torch.linspace(-0.5, 0.5, 16))
    vae.bn.running_var.copy_(torch.linspace(0.5, 2.0, 16))
    return vae


def movq(levels: int = 2, **options: Any) -> Component:
    config = {
        "down_block_types": ("DownEncoderBlock2D",) * (levels - 1) + ("AttnDownEncoderBlock2D",),
        "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * (levels - 1),
        "block_out_channels": (32,) * levels,
        "norm_type": "spatial",
        "latent_channels": 4,
        "vq_embed_dim": 4,
        "num_vq_embeddings": 12,
    }
    return "VQModel", config | options


def flow(shift: float = 1.0, **options: Any) -> Component:
    return "FlowMatchEulerDiscreteScheduler", {"shift": shift, **options}


def dynamic(shift: float = 3.0, **options: Any) -> Component:
    """Shifted by the number of image tokens, as FLUX.1-dev."""
    tokens = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
    return flow(shift, use_dynamic_shifting=True, **tokens | options)


def noise(kind: str = "PNDMScheduler", start: float = 0.00085, end: float = 0.012, **options: Any) -> Component:
    """Of Stable Diffusion unless told otherwise."""
    betas = {"beta_schedule": "scaled_linear", "beta_start": start, "beta_end": end}
    return kind, betas | options


STABLE = noise(skip_prk_steps=True, steps_offset=1)
LINEAR = {"beta_schedule": "linear", "start": 0.0001, "end": 0.02}
