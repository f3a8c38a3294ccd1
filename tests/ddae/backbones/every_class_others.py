"""Tiny pipelines that take an image beside a text, sample without a text, or sample something else than a latent."""

from typing import Any

import torch

from tests.ddae.backbones.every_class_joint import SMALL, flux_parts
from tests.ddae.backbones.every_class_parts import (
    Component,
    Tiny,
    clip,
    clip_tokenizer,
    image_encoder,
    kl,
    movq,
    noise,
    randomise,
    t5,
)
from tests.ddae.backbones.every_class_unets import (
    COSINE,
    NO_CHECK,
    UNCHECKED,
    V_PREDICTION,
    XL_SCHEDULER,
    XL_TEXT,
    XL_VAE,
    grey,
    if_unet,
    unet,
    white,
    xl,
)

UNET: dict[str, Any] = {"sample_size": 16, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}


def openai_unet(**options: Any) -> Component:
    """As of the consistency models, that is, of ADM."""
    blocks = {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
        "attention_head_dim": 8,
        "upsample_type": "resnet",
        "downsample_type": "resnet",
    }
    return "UNet2DModel", UNET | blocks | options


def image_normalizer() -> Any:
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer

    normalizer = StableUnCLIPImageNormalizer(12)
    normalizer.mean.data.fill_(0.2)
    normalizer.std.data.fill_(1.5)
    return normalizer


def cascade(**options: Any) -> Component:
    config = {
        "conditioning_dim": 16,
        "timestep_ratio_embedding_dim": 8,
        "block_out_channels": (8, 16),
        "num_attention_heads": (1, 2),
        "down_num_layers_per_block": (1, 1),
        "up_num_layers_per_block": (1, 1),
        "clip_text_pooled_in_channels": 12,
        "switch_level": (False,),
        "dropout": (0.0, 0.0),
    }
    return "StableCascadeUNet", config | options


CONSISTENCY: Component = (
    "CMStochasticIterativeScheduler",
    {"num_train_timesteps": 40, "sigma_min": 0.002, "sigma_max": 80.0},
)
NO_TEXT = {"prompt": None}


def unidiffuser() -> dict[str, Component]:
    def decoder() -> Any:
        from diffusers import UniDiffuserTextDecoder

        sizes = {"prefix_length": 77, "prefix_inner_dim": 12, "prefix_hidden_dim": 12, "vocab_size": 514}
        network = UniDiffuserTextDecoder(**sizes, n_positions=128, n_embd=16, n_layer=1, n_head=2)
        network.transformer.lm_head.weight = torch.nn.Parameter(network.transformer.lm_head.weight.clone())
        randomise(network.eval(), 0)
        return network

    def text_tokenizer() -> Any:
        from transformers import GPT2Tokenizer

        return GPT2Tokenizer(vocab=clip_tokenizer().get_vocab(), merges=[], eos_token="<|endoftext|>")

    def network() -> Any:
        from diffusers import UniDiffuserModel

        heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "norm_num_groups": 4}
        sizes = {"text_dim": 12, "clip_img_dim": 12, "in_channels": 4, "out_channels": 4, "sample_size": 8}
        model = UniDiffuserModel(
            **heads,
            **sizes,
            patch_size=2,
            num_embeds_ada_norm=1000,
            activation_fn="gelu",
            attention_bias=False,
            use_data_type_embedding=True,
        )
        randomise(model.eval(), 0)
        return model

    vision = image_encoder()
    text = clip()
    return {
        "vae": kl(),
        "unet": network,
        "text_encoder": text["text_encoder"],
        "clip_tokenizer": text["tokenizer"],
        "image_encoder": vision["image_encoder"],
        "clip_image_processor": vision["feature_extractor"],
        "text_decoder": decoder,
        "text_tokenizer": text_tokenizer,
        "scheduler": noise("DPMSolverMultistepScheduler", solver_order=3),
    }


OTHERS: dict[str, Tiny] = {
    "FluxFillPipeline": Tiny(
        flux_parts(in_channels=48, out_channels=16), call={**SMALL, "image": lambda: grey(32), "mask_image": white}
    ),
    "FluxKontextPipeline": Tiny(
        flux_parts(),
        call={**SMALL, "image": lambda: grey(32), "max_area": 1024, "_auto_resize": False},
    ),
    "FluxControlPipeline": Tiny(
        flux_parts(in_channels=32, out_channels=16), call={**SMALL, "control_image": lambda: grey(32)}
    ),
    "StableDiffusionXLInpaintPipeline": Tiny(
        {"vae": XL_VAE, **XL_TEXT, "unet": xl(6, 16, 28, in_channels=9), "scheduler": XL_SCHEDULER},
        call={"image": grey, "mask_image": white, "strength": 1.0},
    ),
    "StableDiffusionXLInstructPix2PixPipeline": Tiny(
        {"vae": XL_VAE, **XL_TEXT, "unet": xl(6, 16, 28, in_channels=8), "scheduler": XL_SCHEDULER},
        call={"image": grey},
    ),
    "IFSuperResolutionPipeline": Tiny(
        {
            "unet": if_unet(in_channels=6, class_embed_type="timestep"),
            **t5(),
            "scheduler": noise("DDPMScheduler", **COSINE),
            "image_noising_scheduler": noise("DDPMScheduler", **COSINE),
            **NO_CHECK,
            "watermarker": None,
        },
        UNCHECKED,
        {"image": grey},
    ),
    "StableUnCLIPImg2ImgPipeline": Tiny(
        {
            "vae": kl(),
            **clip(),
            **image_encoder(),
            "image_normalizer": image_normalizer,
            "image_noising_scheduler": noise("DDPMScheduler", **COSINE | {"variance_type": "fixed_small"}),
            "unet": unet(class_embed_type="projection", projection_class_embeddings_input_dim=24),
            "scheduler": V_PREDICTION,
        },
        call={"image": grey},
    ),
    "StableCascadePriorPipeline": Tiny(
        {
            "prior": cascade(clip_text_in_channels=12, clip_image_in_channels=12),
            **clip(kind="CLIPTextModelWithProjection"),
            "scheduler": ("DDPMWuerstchenScheduler", {}),
        },
        call={"height": 384, "width": 384, "output_type": "pt"},
    ),
    "ConsistencyModelPipeline": Tiny({"unet": openai_unet(), "scheduler": CONSISTENCY}, call=NO_TEXT),
    "ConsistencyModelPipeline class-conditional": Tiny(
        {"unet": openai_unet(num_class_embeds=10), "scheduler": CONSISTENCY},
        call={**NO_TEXT, "class_labels": [1]},
    ),
    "LDMPipeline": Tiny(
        {
            "vqvae": movq(norm_type="group"),
            "unet": (
                "UNet2DModel",
                UNET
                | {
                    "sample_size": 8,
                    "in_channels": 4,
                    "out_channels": 4,
                    "attention_head_dim": 8,
                    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
                },
            ),
            "scheduler": noise("DDIMScheduler", 0.0015, 0.0195, clip_sample=False),
        },
        call=NO_TEXT,
    ),
    "UniDiffuserPipeline": Tiny(unidiffuser()),
    "AmusedPipeline": Tiny(
        {
            "vqvae": movq(norm_type="group", lookup_from_codebook=True),
            **clip(kind="CLIPTextModelWithProjection"),
            "transformer": (
                "UVit2DModel",
                {
                    "hidden_size": 16,
                    "cond_embed_dim": 12,
                    "micro_cond_encode_dim": 4,
                    "micro_cond_embed_dim": 20,
                    "encoder_hidden_size": 12,
                    "vocab_size": 16,
                    "codebook_size": 12,
                    "in_channels": 16,
                    "block_out_channels": 16,
                    "num_res_blocks": 1,
                    "block_num_heads": 2,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "intermediate_size": 16,
                    "sample_size": 8,
                },
            ),
            "scheduler": ("AmusedScheduler", {"mask_token_id": 15}),
        },
    ),
}
