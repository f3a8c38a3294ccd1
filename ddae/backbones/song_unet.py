"""NVlabs' DDPM++ and NCSN++ (SongUNet; Song et al. 2021, Karras et al. 2022) as a diffusers model."""

import inspect
import math
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.nn import functional


class SongUNet2DModel(UNet2DModel):
    """A UNet2DModel that scales residual sums by 1/sqrt(2), has separate widths for its stem and noise embedding, and
    has attention in the decoder only behind the last block of a resolution. NCSN++ also embeds noise by random
    frequencies (fourier), smooths where it resamples (smooth), and adds the image to every level (residual).

    Its inputs are c_in x and c_noise of a preconditioning, which depends on sigma_data in EDM's. One that was trained
    with classes (num_classes) or with EDM's augmentation (augment_dim) takes these with the noise level; without them
    it runs as for no class, and for images as they are.
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
        fourier: bool = False,
        smooth: bool = False,
        residual: bool = False,
        dropout: float = 0.0,
        num_classes: int = 0,
        augment_dim: int = 0,
    ):
        attended = [sample_size >> level in attention_resolutions for level in range(len(block_out_channels))]
        # undecorated, or config.json would hold its arguments too; its forward pass reads center_input_sample
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
            dropout=dropout,
        )
        width, of_resnets = block_out_channels[0], {"groups": 1, "eps": 1e-6, "dropout": dropout}
        block = partial(ResnetBlock2D, out_channels=width, temb_channels=time_embedding_dim, **of_resnets)
        self.conv_in = nn.Conv2d(in_channels, stem_channels, 3, padding=1)
        self.time_proj = (
            Frequencies(noise_channels)
            if fourier
            else Timesteps(noise_channels, flip_sin_to_cos=False, downscale_freq_shift=1)
        )
        self.time_embedding = NoiseEmbedding(
            noise_channels, time_embedding_dim, cond_proj_dim=num_classes + augment_dim or None
        )
        self.down_blocks[0].resnets[0] = block(in_channels=stem_channels)
        self.up_blocks[-1].resnets[-1] = block(in_channels=width + stem_channels)
        self.scale_and_group(smooth)
        if residual:
            pairs = zip([in_channels, *block_out_channels], block_out_channels[:-1], strict=False)
            self.image_convs = nn.ModuleList([nn.Conv2d(old, new, 3, padding=1) for old, new in pairs])
            self.halve = Smooth(up=False) if smooth else nn.AvgPool2d(2)

    def scale_and_group(self, smooth: bool) -> None:
        """Sets in the modules of UNet2DModel what its arguments cannot."""
        for level in self.up_blocks:
            for j in range(len(level.resnets) - 1 if hasattr(level, "attentions") else 0):
                level.attentions[j] = nn.Identity()
        for module in list(self.modules()):
            if isinstance(module, ResnetBlock2D):
                module.output_scale_factor = math.sqrt(2)
                if module.up or module.down:
                    module.conv_shortcut = nn.Conv2d(module.in_channels, module.out_channels, 1)
                    if smooth:
                        setattr(module, "upsample" if module.up else "downsample", Smooth(module.up))
            elif isinstance(module, Attention):
                module.rescale_output_factor = math.sqrt(2)
            elif isinstance(module, nn.GroupNorm):
                module.num_groups = min(32, module.num_channels // 4)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """As UNet2DModel's, unless every level gets the image, or what the level before made of it.

        class_labels: int64 [N], num_classes for no class. augment_labels: [N, augment_dim], zeros for images as they
        are."""
        self.time_embedding.condition = self.condition(class_labels, augment_labels)
        if not hasattr(self, "image_convs"):
            return super().forward(sample, timestep, **options)
        embedding = self.time_embedding(self.time_proj(timestep).to(sample.dtype))
        x, image = self.conv_in(sample), sample
        skips = [x]
        for level, convolution in zip(self.down_blocks, [*self.image_convs, None], strict=True):
            for j, resnet in enumerate(level.resnets):
                x = resnet(x, embedding)
                x = level.attentions[j](x) if hasattr(level, "attentions") else x
                skips.append(x)
            if convolution is not None:
                x = image = (level.downsamplers[0](x, embedding) + self.shrunk(convolution, image)) / math.sqrt(2)
                skips.append(x)
        x = self.mid_block(x, embedding)
        for level in self.up_blocks:
            for j, resnet in enumerate(level.resnets):
                x = resnet(torch.cat([x, skips.pop()], dim=1), embedding)
                x = level.attentions[j](x) if hasattr(level, "attentions") else x
            if level.upsamplers is not None:
                x = level.upsamplers[0](x, embedding)
        return UNet2DOutput(sample=self.conv_out(self.conv_act(self.conv_norm_out(x))))

    def condition(self, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor | None:
        """[N, num_classes + augment_dim], the classes scaled to a variance of 1 (Karras et al. 2022); None for zeros.
        Raises ValueError for what the network was not trained with."""
        given = {"num_classes": class_labels, "augment_dim": augment_labels}
        widths: dict[str, int] = {name: self.config[name] for name in given}
        for name, labels in given.items():
            if labels is not None and not widths[name]:
                raise ValueError(f"this network was trained with {name}=0; run it without such labels")
        some = next((labels for labels in given.values() if labels is not None), None)
        if some is None:
            return None
        if class_labels is not None:
            one_hot = functional.one_hot(class_labels, widths["num_classes"] + 1)[:, :-1]
            given["num_classes"] = one_hot * math.sqrt(widths["num_classes"])
        parts = [
            some.new_zeros(len(some), widths[name]) if labels is None else labels for name, labels in given.items()
        ]
        return torch.cat([part.to(self.dtype) for part in parts], dim=1)

    def shrunk(self, convolution: nn.Conv2d, image: Tensor) -> Tensor:
        """Convolves and halves as the official fused operation does: what the filter sees beyond the border is the
        convolution of an image with zeros around it, not zero."""
        if not isinstance(self.halve, Smooth):
            return self.halve(convolution(image))
        wide = functional.conv2d(image, convolution.weight, padding=2)
        assert convolution.bias is not None
        return self.halve(wide, padding=0) + convolution.bias[:, None, None]


class NoiseEmbedding(TimestepEmbedding):
    """Embeds the noise level together with the condition that the network's forward pass has left here."""

    condition: Tensor | None = None

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(sample, self.condition if condition is None else condition)


class Frequencies(nn.Module):
    """The sine and cosine of the noise level at frequencies that were drawn before training. [N] -> [N, C]."""

    def __init__(self, channels: int):
        super().__init__()
        self.freqs = nn.Parameter(torch.zeros(channels // 2), requires_grad=False)

    def forward(self, noise: Tensor) -> Tensor:
        angles = noise.outer((2 * math.pi * self.freqs).to(noise.dtype))
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Smooth(nn.Module):
    """Halves or doubles the side of a map with the filter [1, 3, 3, 1]."""

    def __init__(self, up: bool):
        super().__init__()
        self.up = up

    def forward(self, x: Tensor, padding: int = 1) -> Tensor:
        taps = x.new_tensor([1, 3, 3, 1]) / 8
        weight = taps.outer(taps).expand(x.shape[1], 1, 4, 4)
        if self.up:
            return functional.conv_transpose2d(x, 4 * weight, stride=2, padding=padding, groups=x.shape[1])
        return functional.conv2d(x, weight, stride=2, padding=padding, groups=x.shape[1])
