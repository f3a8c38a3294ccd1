"""Pixel-space DDPM UNets in diffusers format (Ho et al. 2020)."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from ddae.backbones.base import Block, capture
from ddae.noise import vp_diffuse, vp_sigma

if TYPE_CHECKING:
    from diffusers import UNet2DModel


class DDPM:
    """A diffusers UNet2DModel with a variance-preserving schedule.

    Timesteps are diffusers' 0..T-1: t is noised by beta_0..beta_t, so the papers' t = 11 is timestep 10 here.
    A block is the output of a residual block, or of the attention behind it where there is one.
    """

    def __init__(self, unet: "UNet2DModel", alphas_cumprod: Tensor, fingerprint: str, device: str = "cpu"):
        self.unet = unet.to(device).eval().requires_grad_(False)
        self.alphas_cumprod = alphas_cumprod
        self.fingerprint = fingerprint
        self.device = torch.device(device)
        self.image_size = unet.config.sample_size
        self.num_timesteps = len(alphas_cumprod)
        self._modules = _block_modules(unet)
        self.blocks, self.flops = self._trace()

    def sigma(self, timestep: int) -> float:
        return vp_sigma(float(self.alphas_cumprod[timestep]))

    def encode(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> [-1, 1], [N, C, S, S]; a one-channel network gets the mean of the three colours."""
        x0 = images.to(self.device).float()
        if self.unet.config.in_channels == 1:
            x0 = x0.mean(dim=1, keepdim=True)
        if x0.shape[-1] != self.image_size or x0.shape[-2] != self.image_size:
            x0 = functional.interpolate(x0, (self.image_size,) * 2, mode="bilinear", antialias=True)
        return x0 / 127.5 - 1

    @torch.inference_mode()
    def activations(
        self,
        x0: Tensor,
        noise: Tensor,
        timestep: int,
        blocks: Sequence[str],
        reduce: Callable[[Tensor], Tensor] = lambda map: map,
    ) -> dict[str, Tensor]:
        x_t = vp_diffuse(x0, noise.to(self.device), float(self.alphas_cumprod[timestep]))
        return capture(self._modules, blocks, lambda: self.unet(x_t, timestep), reduce)

    def _trace(self) -> tuple[tuple[Block, ...], int]:
        """Shapes and floating-point operations, read off the forward pass of one image."""
        x = torch.zeros(1, self.unet.config.in_channels, self.image_size, self.image_size, device=self.device)
        flops_so_far: list[int] = []

        def shape(features: Tensor) -> Tensor:
            flops_so_far.append(counter.get_total_flops())
            return features

        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            maps = capture(self._modules, list(self._modules), lambda: self.unet(x, 0), shape)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.unet(x, 0)
        total = counter.get_total_flops()
        stages: dict[str, int] = {}
        blocks = []
        for (name, features), flops in zip(maps.items(), flops_so_far, strict=True):
            stage = name.split(".")[0]
            stages[stage] = stages.get(stage, 0) + 1
            blocks.append(Block(name, stages[stage], stage, features.shape[1], features.shape[-1], flops / total))
        return tuple(blocks), total


def load(folder: Path, fingerprint: str, device: str) -> DDPM:
    """A diffusers folder: a pipeline with unet/ and scheduler/, or the UNet2DModel alone."""
    from diffusers import DDPMScheduler, UNet2DModel

    unet_folder = folder / "unet" if (folder / "unet").is_dir() else folder
    unet = UNet2DModel.from_pretrained(unet_folder, torch_dtype=torch.float32, low_cpu_mem_usage=False)
    if unet.config.class_embed_type is not None or unet.config.num_class_embeds is not None:
        raise ValueError(f"backbone={str(folder)!r} wants a class label, which is not supported yet")
    if not isinstance(unet.config.sample_size, int):
        raise ValueError(
            f"{unet_folder}/config.json says sample_size={unet.config.sample_size}; a square size is needed"
        )
    schedules = [folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"]
    schedule = next((path for path in schedules if path.exists()), None)
    if schedule is None:
        logging.getLogger("ddae").warning("%s has no scheduler; taking DDPM's linear schedule, T = 1000", folder)
        return DDPM(unet, DDPMScheduler().alphas_cumprod, fingerprint, device)
    config = json.loads(schedule.read_text())
    if "beta_schedule" not in config:
        raise ValueError(f"{schedule} ({config.get('_class_name')}) is not a variance-preserving schedule")
    return DDPM(unet, DDPMScheduler.from_config(config).alphas_cumprod, fingerprint, device)


def _block_modules(unet: "UNet2DModel") -> dict[str, nn.Module]:
    """Block name -> module, in the order the data meets them."""
    modules: dict[str, nn.Module] = {}
    for i, block in enumerate(unet.down_blocks):
        modules |= {f"down.{i}.{j}": module for j, module in enumerate(_outputs(block))}
    if unet.mid_block is not None:
        modules["mid"] = unet.mid_block
    for i, block in enumerate(unet.up_blocks):
        modules |= {f"up.{i}.{j}": module for j, module in enumerate(_outputs(block))}
    return modules


def _outputs(block: Any) -> list[nn.Module]:
    attentions = getattr(block, "attentions", None)
    return list(attentions) if attentions and len(attentions) == len(block.resnets) else list(block.resnets)
