"""Tiny pipelines of recent models with a text encoder or a space of latents of their own."""

from typing import Any

from tests.ddae.backbones.every_class_joint import FLUX_ROPE, HEADS, MISTRAL3, SMALL
from tests.ddae.backbones.every_class_parts import (
    CAUSAL,
    FLUX_VAE,
    Component,
    Tiny,
    clip,
    dynamic,
    flow,
    flux2_vae,
    gemma_tokenizer,
    kl,
    llama_tokenizer,
    make,
    qwen3,
    qwen25_vl,
    qwen_processor,
    randomise,
    t5,
    wan,
    word_tokenizer,
)


class AllPass:
    """In the place of Cosmos's guardrail, which is a package and a model of its own."""

    def to(self, device: Any) -> None: ...

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def ernie_text() -> Any:
    return make(("Mistral3Model", MISTRAL3))


def t5_gemma() -> Any:
    """With the configuration of encoder and decoder beside it, as published."""
    from transformers import T5GemmaConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    side = {**CAUSAL, "hidden_size": 12, "head_dim": 8, "vocab_size": 128, "query_pre_attn_scalar": 8}
    config = T5GemmaConfig(encoder=side, decoder=side)
    encoder = T5GemmaEncoder(config.encoder)
    randomise(encoder.eval(), 0)
    encoder.config = config
    return encoder


def prx(channels: int, text: int, **options: Any) -> Component:
    config = {"in_channels": channels, "context_in_dim": text, "hidden_size": 16, "mlp_ratio": 2.0, "num_heads": 2}
    return "PRXTransformer2DModel", config | {"depth": 2, "axes_dim": [4, 4]} | options


HUNYUAN_VAE: Component = (
    "AutoencoderKLHunyuanImage",
    {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "spatial_compression_ratio": 2,
        "sample_size": 16,
        "scaling_factor": 0.75289,
    },
)

GLM_IMAGE: dict[str, Any] = {
    "text_config": {**CAUSAL, "hidden_size": 16, "vision_vocab_size": 32, "pad_token_id": 0, "eos_token_id": None},
    "vision_config": {"depth": 1, "hidden_size": 8, "num_heads": 2, "image_size": 32, "patch_size": 8},
    "vq_config": {"embed_dim": 8, "num_embeddings": 32, "latent_channels": 8},
    "image_token_id": 1,
    "image_start_token_id": 4,
    "image_end_token_id": 5,
}
GLM_IMAGE["text_config"]["rope_parameters"] = {"rope_type": "default", "mrope_section": [2, 1, 1]}
GLM_IMAGE["vision_config"]["intermediate_size"] = 8


def glm_image_processor() -> Any:
    from transformers import GlmImageImageProcessor, GlmImageProcessor

    names = {"image_token": "<|image|>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"}
    tokenizer = word_tokenizer(bos_token="<|dit_token|>", extra_special_tokens=names)
    images = GlmImageImageProcessor(patch_size=8)
    return GlmImageProcessor(images, tokenizer, chat_template=tokenizer.chat_template)


RECENT: dict[str, Tiny] = {
    "GlmImagePipeline": Tiny(
        {
            "vae": kl(4, 1.0, levels=4, latents_mean=[0.4, -0.3, 0.2, -0.1], latents_std=[1.5, 2.0, 0.7, 1.2]),
            "tokenizer": ("ByT5Tokenizer", {}),
            "text_encoder": t5()["text_encoder"],
            "processor": glm_image_processor,
            "vision_language_encoder": ("GlmImageForConditionalGeneration", GLM_IMAGE),
            "transformer": (
                "GlmImageTransformer2DModel",
                {
                    **HEADS,
                    "in_channels": 4,
                    "out_channels": 4,
                    "num_layers": 2,
                    "text_embed_dim": 12,
                    "time_embed_dim": 16,
                    "condition_dim": 4,
                    "prior_vq_quantizer_codebook_size": 32,
                },
            ),
            "scheduler": dynamic(1.0, base_shift=0.25, max_shift=0.75, time_shift_type="linear"),
        },
        call={"height": 64, "width": 64},
    ),
    "PRXPipeline": Tiny(
        {
            "vae": FLUX_VAE,
            "tokenizer": lambda: gemma_tokenizer(model_max_length=256),
            "text_encoder": t5_gemma,
            "transformer": prx(4, 12),
            "scheduler": flow(3.0),
        },
        {"default_sample_size": 32},
        {"use_resolution_binning": False},
    ),
    "PRXPixelPipeline": Tiny(
        {**qwen3(), "transformer": prx(3, 12, bottleneck_size=8, resolution_embeds=True), "scheduler": flow(3.0)},
        {"default_sample_size": 32, "prompt_max_tokens": 64},
        {"use_resolution_binning": False},
    ),
    "HunyuanImagePipeline": Tiny(
        {
            "vae": HUNYUAN_VAE,
            **qwen25_vl(),
            "tokenizer_2": ("ByT5Tokenizer", {}),
            "text_encoder_2": t5(width=12)["text_encoder"],
            "transformer": (
                "HunyuanImageTransformer2DModel",
                {
                    **HEADS,
                    "in_channels": 4,
                    "out_channels": 4,
                    "num_layers": 2,
                    "num_single_layers": 2,
                    "num_refiner_layers": 1,
                    "text_embed_dim": 16,
                    "text_embed_2_dim": 12,
                    "rope_axes_dim": (4, 4),
                },
            ),
            "scheduler": flow(5.0),
            "guider": ("AdaptiveProjectedMixGuidance", {}),
            "ocr_guider": ("AdaptiveProjectedMixGuidance", {}),
        },
        call=SMALL,
    ),
    "OmniGenPipeline": Tiny(
        {
            "vae": kl(scale=0.13025, levels=4),
            "tokenizer": llama_tokenizer,
            "transformer": (
                "OmniGenTransformer2DModel",
                {
                    "hidden_size": 16,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 2,
                    "intermediate_size": 16,
                    "num_layers": 2,
                    "time_step_dim": 16,
                    "vocab_size": 128,
                    "pad_token_id": 0,
                    "pos_embed_max_size": 32,
                    "rope_scaling": {"long_factor": [1.0, 1.5, 2.0, 4.0], "short_factor": [1.0, 1.1, 1.2, 1.3]},
                },
            ),
            "scheduler": flow(invert_sigmas=True, num_train_timesteps=1),
        },
        call={"height": 64, "width": 64},
    ),
    "ErnieImagePipeline": Tiny(
        {
            "vae": flux2_vae,
            "tokenizer": word_tokenizer,
            "text_encoder": ernie_text,
            "transformer": (
                "ErnieImageTransformer2DModel",
                {
                    "hidden_size": 16,
                    "num_attention_heads": 2,
                    "num_layers": 2,
                    "ffn_hidden_size": 16,
                    "in_channels": 16,
                    "out_channels": 16,
                    "text_in_dim": 8,
                    "rope_axes_dim": (4, 2, 2),
                },
            ),
            "scheduler": flow(4.0),
            "pe": None,
            "pe_tokenizer": None,
        },
        call=SMALL,
    ),
    "Kandinsky5T2IPipeline": Tiny(
        {
            "vae": kl(4, 0.3611, 0.1159, levels=4),
            **qwen25_vl(),
            "tokenizer": lambda: qwen_processor("Qwen2VL"),
            **clip("_2"),
            "transformer": (
                "Kandinsky5Transformer3DModel",
                {
                    "in_visual_dim": 4,
                    "out_visual_dim": 4,
                    "in_text_dim": 16,
                    "in_text_dim2": 12,
                    "time_dim": 16,
                    "model_dim": 16,
                    "ff_dim": 16,
                    "num_text_blocks": 1,
                    "num_visual_blocks": 2,
                    "axes_dims": (2, 2, 4),
                },
            ),
            "scheduler": flow(5.0),
        },
    ),
    "BriaFiboPipeline": Tiny(
        {
            "vae": wan(patch_size=2, in_channels=12, out_channels=12, scale_factor_spatial=16),
            "tokenizer": word_tokenizer,
            "text_encoder": ("SmolLM3ForCausalLM", {**CAUSAL, "hidden_size": 12, "vocab_size": 128008}),
            "transformer": (
                "BriaFiboTransformer2DModel",
                {
                    **HEADS,
                    **FLUX_ROPE,
                    "in_channels": 16,
                    "joint_attention_dim": 24,
                    "text_encoder_dim": 12,
                    "axes_dims_rope": (0, 4, 4),
                },
            ),
            "scheduler": dynamic(),
        },
        call={"height": 64, "width": 64},
    ),
    "Cosmos2TextToImagePipeline": Tiny(
        {
            "vae": wan(),
            **t5(),
            "transformer": (
                "CosmosTransformer3DModel",
                {
                    "num_attention_heads": 1,
                    "attention_head_dim": 16,
                    "num_layers": 2,
                    "mlp_ratio": 2.0,
                    "text_embed_dim": 12,
                    "adaln_lora_dim": 4,
                    "max_size": (4, 32, 32),
                    "rope_scale": (1.0, 4.0, 4.0),
                    "extra_pos_embed_type": None,
                },
            ),
            "scheduler": flow(use_karras_sigmas=True),
        },
        {"safety_checker": AllPass},
        {"height": 64, "width": 64},
        load={"safety_checker": AllPass},
    ),
}
