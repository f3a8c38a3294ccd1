"""Train a small DDPM or EDM, the network whose features the sweep then searches."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import UNet2DModel

    from ddae.backbones.song_unet import SongUNet2DModel


@dataclass(frozen=True)
class UNetShape:
    """The size of a UNet; attention is put at the third resolution."""

    image_size: int = 32
    in_channels: int = 1
    channels: tuple[int, ...] = (16, 32, 64, 128)
    layers_per_block: int = 1
    norm_groups: int = 8

    def __post_init__(self) -> None:
        for width in self.channels:
            if width < 1 or width % self.norm_groups:
                raise ValueError(
                    f"channels={width} must be a multiple of {self.norm_groups}, the groups of the normalisation"
                )


@dataclass(frozen=True)
class Family:
    """A kind of diffusion: its network, its loss and the noise that both are of."""

    name: str
    noise: str
    """For the model card."""
    make_unet: Callable[[UNetShape], Any]
    make_scheduler: Callable[[], Any]
    """Of diffusers, to sample with."""
    loss: Callable[[nn.Module, Tensor, Any, torch.Generator], Tensor]
    """(network, x0 [N, C, H, W] in [-1, 1], scheduler, generator of timesteps and noise) -> a scalar."""


def make_ddpm(shape: UNetShape) -> "UNet2DModel":
    from diffusers import UNet2DModel

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


def make_edm(shape: UNetShape) -> "SongUNet2DModel":
    """DDPM++ (Song et al. 2021), as wide at its stem and noise embedding as UNet2DModel makes them."""
    from ddae.backbones.song_unet import SongUNet2DModel

    return SongUNet2DModel(
        sample_size=shape.image_size,
        in_channels=shape.in_channels,
        out_channels=shape.in_channels,
        stem_channels=shape.channels[0],
        block_out_channels=shape.channels,
        layers_per_block=shape.layers_per_block,
        attention_resolutions=(shape.image_size >> 2,),
        noise_channels=shape.channels[0],
        time_embedding_dim=4 * shape.channels[0],
    )


def linear_schedule() -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")


def edm_schedule() -> Any:
    from diffusers import EDMEulerScheduler

    return EDMEulerScheduler()


def ddpm_loss(unet: nn.Module, x0: Tensor, scheduler: Any, rng: torch.Generator) -> Tensor:
    """Noise-prediction error, L_simple of Ho et al. 2020 (equation 14)."""
    timesteps = torch.randint(len(scheduler.alphas_cumprod), (len(x0),), generator=rng)
    noise = torch.randn(x0.shape, generator=rng).to(x0.device)
    a = scheduler.alphas_cumprod[timesteps].to(x0.device).view(-1, 1, 1, 1)
    predicted = unet(a.sqrt() * x0 + (1 - a).sqrt() * noise, timesteps.to(x0.device)).sample
    return (predicted.float() - noise).square().mean()


def edm_loss(unet: nn.Module, x0: Tensor, scheduler: Any, rng: torch.Generator) -> Tensor:
    """Weighted denoising error (Karras et al. 2022, equation 2; weight and distribution of sigma of table 1)."""
    sigma = (1.2 * torch.randn((len(x0), 1, 1, 1), generator=rng) - 1.2).exp().to(x0.device)
    noised = x0 + sigma * torch.randn(x0.shape, generator=rng).to(x0.device)
    output = unet(scheduler.precondition_inputs(noised, sigma), scheduler.precondition_noise(sigma).flatten()).sample
    error = scheduler.precondition_outputs(noised, output.float(), sigma) - x0
    sigma_data = scheduler.config.sigma_data
    return ((sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2 * error.square()).mean()


FAMILIES = {
    "ddpm": Family("DDPM", "linear schedule, T = 1000", make_ddpm, linear_schedule, ddpm_loss),
    "edm": Family("EDM", "DDPM++ with EDM's preconditioning", make_edm, edm_schedule, edm_loss),
}


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
    loss_of: Callable[[Tensor, torch.Generator], Tensor],
    step: int,
    seed: int,
    autocast: torch.dtype | None = None,
) -> float:
    """One update; returns its loss. The batch and the noise depend on (seed, step) alone, so a resumed training
    needs no generator state."""
    rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
    x0 = draw_batch(rng)
    with torch.autocast(x0.device.type, autocast, enabled=autocast is not None):
        loss = loss_of(x0, rng)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def save(unet: Any, scheduler: Any, folder: Path) -> None:
    """A diffusers folder with fp16 weights: a DDPMPipeline's, or the SongUNet2DModel with its scheduler beside it."""
    from diffusers import DDPMPipeline, DDPMScheduler

    if isinstance(scheduler, DDPMScheduler):
        DDPMPipeline(unet.half(), scheduler).save_pretrained(folder)
    else:
        unet.half().save_pretrained(folder)
        scheduler.save_pretrained(folder / "scheduler")


@torch.inference_mode()
def sample(unet: Any, scheduler: Any, num_samples: int, seed: int, num_steps: int = 100) -> Tensor:
    """Images in [0, 1], [num_samples, C, H, W], with num_steps network passes each: of a DDPM by DDIM (Song et al.
    2021)."""
    from diffusers import DDIMScheduler, DDPMScheduler

    if isinstance(scheduler, DDPMScheduler):
        scheduler = DDIMScheduler.from_config(scheduler.config)
    scheduler.set_timesteps(num_steps)
    size, channels = unet.config.sample_size, unet.config.in_channels
    device = next(unet.parameters()).device
    noise = torch.randn((num_samples, channels, size, size), generator=torch.Generator().manual_seed(seed)).to(device)
    x = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        output = unet(scheduler.scale_model_input(x, timestep), timestep).sample
        x = scheduler.step(output, timestep, x).prev_sample
    return (x / 2 + 0.5).clamp(0, 1)
