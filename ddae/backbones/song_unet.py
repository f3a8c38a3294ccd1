"""NVlabs' DDPM++ (SongUNet; Song et al. 2021, Karras et al. 2022) as a diffusers model."""

import inspect
import math
from functools import partial

from diffusers import UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from torch import nn


class SongUNet2DModel(UNet2DModel):
    """A UNet2DModel that scales residual sums by 1/sqrt(2), has separate widths for its stem and noise embedding, and
    has attention in the decoder only behind the last block of a resolution.

    Its inputs are c_in x and c_noise of EDM's preconditioning, which depends on sigma_data.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        stem_channels: int = 128,
        block_out_channels: tuple[int, ...] = (256, 256, 256),
        layers_per_block: int = 4,
        attention_resolutions: tuple[int, ...] = (16,),
        noise_channels: int = 128,
        time_embedding_dim: int = 512,
        sigma_data: float = 0.5,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
    ):
        attended = [sample_size >> level in attention_resolutions for level in range(len(block_out_channels))]
        # undecorated, or config.json would hold its arguments too; its forward pass reads our last two
        inspect.unwrap(UNet2DModel.__init__)(
            self,
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=["AttnDownBlock2D" if here else "ResnetDownsampleBlock2D" for here in attended],
            up_block_types=["AttnUpBlock2D" if here else "ResnetUpsampleBlock2D" for here in reversed(attended)],
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            time_embedding_dim=time_embedding_dim,
            downsample_type="resnet",
            upsample_type="resnet",
            attention_head_dim=None,
            norm_num_groups=1,
            norm_eps=1e-6,
        )
        width = block_out_channels[0]
        block = partial(ResnetBlock2D, out_channels=width, temb_channels=time_embedding_dim, groups=1, eps=1e-6)
        self.conv_in = nn.Conv2d(in_channels, stem_channels, 3, padding=1)
        self.time_proj = Timesteps(noise_channels, flip_sin_to_cos=False, downscale_freq_shift=1)
        self.time_embedding = TimestepEmbedding(noise_channels, time_embedding_dim)
        self.down_blocks[0].resnets[0] = block(in_channels=stem_channels)
        self.up_blocks[-1].resnets[-1] = block(in_channels=width + stem_channels)
        for level in self.up_blocks:
            for j in range(layers_per_block if hasattr(level, "attentions") else 0):
                level.attentions[j] = nn.Identity()
        for module in list(self.modules()):
            if isinstance(module, ResnetBlock2D):
                module.output_scale_factor = math.sqrt(2)
                if module.up or module.down:
                    module.conv_shortcut = nn.Conv2d(module.in_channels, module.out_channels, 1)
            elif isinstance(module, Attention):
                module.rescale_output_factor = math.sqrt(2)
            elif isinstance(module, nn.GroupNorm):
                module.num_groups = min(32, module.num_channels // 4)
