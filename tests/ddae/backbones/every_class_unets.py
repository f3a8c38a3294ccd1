"""Tiny pipelines whose denoiser is a U-Net."""

from typing import Any

from tests.ddae.backbones.every_class_parts import (
    ATTENTION,
    LINEAR,
    STABLE,
    Component,
    Tiny,
    clip,
    image_encoder,
    kl,
    make,
    movq,
    noise,
    t5,
)


def unet(**options: Any) -> Component:
    config = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 12,
        "attention_head_dim": 2,
    }
    return "UNet2DConditionModel", config | options


def xl(time_ids: int, pooled: int, cross: int, **options: Any) -> Component:
    """Conditioned on `time_ids` numbers about size, crop or aesthetics and on a pooled text."""
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    widths = {"projection_class_embeddings_input_dim": time_ids * 8 + pooled, "cross_attention_dim": cross}
    return unet(**added, **widths, **options, use_linear_projection=True, attention_head_dim=(2, 4))


def pixel_unet(**options: Any) -> Component:
    """Of DeepFloyd IF: keys and values of the text are appended to those of the image."""
    config = {
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
        "attention_head_dim": 4,
    }
    return unet(**config | options)


def if_unet(**options: Any) -> Component:
    text = {"encoder_hid_dim": 12, "encoder_hid_dim_type": "text_proj", "addition_embed_type": "text"}
    attention = {"addition_embed_type_num_heads": 2, "cross_attention_norm": "group_norm", "cross_attention_dim": 32}
    return pixel_unet(sample_size=16, out_channels=6, act_fn="gelu", **text, **attention, **options)


def grey(side: int = 16) -> Any:
    from PIL import Image

    return Image.new("RGB", (side, side), (128, 128, 128))


def white() -> Any:
    from PIL import Image

    return Image.new("L", (16, 16), 255)


def embeds(seed: int) -> Any:
    import torch

    return torch.randn(1, 12, generator=torch.Generator().manual_seed(seed))


UNCHECKED = {"requires_safety_checker": False}
NO_CHECK = {"safety_checker": None, "feature_extractor": None}
STABLE_PARTS = {"vae": kl(), **clip(), "scheduler": STABLE}
STABLE_DIFFUSION = {**STABLE_PARTS, "unet": unet(), **NO_CHECK}
V_PREDICTION = noise("DDIMScheduler", steps_offset=1, clip_sample=False, prediction_type="v_prediction")
XL_VAE = kl(scale=0.13025)
XL_SCHEDULER = noise("EulerDiscreteScheduler", steps_offset=1, timestep_spacing="leading")
XL_TEXT = clip() | clip("_2", 16, "CLIPTextModelWithProjection")
NORMALISED_VAE = kl(scale=0.5, latents_mean=[-1.6, 1.1, 1.3, -6.3], latents_std=[8.4, 5.9, 6.5, 5.2])
EDM: Component = (
    "EDMDPMSolverMultistepScheduler",
    {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "prediction_type": "epsilon"},
)
"""Of Playground v2.5, as its VAE, whose latents are normalised by channel."""
FLOW_PREDICTION: Component = (
    "DPMSolverMultistepScheduler",
    {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
)
REFINER_TEXT = {"text_encoder": None, "tokenizer": None, **clip("_2", 16, "CLIPTextModelWithProjection")}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "start": 0.0001, "end": 0.02, "variance_type": "learned_range"}
DEPTH = {
    **ATTENTION,
    "hidden_size": 16,
    "image_size": 32,
    "patch_size": 16,
    "num_hidden_layers": 4,
    "backbone_out_indices": (0, 1, 2, 3),
    "neck_hidden_sizes": (8, 8, 8, 8),
    "fusion_hidden_size": 8,
    "is_hybrid": False,
}


def depth_estimator() -> Any:
    """Far from the floor of its last ReLU, as a constant depth is divided by its range, zero."""
    estimator = make(("DPTForDepthEstimation", DEPTH))
    estimator.head.head[-2].bias.data.fill_(5.0)
    return estimator


DEPTH_PARTS: dict[str, Component] = {
    "depth_estimator": depth_estimator,
    "feature_extractor": ("DPTImageProcessor", {"size": {"height": 32, "width": 32}}),
}
UPSCALE_NOISE = noise("DDPMScheduler", 0.0001, 0.02)

UNETS: dict[str, Tiny] = {
    "StableDiffusionPipeline": Tiny(STABLE_DIFFUSION, UNCHECKED),
    "StableDiffusionPipeline v-prediction": Tiny(
        {**STABLE_DIFFUSION, "scheduler": V_PREDICTION, "unet": unet(use_linear_projection=True)},
        UNCHECKED,
    ),
    "StableDiffusionPipeline flow-prediction": Tiny(
        {**STABLE_DIFFUSION, "scheduler": FLOW_PREDICTION},
        UNCHECKED,
    ),
    "StableDiffusionXLPipeline EDM": Tiny(
        {"vae": NORMALISED_VAE, **XL_TEXT, "unet": xl(6, 16, 28), "scheduler": EDM},
    ),
    "StableDiffusionXLPipeline": Tiny(
        {"vae": XL_VAE, **XL_TEXT, "unet": xl(6, 16, 28), "scheduler": XL_SCHEDULER},
    ),
    "StableDiffusionXLImg2ImgPipeline refiner": Tiny(
        {"vae": XL_VAE, **REFINER_TEXT, "unet": xl(5, 16, 16), "scheduler": XL_SCHEDULER},
        {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False},
        {"image": grey, "strength": 1.0},
    ),
    "LatentConsistencyModelPipeline": Tiny(
        {
            **STABLE_DIFFUSION,
            "unet": unet(time_cond_proj_dim=16),
            "scheduler": noise("LCMScheduler", clip_sample=False),
        },
        UNCHECKED,
    ),
    "StableDiffusionInpaintPipeline": Tiny(
        {**STABLE_DIFFUSION, "unet": unet(in_channels=9)},
        UNCHECKED,
        {"image": grey, "mask_image": white},
    ),
    "StableDiffusionInstructPix2PixPipeline": Tiny(
        {**STABLE_DIFFUSION, "unet": unet(in_channels=8)},
        UNCHECKED,
        {"image": grey},
    ),
    "StableDiffusionDepth2ImgPipeline": Tiny(
        {**STABLE_PARTS, "unet": unet(in_channels=5), **DEPTH_PARTS},
        call={"image": grey, "strength": 1.0},
    ),
    "StableDiffusionUpscalePipeline": Tiny(
        {
            **STABLE_PARTS,
            "vae": kl(scale=0.08333, levels=3),
            "unet": unet(in_channels=7, num_class_embeds=1000),
            "low_res_scheduler": UPSCALE_NOISE,
            "scheduler": V_PREDICTION,
        },
        call={"image": grey},
    ),
    "StableDiffusionImageVariationPipeline": Tiny(
        {"vae": kl(), "unet": unet(), "scheduler": STABLE, "safety_checker": None, **image_encoder()},
        UNCHECKED,
        {"image": grey},
    ),
    "Kandinsky3Pipeline": Tiny(
        {
            "unet": (
                "Kandinsky3UNet",
                {
                    "time_embedding_dim": 8,
                    "groups": 4,
                    "attention_head_dim": 4,
                    "layers_per_block": 3,
                    "block_out_channels": (8, 16),
                    "cross_attention_dim": 8,
                    "encoder_hid_dim": 12,
                },
            ),
            "movq": movq(4),
            **t5(),
            "scheduler": noise("DDPMScheduler", **COSINE | {"variance_type": "fixed_small"}),
        },
        call={"height": 64, "width": 64},
    ),
    "KandinskyV22Pipeline": Tiny(
        {
            "unet": pixel_unet(
                out_channels=8,
                addition_embed_type="image",
                encoder_hid_dim=12,
                encoder_hid_dim_type="image_proj",
            ),
            "movq": movq(),
            "scheduler": noise("DDPMScheduler", beta_schedule="linear", variance_type="learned_range"),
        },
        call={
            "height": 16,
            "width": 16,
            "image_embeds": lambda: embeds(0),
            "negative_image_embeds": lambda: embeds(1),
            "prompt": None,
        },
    ),
    "IFPipeline": Tiny(
        {
            "unet": if_unet(in_channels=3),
            **t5(),
            "scheduler": noise("DDPMScheduler", **COSINE, thresholding=True, dynamic_thresholding_ratio=0.95),
            **NO_CHECK,
            "watermarker": None,
        },
        UNCHECKED,
    ),
    "DDPMPipeline": Tiny(
        {
            "unet": (
                "UNet2DModel",
                {
                    "sample_size": 16,
                    "block_out_channels": (8, 16),
                    "layers_per_block": 1,
                    "norm_num_groups": 4,
                    "attention_head_dim": 8,
                    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
                },
            ),
            "scheduler": noise("DDPMScheduler", **LINEAR),
        },
        call={"prompt": None},
    ),
}
