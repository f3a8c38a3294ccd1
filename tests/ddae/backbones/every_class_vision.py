"""Tiny pipelines that read the text with Qwen3-VL."""

from tests.ddae.backbones.every_class_joint import HEADS, SMALL
from tests.ddae.backbones.every_class_parts import (
    CAUSAL,
    QWEN_VAE,
    VISION_IDS,
    Component,
    Components,
    Tiny,
    dynamic,
    flow,
    flux2_vae,
    qwen_processor,
    qwen_tokenizer,
    wan,
)


def qwen3_vl(width: int = 16, layers: int = 2, kind: str = "Qwen3VLForConditionalGeneration") -> Component:
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 1e6}
    text = {**CAUSAL, "hidden_size": width, "num_hidden_layers": layers, "head_dim": 8, "rope_parameters": rope}
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": width}
    return kind, {"text_config": text, "vision_config": vision | {"deepstack_visual_indexes": [0]}, **VISION_IDS}


QWEN3_VL: Components = {
    "tokenizer": qwen_tokenizer,
    "processor": lambda: qwen_processor("Qwen3VL"),
    "text_encoder": qwen3_vl(),
}
QWEN3_VL_PROCESSED: Components = {part: made for part, made in QWEN3_VL.items() if part != "tokenizer"}


def qwen_image21_vae() -> Component:
    means, deviations = ([0.4, -0.3, 0.2, -0.1] * 2, [1.5, 2.0, 0.7, 1.2] * 2)
    config = {"base_dim": 4, "decoder_base_dim": 4, "z_dim": 8, "dim_mult": [1] * 5, "num_res_blocks": 1}
    return "AutoencoderKLQwenImage21", config | {"latents_mean": means, "latents_std": deviations}


def ideogram() -> Component:
    heads = {"num_attention_heads": 2, "attention_head_dim": 16, "intermediate_size": 16, "adaln_dim": 8}
    rope = {"mrope_section": (4, 2, 2), "llm_features_dim": 8 * 13}
    return "Ideogram4Transformer2DModel", {"in_channels": 16, "num_layers": 2} | heads | rope


DREAMLITE: Components = {
    **QWEN3_VL,
    "vae": (
        "AutoencoderTiny",
        {
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
        },
    ),
    "unet": (
        "DreamLiteUNetModel",
        {
            "sample_size": 8,
            "down_block_types": ("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
            "up_block_types": ("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
            "block_out_channels": (8, 16),
            "cross_attention_dim": 16,
            "attention_head_dim": 4,
            "layers_per_block": 1,
            "norm_num_groups": 4,
        },
    ),
    "scheduler": dynamic(),
}

VISION: dict[str, Tiny] = {
    "JoyImageEditPipeline": Tiny(
        {
            "vae": wan(),
            **QWEN3_VL,
            "transformer": (
                "JoyImageEditTransformer3DModel",
                {
                    "hidden_size": 16,
                    "num_attention_heads": 2,
                    "text_dim": 16,
                    "num_layers": 2,
                    "rope_dim_list": [4, 2, 2],
                },
            ),
            "scheduler": flow(4.0),
        },
    ),
    "Ideogram4Pipeline": Tiny(
        {
            "vae": flux2_vae,
            "tokenizer": qwen_tokenizer,
            "text_encoder": qwen3_vl(8, 36, "Qwen3VLModel"),
            "transformer": ideogram(),
            "unconditional_transformer": ideogram(),
            "scheduler": flow(),
        },
        call={**SMALL, "guidance_schedule": (7.0, 3.0), "max_sequence_length": 64},
    ),
    "Krea2Pipeline": Tiny(
        {
            "vae": QWEN_VAE,
            "tokenizer": qwen_tokenizer,
            "text_encoder": qwen3_vl(16, 2, "Qwen3VLModel"),
            "transformer": (
                "Krea2Transformer2DModel",
                {
                    **HEADS,
                    "in_channels": 16,
                    "num_layers": 2,
                    "num_key_value_heads": 1,
                    "intermediate_size": 16,
                    "timestep_embed_dim": 16,
                    "text_hidden_dim": 16,
                    "num_text_layers": 3,
                    "text_num_attention_heads": 2,
                    "text_num_key_value_heads": 1,
                    "text_intermediate_size": 16,
                    "num_layerwise_text_blocks": 1,
                    "num_refiner_text_blocks": 1,
                    "axes_dims_rope": (4, 2, 2),
                },
            ),
            "scheduler": dynamic(1.0, max_image_seq_len=6400),
        },
        {"text_encoder_select_layers": (0, 1, 2)},
        SMALL,
    ),
    "NucleusMoEImagePipeline": Tiny(
        {
            "vae": QWEN_VAE,
            **QWEN3_VL_PROCESSED,
            "text_encoder": qwen3_vl(16, 8),
            "transformer": (
                "NucleusMoEImageTransformer2DModel",
                {
                    **HEADS,
                    "in_channels": 16,
                    "out_channels": 4,
                    "num_layers": 2,
                    "joint_attention_dim": 16,
                    "axes_dims_rope": (4, 2, 2),
                    "dense_moe_strategy": "none",
                    "num_experts": 4,
                    "moe_intermediate_dim": 8,
                    "capacity_factors": [2.0, 2.0],
                },
            ),
            "scheduler": dynamic(1.0),
        },
        call=SMALL,
    ),
    "QwenImage21Pipeline": Tiny(
        {
            "vae": qwen_image21_vae(),
            **QWEN3_VL_PROCESSED,
            "transformer": (
                "QwenImage21Transformer2DModel",
                {
                    **HEADS,
                    "in_channels": 8,
                    "out_channels": 8,
                    "num_layers": 2,
                    "context_in_dim": 16,
                    "axes_dims_rope": (4, 2, 2),
                },
            ),
            "scheduler": dynamic(1.0),
        },
        call={"height": 64, "width": 64},
    ),
    "BriaFibo2Pipeline": Tiny(
        {
            "vae": flux2_vae,
            **QWEN3_VL_PROCESSED,
            "text_encoder": qwen3_vl(8, 36),
            "transformer": (
                "BriaFibo2Transformer2DModel",
                {
                    "in_channels": 4,
                    "dim": 16,
                    "n_layers": 6,
                    "n_refiner_layers": 1,
                    "n_heads": 2,
                    "cap_feat_dim": 24,
                    "injection_layer_ids": (1, 2, 3, 4, 5),
                    "perceiver_num_layers": 1,
                    "min_num_gist_tokens": 8,
                    "max_num_gist_tokens": 16,
                    "gist_step": 8,
                    "gist_min_text_len": 8,
                    "gist_max_text_len": 64,
                    "axes_dims": (4, 2, 2),
                    "axes_lens": (2048, 64, 64),
                },
            ),
            "scheduler": flow(3.0),
        },
        call=SMALL,
    ),
    "DreamLitePipeline": Tiny(DREAMLITE, call=SMALL),
    "DreamLiteMobilePipeline": Tiny(DREAMLITE, call=SMALL),
}
