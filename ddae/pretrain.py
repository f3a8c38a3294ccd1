"""Train a small DDPM, the network whose features the sweep then searches."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import UNet2DModel


@dataclass(frozen=True)
class UNetShape:
    """The size of a diffusers UNet2DModel; attention is put at the third resolution."""

    image_size: int = 32
    in_channels: int = 1
    channels: tuple[int, ...] = (16, 32, 64, 128)
    layers_per_block: int = 1
    norm_groups: int = 8


def make_unet(shape: UNetShape) -> "UNet2DModel":
    from diffusers import UNet2DModel

    for width in shape.channels:
        if width < 1 or width % shape.norm_groups:
            raise ValueError(
                f"channels={width} must be a multiple of {shape.norm_groups}, the groups of the normalisation"
            )
    down = ["DownBlock2D"] * len(shape.channels)
    up = ["UpBlock2D"] * len(shape.channels)
    if len(shape.channels) > 2:
        down[2], up[-3] = "AttnDownBlock2D", "AttnUpBlock2D"
    return UNet2DModel(
        sample_size=shape.image_size,
        in_channels=shape.in_channels,
        out_channels=shape.in_channels,
        block_out_channels=shape.channels,
        layers_per_block=shape.layers_per_block,
        norm_num_groups=shape.norm_groups,
        attention_head_dim=min(32, *shape.channels[2:], shape.channels[-1]),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
    )


def ddpm_loss(unet: nn.Module, x0: Tensor, alphas_cumprod: Tensor, rng: torch.Generator) -> Tensor:
    """Noise-prediction error, L_simple of Ho et al. 2020 (equation 14). x0: [N, C, H, W] in [-1, 1]."""
    timesteps = torch.randint(len(alphas_cumprod), (len(x0),), generator=rng).to(x0.device)
    noise = torch.randn(x0.shape, generator=rng).to(x0.device)
    a = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    predicted = unet(a.sqrt() * x0 + (1 - a).sqrt() * noise, timesteps).sample
    return (predicted.float() - noise).square().mean()


def warmup_cosine(step: int, num_steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a half cosine to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = torch.tensor((step - warmup_steps) / max(1, num_steps - warmup_steps))
    return float(0.5 * (1 + torch.cos(torch.pi * progress)))


def train_step(
    unet: nn.Module,
    optimizer: torch.optim.Optimizer,
    draw_batch: Callable[[torch.Generator], Tensor],
    alphas_cumprod: Tensor,
    step: int,
    seed: int,
    autocast: torch.dtype | None = None,
) -> float:
    """One update; returns its loss. The batch and the noise depend on (seed, step) alone, so a resumed training
    needs no generator state."""
    rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
    x0 = draw_batch(rng)
    with torch.autocast(x0.device.type, autocast, enabled=autocast is not None):
        loss = ddpm_loss(unet, x0, alphas_cumprod, rng)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


@torch.inference_mode()
def sample(unet: "UNet2DModel", scheduler_config: dict, num_samples: int, seed: int, num_steps: int = 100) -> Tensor:
    """Images in [0, 1], [num_samples, C, H, W], by DDIM (Song et al. 2021) with num_steps network passes each."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(scheduler_config)
    scheduler.set_timesteps(num_steps)
    size, channels = unet.config.sample_size, unet.config.in_channels
    device = next(unet.parameters()).device
    x = torch.randn((num_samples, channels, size, size), generator=torch.Generator().manual_seed(seed)).to(device)
    for timestep in scheduler.timesteps:
        x = scheduler.step(unet(x, timestep).sample, timestep, x).prev_sample
    return (x / 2 + 0.5).clamp(0, 1)
