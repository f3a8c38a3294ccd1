"""Tiny pipelines whose transformer reads the text by cross-attention, or a class."""

from typing import Any

from tests.ddae.backbones.every_class_parts import (
    ATTENTION,
    DC_VAE,
    LINEAR,
    Component,
    Tiny,
    bert_tokenizer,
    flow,
    gemma,
    kl,
    noise,
    t5,
)

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
MMDIT = {**HEADS, "num_layers": 2, "in_channels": 4, "out_channels": 4, "sample_size": 8}


def pixart(**options: Any) -> dict[str, Component]:
    config = {
        "num_attention_heads": 3,
        "attention_head_dim": 8,
        "out_channels": 8,
        "num_layers": 2,
        "cross_attention_dim": 24,
        "caption_channels": 12,
        "sample_size": 8,
    }
    scheduler = noise("DPMSolverMultistepScheduler", **LINEAR)
    parts = t5(length=120) | {"vae": kl(), "scheduler": scheduler}
    return parts | {"transformer": ("PixArtTransformer2DModel", config | options)}


def sana(scheduler: Component, **options: Any) -> dict[str, Component]:
    config = {
        **HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": 12,
        "sample_size": 8,
    }
    transformer = ("SanaTransformer2DModel", config | options)
    return {"vae": DC_VAE, **gemma(), "transformer": transformer, "scheduler": scheduler}


SANA_SCHEDULER: Component = (
    "DPMSolverMultistepScheduler",
    {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0, "solver_order": 2},
)
SANA_CALL = {"height": 32, "width": 32, "use_resolution_binning": False}

COGVIEW3_NOISE = noise(
    "CogVideoXDDIMScheduler",
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    snr_shift_scale=4.0,
    timestep_spacing="trailing",
    clip_sample=False,
)

DIT = {
    "vae": kl(),
    "transformer": (
        "DiTTransformer2DModel",
        {**HEADS, "out_channels": 8, "num_layers": 2, "sample_size": 8, "num_embeds_ada_norm": 1000},
    ),
    "scheduler": noise("DDIMScheduler", **LINEAR, clip_sample=False),
}
DIT_LABELS = {"id2label": {"0": "tench", "1": "goldfish"}}
DIT_CALL = {"prompt": None, "class_labels": [1]}

CROSS: dict[str, Tiny] = {
    "PixArtAlphaPipeline": Tiny(
        pixart(use_additional_conditions=True, sample_size=128),
        call={"height": 32, "width": 32, "use_resolution_binning": False},
    ),
    "PixArtAlphaPipeline as published": Tiny(
        pixart(use_additional_conditions=True, sample_size=128),
        call={"height": 32, "width": 32, "use_resolution_binning": False},
        published_as={"transformer": "Transformer2DModel"},
    ),
    "PixArtSigmaPipeline": Tiny(
        pixart(use_additional_conditions=False) | {"vae": kl(scale=0.13025)},
        call={"use_resolution_binning": False},
    ),
    "SanaPipeline": Tiny(sana(SANA_SCHEDULER), call=SANA_CALL),
    "SanaSprintPipeline": Tiny(
        sana(
            ("SCMScheduler", {"prediction_type": "trigflow", "sigma_data": 0.5}),
            guidance_embeds=True,
            qk_norm="rms_norm_across_heads",
        ),
        call=SANA_CALL,
    ),
    "CogView3PlusPipeline": Tiny(
        {
            "vae": kl(scale=0.13025),
            **t5(),
            "transformer": (
                "CogView3PlusTransformer2DModel",
                {**MMDIT, "text_embed_dim": 12, "time_embed_dim": 16, "condition_dim": 4, "pos_embed_max_size": 8},
            ),
            "scheduler": COGVIEW3_NOISE,
        },
    ),
    "HunyuanDiTPipeline": Tiny(
        {
            "vae": kl(scale=0.13025),
            "tokenizer": bert_tokenizer,
            "text_encoder": ("BertModel", {**ATTENTION, "hidden_size": 12, "vocab_size": 128}),
            **t5("_2", 16),
            "transformer": (
                "HunyuanDiT2DModel",
                {
                    **HEADS,
                    "in_channels": 4,
                    "patch_size": 2,
                    "sample_size": 8,
                    "num_layers": 2,
                    "hidden_size": 16,
                    "cross_attention_dim": 12,
                    "cross_attention_dim_t5": 16,
                    "pooled_projection_dim": 12,
                    "activation_fn": "gelu-approximate",
                },
            ),
            "scheduler": noise("DDPMScheduler", end=0.018, steps_offset=1, prediction_type="v_prediction"),
            "safety_checker": None,
            "feature_extractor": None,
        },
        {"requires_safety_checker": False},
        {"use_resolution_binning": False},
    ),
    "LuminaPipeline": Tiny(
        {
            "vae": kl(scale=0.13025, levels=4),
            **gemma("GemmaModel"),
            "transformer": (
                "LuminaNextDiT2DModel",
                {
                    "sample_size": 8,
                    "in_channels": 4,
                    "hidden_size": 16,
                    "num_layers": 2,
                    "num_attention_heads": 2,
                    "num_kv_heads": 1,
                    "multiple_of": 8,
                    "cross_attention_dim": 12,
                },
            ),
            "scheduler": flow(),
        },
    ),
    "DiTPipeline": Tiny(DIT, DIT_LABELS, DIT_CALL),
    "DiTPipeline as published": Tiny(DIT, DIT_LABELS, DIT_CALL, published_as={"transformer": "Transformer2DModel"}),
}
