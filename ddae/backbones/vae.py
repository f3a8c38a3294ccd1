"""Encodes images as latents of Stable Diffusion's autoencoder (Rombach et al. 2022), or of one built like it."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddae.backbones.base import Pixels, Settings, check_finite
from ddae.backbones.checkpoints import read_options
from ddae.backbones.files import load_network, local_path, model_class, subfolder

PIXELS_AT_ONCE = 8 * 256**2
"""Pixels that are encoded together (about 1 GB), so that memory does not grow with the batch."""


@dataclass(frozen=True, eq=False)
class Latents:
    """The mean of the posterior in float32, shifted and scaled as the autoencoder's configuration says.

    The official codes draw a sample from the posterior instead; the mean is the same each time and can be stored."""

    vae: Any
    """An AutoencoderKL of diffusers."""
    image_size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        side = self.image_size // downsampling(self.vae)
        return self.vae.config.latent_channels, side, side

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything that a latent depends on. The decoder is left out, because autoencoders with a
        fine-tuned decoder share their latents with the original."""
        config = self.vae.config
        numbers = config.scaling_factor, config.shift_factor, config.latents_mean, config.latents_std
        digest = hashlib.sha256(repr((self.image_size, config.act_fn, config.norm_num_groups, *numbers)).encode())
        for name, tensor in self.vae.state_dict().items():
            if name.startswith(("encoder.", "quant_conv.")):
                digest.update(name.encode())
                digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def __call__(self, images: Tensor) -> Tensor:
        pixels = Pixels(self.image_size)(images)
        num_images = max(1, PIXELS_AT_ONCE // self.image_size**2)
        with torch.autocast(pixels.device.type, enabled=False):
            means = torch.cat([self.vae.encode(part).latent_dist.mean for part in pixels.split(num_images)])
        config = self.vae.config
        shift = means.new_tensor(config.latents_mean or [config.shift_factor or 0.0])
        scale = means.new_tensor([config.scaling_factor / std for std in config.latents_std or [1.0]])
        return (means - shift[:, None, None]) * scale[:, None, None]


def latents_of(path: Path, channels: int, sample_size: int, patch_size: int, settings: Settings) -> Latents:
    """The encoder for a network that was trained on latents [channels, sample_size, sample_size].

    The VAE is the folder `vae` in the model's folder, or beside the folder or checkpoint; without one it is DiT's own.
    The sidecar of a checkpoint may name another as `vae`: a folder, a hub id, or, as in DiT's code, `ema` or `mse`.
    Raises ValueError if there is no VAE, or if it does not suit the network.
    """
    named = str((path.is_file() and read_options(path).get("vae")) or "mse")
    official = named in ("ema", "mse")
    folders = (path / "vae", path.parent / "vae") if official else (path.parent / named,)
    hub_id = f"stabilityai/sd-vae-ft-{named}" if official else named
    name = next((str(folder) for folder in folders if folder.is_dir()), hub_id)
    try:
        vae = load_vae(name, settings)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} needs a VAE: put the VAE's folder beside it as {path.parent / 'vae'}, or name its folder or hub "
            f"id as `vae` in {path.with_suffix('.json')}; {name}: {str(error).strip().splitlines()[0]}"
        ) from error
    if vae.config.latent_channels != channels:
        raise ValueError(
            f"{path} denoises {channels} channels, and its VAE {name} makes {vae.config.latent_channels}; "
            f"put the folder of its own beside it as {path.parent / 'vae'}"
        )
    multiple = downsampling(vae) * patch_size
    size = settings.image_size or sample_size * downsampling(vae)
    if size % multiple:
        raise ValueError(f"image_size={size} does not suit {path}; it takes multiples of {multiple}")
    return Latents(vae, size)


def with_vae(fingerprint: str, latents: Latents) -> str:
    """Adds the VAE to the fingerprint of a model's own files, because the VAE may lie elsewhere."""
    return hashlib.sha256(f"{fingerprint} {latents.fingerprint}".encode()).hexdigest()


def load_vae(name: str, settings: Settings) -> Any:
    """Loads the encoding half of an AutoencoderKL onto the device, from a folder or hub id of the VAE or a pipeline."""
    from diffusers import AutoencoderKL

    folder = subfolder(local_path(name), "vae")
    if (found := model_class(folder)) != "AutoencoderKL":
        raise ValueError(f"{folder} is a {found}; the only supported VAE is AutoencoderKL")
    vae = load_network(AutoencoderKL, folder)
    del vae.decoder, vae.post_quant_conv
    check_finite(vae)
    return vae.to(settings.device).eval().requires_grad_(False)


def downsampling(vae: Any) -> int:
    """How many times longer the side of an image is than that of its latent."""
    return 2 ** (len(vae.config.block_out_channels) - 1)
