"""Train a small DDPM or EDM, the network whose features a sweep then searches."""

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ddae.datasets import Reading, load_images

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
    """A kind of diffusion: its network, its noise and its loss."""

    name: str
    noise: str
    """For the model card."""
    make_unet: Callable[[UNetShape], Any]
    make_scheduler: Callable[[], Any]
    """diffusers' scheduler, to sample with."""
    draw_levels: Callable[[int, torch.Generator], Tensor]
    """(N, generator) -> the noise levels of N images, timesteps or sigmas."""
    loss: Callable[[nn.Module, Any, Tensor, Tensor, Tensor], Tensor]
    """(network, scheduler, x0 [N, C, H, W] in [-1, 1], noise levels [N], standard normal noise like x0) -> a scalar."""


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


NUM_TIMESTEPS = 1000


def linear_schedule() -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=NUM_TIMESTEPS, beta_schedule="linear")


def edm_schedule() -> Any:
    from diffusers import EDMEulerScheduler

    return EDMEulerScheduler()


def draw_timesteps(num_images: int, rng: torch.Generator) -> Tensor:
    """Uniform over all timesteps."""
    return torch.randint(NUM_TIMESTEPS, (num_images,), generator=rng)


def draw_sigmas(num_images: int, rng: torch.Generator) -> Tensor:
    """ln(sigma) is normal with mean -1.2 and standard deviation 1.2 (Karras et al. 2022, table 1)."""
    return (1.2 * torch.randn(num_images, generator=rng) - 1.2).exp()


def ddpm_loss(unet: nn.Module, scheduler: Any, x0: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
    """Noise-prediction error, L_simple of Ho et al. 2020 (equation 14)."""
    a = scheduler.alphas_cumprod[timesteps].to(x0.device).view(-1, 1, 1, 1)
    predicted = unet(a.sqrt() * x0 + (1 - a).sqrt() * noise, timesteps.to(x0.device)).sample
    return (predicted.float() - noise).square().mean()


def edm_loss(unet: nn.Module, scheduler: Any, x0: Tensor, sigmas: Tensor, noise: Tensor) -> Tensor:
    """Weighted denoising error (Karras et al. 2022, equation 2; its weight from table 1)."""
    sigma = sigmas.to(x0.device).view(-1, 1, 1, 1)
    noised = x0 + sigma * noise
    output = unet(scheduler.precondition_inputs(noised, sigma), scheduler.precondition_noise(sigma).flatten()).sample
    error = scheduler.precondition_outputs(noised, output.float(), sigma) - x0
    sigma_data = scheduler.config.sigma_data
    return ((sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2 * error.square()).mean()


FAMILIES = {
    "ddpm": Family("DDPM", "linear schedule, T = 1000", make_ddpm, linear_schedule, draw_timesteps, ddpm_loss),
    "edm": Family("EDM", "DDPM++ with EDM's preconditioning", make_edm, edm_schedule, draw_sigmas, edm_loss),
}


def warmup_cosine(step: int, num_steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a half cosine to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = torch.tensor((step - warmup_steps) / max(1, num_steps - warmup_steps))
    return float(0.5 * (1 + torch.cos(torch.pi * progress)))


load_images_once = lru_cache(maxsize=1)(load_images)
"""As load_images; only images of the official train split are trained on."""


@dataclass
class Pretraining:
    """How a network of a family is trained: AdamW, gradients of a norm of 1 at most, a moving average of the weights.

    The images of a step, their noise levels and their noise depend on (seed, step) alone, and worker r of R takes every
    R-th of them from the r-th on.
    """

    family: Family
    shape: UNetShape
    dataset: str
    image_size: int
    data_root: str
    reading: Reading
    """How the files are read; they are not opened first."""
    num_steps: int
    batch_size: int
    learning_rate: float
    """Peak; linear warm-up over 500 steps, then a half cosine to zero."""
    ema_decay: float
    seed: int
    autocast: torch.dtype | None
    recipe: Mapping[str, Any]
    """The flags that decide the trained weights."""
    snapshots: Path
    """Folder in which copies of the averaged network are kept on the way, step-N."""
    snapshot_every: int
    """Steps between two of them; 0 keeps none."""
    max_gradient_norm = 1.0

    def start(self, device: torch.device, rank: int = 0, world_size: int = 1) -> None:
        from diffusers.training_utils import EMAModel

        self.device, self.rank, self.world_size = device, rank, world_size
        self.images = load_images_once(self.dataset, self.image_size, self.data_root, self.reading)
        self.scheduler = self.family.make_scheduler()
        torch.manual_seed(self.seed)
        self.network = self.family.make_unet(self.shape).to(device)
        self.ema = EMAModel(self.network.parameters(), decay=self.ema_decay, use_ema_warmup=True, power=0.75)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.learning_rate, weight_decay=0.0)

    def schedule(self, step: int) -> float:
        return warmup_cosine(step, self.num_steps, 500)

    def loss(self, network: nn.Module, step: int) -> Tensor:
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        mine = slice(self.rank, None, self.world_size)
        rows = torch.randint(self.images.num_train, (self.batch_size,), generator=rng)[mine].numpy()
        x0 = self.images.read(rows).to(self.device).float()
        x0 = (x0 if self.shape.in_channels == 3 else x0.mean(1, keepdim=True)) / 127.5 - 1
        levels = self.family.draw_levels(self.batch_size, rng)
        noise = torch.randn((self.batch_size, *x0.shape[1:]), generator=rng)
        return self.family.loss(network, self.scheduler, x0, levels[mine], noise[mine].to(self.device))

    def after_step(self, step: int) -> dict[str, float]:
        self.ema.step(self.network.parameters())
        if self.rank == 0 and self.snapshot_every and (step + 1) % self.snapshot_every == 0:
            save(self.averaged(), self.scheduler, self.snapshots / f"step-{step + 1}")
        return {}

    def averaged(self) -> Any:
        """A copy of the network with the moving average of its weights."""
        network = copy.deepcopy(self.network).eval()
        self.ema.copy_to(network.parameters())
        return network

    def state_dict(self) -> dict[str, Any]:
        return {
            "unet": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["unet"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])


def save(unet: Any, scheduler: Any, folder: Path) -> None:
    """Write a diffusers folder with fp16 weights, in place of one that is there: a DDPMPipeline's, or the
    SongUNet2DModel with its scheduler beside it. The network is left in fp16."""
    from diffusers import DDPMPipeline, DDPMScheduler

    part = folder.with_name(f"{folder.name}.part")
    if isinstance(scheduler, DDPMScheduler):
        DDPMPipeline(unet.half(), scheduler).save_pretrained(part)
    else:
        unet.half().save_pretrained(part)
        scheduler.save_pretrained(part / "scheduler")
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


@torch.inference_mode()
def sample(unet: Any, scheduler: Any, num_samples: int, seed: int, num_steps: int = 100) -> Tensor:
    """Images in [0, 1], [num_samples, C, H, W], with num_steps network passes each; a DDPM is sampled by DDIM (Song et
    al. 2021)."""
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
