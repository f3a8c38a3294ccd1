"""Tiny pipelines whose transformer attends to image and text jointly."""

from typing import Any

from tests.ddae.backbones.every_class_parts import (
    CAUSAL,
    FLUX_VAE,
    QWEN_VAE,
    Component,
    Tiny,
    clip,
    dynamic,
    flow,
    flux2_vae,
    gemma,
    kl,
    llama_tokenizer,
    qwen3,
    qwen25_vl,
    qwen_processor,
    t5,
    word_tokenizer,
)

SMALL = {"height": 32, "width": 32}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
MMDIT = {**HEADS, "num_layers": 2, "in_channels": 4, "out_channels": 4, "sample_size": 8}
FLUX_ROPE = {"num_layers": 2, "num_single_layers": 2, "axes_dims_rope": (2, 2, 4)}


def flux(guidance: bool, **options: Any) -> Component:
    config = {**HEADS, **FLUX_ROPE, "in_channels": 16, "joint_attention_dim": 12, "pooled_projection_dim": 10}
    return "FluxTransformer2DModel", config | {"guidance_embeds": guidance} | options


def flux_parts(guidance: bool = True, **options: Any) -> dict[str, Component]:
    texts = clip(width=10) | t5("_2")
    scheduler = dynamic() if guidance else flow()
    return {"vae": FLUX_VAE, **texts, "transformer": flux(guidance, **options), "scheduler": scheduler}


GLM = {**CAUSAL, "hidden_size": 12, "head_dim": 8, "pad_token_id": 0}


def pixtral_processor() -> Any:
    from transformers import PixtralImageProcessor, PixtralProcessor

    processor = PixtralImageProcessor(patch_size={"height": 8, "width": 8}, size={"longest_edge": 16})
    names = {"image_token": "[IMG]", "image_break_token": "[", "image_end_token": "]"}
    tokenizer = word_tokenizer()
    return PixtralProcessor(processor, tokenizer, patch_size=8, chat_template=tokenizer.chat_template, **names)


MISTRAL3 = {
    "text_config": {"model_type": "mistral", **CAUSAL, "hidden_size": 8, "num_hidden_layers": 30, "head_dim": 4},
    "vision_config": {
        "model_type": "pixtral",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "image_size": 16,
        "patch_size": 8,
    },
    "image_token_index": 4,
}


def flux2(joint: int, guidance: bool) -> dict[str, Component]:
    config = {**HEADS, "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": joint}
    rope = {"axes_dims_rope": (2, 2, 2, 2), "timestep_guidance_channels": 16, "guidance_embeds": guidance}
    return {"vae": flux2_vae, "transformer": ("Flux2Transformer2DModel", config | rope), "scheduler": dynamic()}


JOINT: dict[str, Tiny] = {
    "FluxPipeline": Tiny(flux_parts(False), call=SMALL),
    "FluxPipeline guidance-distilled": Tiny(flux_parts(), call=SMALL),
    "StableDiffusion3Pipeline": Tiny(
        {
            "vae": kl(4, 1.5305, 0.0609),
            **clip(width=10, kind="CLIPTextModelWithProjection"),
            **clip("_2", 8, "CLIPTextModelWithProjection"),
            **t5("_3", 24),
            "transformer": (
                "SD3Transformer2DModel",
                {
                    **MMDIT,
                    "joint_attention_dim": 24,
                    "caption_projection_dim": 16,
                    "pooled_projection_dim": 18,
                    "pos_embed_max_size": 8,
                    "dual_attention_layers": (0,),
                    "qk_norm": "rms_norm",
                },
            ),
            "scheduler": flow(3.0),
        },
    ),
    "QwenImagePipeline": Tiny(
        {
            "vae": QWEN_VAE,
            **qwen25_vl(),
            "transformer": (
                "QwenImageTransformer2DModel",
                {
                    **HEADS,
                    "in_channels": 16,
                    "out_channels": 4,
                    "num_layers": 2,
                    "joint_attention_dim": 16,
                    "axes_dims_rope": (2, 2, 4),
                },
            ),
            "scheduler": dynamic(1.0, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02),
        },
        call={**SMALL, "negative_prompt": " "},
    ),
    "ZImagePipeline": Tiny(
        {
            "vae": FLUX_VAE,
            **qwen3(),
            "transformer": (
                "ZImageTransformer2DModel",
                {
                    "in_channels": 4,
                    "dim": 16,
                    "n_layers": 2,
                    "n_refiner_layers": 1,
                    "n_heads": 2,
                    "n_kv_heads": 2,
                    "cap_feat_dim": 12,
                    "axes_dims": (4, 2, 2),
                    "axes_lens": (1024, 64, 64),
                },
            ),
            "scheduler": flow(3.0),
        },
        call=SMALL,
    ),
    "Flux2Pipeline": Tiny(
        {
            "tokenizer": pixtral_processor,
            "text_encoder": ("Mistral3ForConditionalGeneration", MISTRAL3),
            **flux2(24, True),
        },
        call=SMALL,
    ),
    "Flux2KleinPipeline": Tiny(
        {**qwen3(8, 28, "Qwen3ForCausalLM"), **flux2(24, False)},
        {"is_distilled": True},
        SMALL,
    ),
    "Flux2KleinPipeline base": Tiny(
        {**qwen3(8, 28, "Qwen3ForCausalLM"), **flux2(24, False)}, {"is_distilled": False}, SMALL
    ),
    "CogView4Pipeline": Tiny(
        {
            "vae": kl(4, 1.0, 0.0),
            "tokenizer": lambda: word_tokenizer("[gMASK] <sop>", padding_side="left"),
            "text_encoder": ("GlmModel", GLM),
            "transformer": (
                "CogView4Transformer2DModel",
                {
                    **MMDIT,
                    "sample_size": 16,
                    "text_embed_dim": 12,
                    "time_embed_dim": 16,
                    "condition_dim": 4,
                    "rope_axes_dim": (8, 8),
                },
            ),
            "scheduler": dynamic(1.0, base_shift=0.25, max_shift=0.75, time_shift_type="linear"),
        },
    ),
    "AuraFlowPipeline": Tiny(
        {
            "vae": kl(scale=0.13025),
            **t5(kind="UMT5EncoderModel"),
            "transformer": (
                "AuraFlowTransformer2DModel",
                {
                    **HEADS,
                    "in_channels": 4,
                    "out_channels": 4,
                    "num_mmdit_layers": 2,
                    "num_single_dit_layers": 2,
                    "joint_attention_dim": 12,
                    "caption_projection_dim": 16,
                    "sample_size": 8,
                    "pos_embed_max_size": 64,
                },
            ),
            "scheduler": flow(1.73),
        },
        call={"height": 16, "width": 16},
    ),
    "ChromaPipeline": Tiny(
        {
            "vae": FLUX_VAE,
            **t5(),
            "transformer": (
                "ChromaTransformer2DModel",
                {
                    **HEADS,
                    **FLUX_ROPE,
                    "in_channels": 16,
                    "joint_attention_dim": 12,
                    "approximator_num_channels": 8,
                    "approximator_hidden_dim": 16,
                    "approximator_layers": 1,
                },
            ),
            "scheduler": flow(1.0, use_beta_sigmas=True),
        },
        call=SMALL,
    ),
    "Lumina2Pipeline": Tiny(
        {
            "vae": kl(4, 0.3611, 0.1159, levels=4),
            **gemma(),
            "transformer": (
                "Lumina2Transformer2DModel",
                {
                    "sample_size": 8,
                    "in_channels": 4,
                    "hidden_size": 16,
                    "num_layers": 2,
                    "num_refiner_layers": 1,
                    "num_attention_heads": 2,
                    "num_kv_heads": 1,
                    "multiple_of": 8,
                    "axes_dim_rope": (4, 2, 2),
                    "axes_lens": (300, 64, 64),
                    "cap_feat_dim": 12,
                },
            ),
            "scheduler": flow(6.0),
        },
    ),
    "OvisImagePipeline": Tiny(
        {
            "vae": FLUX_VAE,
            **qwen3(),
            "transformer": (
                "OvisImageTransformer2DModel",
                {**HEADS, **FLUX_ROPE, "in_channels": 16, "out_channels": 16, "joint_attention_dim": 12},
            ),
            "scheduler": dynamic(),
        },
        call=SMALL,
    ),
    "LongCatImagePipeline": Tiny(
        {
            "vae": kl(16, 0.3611, 0.1159),
            **qwen25_vl(),
            "text_processor": lambda: qwen_processor("Qwen2VL"),
            "transformer": (
                "LongCatImageTransformer2DModel",
                {
                    **HEADS,
                    **FLUX_ROPE,
                    "in_channels": 64,
                    "joint_attention_dim": 16,
                    "pooled_projection_dim": 16,
                },
            ),
            "scheduler": dynamic(),
        },
        call={**SMALL, "enable_prompt_rewrite": False},
    ),
    "HiDreamImagePipeline": Tiny(
        {
            "vae": FLUX_VAE,
            **clip(width=10, kind="CLIPTextModelWithProjection", length=248),
            **clip("_2", 8, "CLIPTextModelWithProjection", 248),
            **t5("_3"),
            "tokenizer_4": llama_tokenizer,
            "text_encoder_4": ("LlamaForCausalLM", {**CAUSAL, "hidden_size": 16, "vocab_size": 128}),
            "transformer": (
                "HiDreamImageTransformer2DModel",
                {
                    **HEADS,
                    "patch_size": 2,
                    "in_channels": 4,
                    "out_channels": 4,
                    "num_layers": 2,
                    "num_single_layers": 2,
                    "caption_channels": (12, 16),
                    "text_emb_dim": 18,
                    "axes_dims_rope": (4, 2, 2),
                    "max_resolution": (128, 128),
                    "llama_layers": (0, 1, 1, 1),
                },
            ),
            "scheduler": (
                "UniPCMultistepScheduler",
                {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
            ),
        },
        call=SMALL,
    ),
    "BriaPipeline": Tiny(
        {
            "vae": kl(4, 0.13025, 0.0609),
            **t5(),
            "transformer": (
                "BriaTransformer2DModel",
                {**HEADS, **FLUX_ROPE, "in_channels": 16, "joint_attention_dim": 12, "axes_dims_rope": (0, 4, 4)},
            ),
            "scheduler": dynamic(),
        },
        call=SMALL,
    ),
}
