"""Encodes images as latents of Stable Diffusion's autoencoder (Rombach et al. 2022), or of any other of diffusers."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddae.backbones.base import Encoder, Pixels, Settings, as_bytes, check_finite
from ddae.backbones.contents import check_not_zero
from ddae.backbones.files import load_network, local_path, model_class, subfolder
from ddae.backbones.options import read_options

PIXELS_AT_ONCE = 8 * 256**2
"""Pixels that are encoded together (about 1 GB), so that memory does not grow with the batch."""


@dataclass(frozen=True, eq=False)
class Latents:
    """The mean of the posterior in float32, shifted and scaled as the autoencoder's configuration says.

    The official codes draw a sample from the posterior instead; the mean is the same each time and can be stored."""

    vae: Any
    """An autoencoder of diffusers."""
    image_size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        side = self.image_size // downsampling(self.vae)
        return self.vae.config.latent_channels, side, side

    @property
    def is_video(self) -> bool:
        return False

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything that a latent depends on. The decoder is left out, because autoencoders with a
        fine-tuned decoder share their latents with the original."""
        config = self.vae.config
        digest = hashlib.sha256(
            repr((self.image_size, config.get("act_fn"), config.get("norm_num_groups"), *self.numbers)).encode()
        )
        for name, tensor in self.vae.state_dict().items():
            if not name.startswith(("decoder.", "post_quant_conv.")):
                digest.update(name.encode())
                digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def numbers(self) -> tuple[Any, ...]:
        """What latents are shifted and scaled by."""
        config = self.vae.config
        return config.scaling_factor, config.shift_factor, config.latents_mean, config.latents_std

    def __call__(self, images: Tensor) -> Tensor:
        pixels = self.pixels(images)
        num_images = max(1, PIXELS_AT_ONCE // self.image_size**2)
        with torch.autocast(pixels.device.type, enabled=False):
            return self.scaled(torch.cat([encode(self.vae, part, self.is_video) for part in pixels.split(num_images)]))

    def pixels(self, images: Tensor) -> Tensor:
        """What the autoencoder is given."""
        return Pixels(self.image_size)(images)

    def scaled(self, latents: Tensor) -> Tensor:
        scaling_factor, shift_factor, latents_mean, latents_std = self.numbers
        shift = latents.new_tensor(latents_mean or [shift_factor or 0.0])
        scale = latents.new_tensor([scaling_factor / std for std in latents_std or [1.0]])
        return (latents - shift[:, None, None]) * scale[:, None, None]

    def decode(self, x0: Tensor) -> Tensor:
        """float32 [N, *shape] -> uint8 [N, 3, H, W]; the first call loads the decoder."""
        return as_bytes(self.decoded(x0))

    def decoded(self, x0: Tensor) -> Tensor:
        """What the autoencoder returns, float32 [N, 3, H, W]."""
        num_images = max(1, PIXELS_AT_ONCE // self.image_size**2)
        restore_decoder(self.vae)
        latents = self.unscaled(x0)
        with torch.autocast(x0.device.type, enabled=False):
            return torch.cat([self.vae.decode(part).sample for part in latents.split(num_images)])

    def unscaled(self, x0: Tensor) -> Tensor:
        """What scaled() was given."""
        scaling_factor, shift_factor, latents_mean, latents_std = self.numbers
        shift = x0.new_tensor(latents_mean or [shift_factor or 0.0])
        scale = x0.new_tensor([scaling_factor / std for std in latents_std or [1.0]])
        return x0 / scale[:, None, None] + shift[:, None, None]


@dataclass(frozen=True, eq=False)
class PipelineLatents(Latents):
    """Latents that are shifted and scaled as the model's pipeline does before it decodes them, element by element."""

    shift: Tensor
    """[1, C, ..., H, W], as scale; the VAE decodes shift + scale * latents."""
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width = self.shift.shape[-2:]
        return self.shift.numel() // (height * width), height, width

    @property
    def is_video(self) -> bool:
        return self.shift.ndim == 5

    @property
    def numbers(self) -> tuple[Any, ...]:
        return tuple(self.shift.unique().tolist()), tuple(self.scale.unique().tolist())

    def scaled(self, latents: Tensor) -> Tensor:
        shift, scale = self.shift.to(latents.device), self.scale.to(latents.device)
        return ((latents.reshape(-1, *shift.shape[1:]) - shift) / scale).reshape(-1, *self.shape)

    def unscaled(self, x0: Tensor) -> Tensor:
        if self.is_video:
            raise ValueError("the VAE decodes videos; images alone can be sampled")
        shift, scale = self.shift.to(x0.device), self.scale.to(x0.device)
        return shift + scale * x0.reshape(-1, *shift.shape[1:])


@dataclass(frozen=True)
class WithImage:
    """Latents, and the image itself in three further channels, for networks that are given it beside the latents."""

    encoder: Encoder

    @property
    def image_size(self) -> int:
        return self.encoder.image_size

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.encoder.shape
        return channels + 3, height, width

    @property
    def fingerprint(self) -> str:
        return f"{self.encoder.fingerprint}-with-image"

    def __call__(self, images: Tensor) -> Tensor:
        x0 = self.encoder(images)
        return torch.cat([x0, Pixels(x0.shape[-1])(images)], dim=1)


def encode(vae: Any, pixels: Tensor, is_video: bool = False) -> Tensor:
    """What a VAE makes of pixels [N, 3, H, W]: the mean of its posterior, if it has one. One of videos gets a video of
    one image."""
    output = vae.encode(pixels[:, :, None] if is_video else pixels)
    for name in ("latents", "latent"):
        if hasattr(output, name):
            return getattr(output, name)
    return output.latent_dist.mean


@torch.no_grad()
def measure(vae: Any) -> tuple[int, int]:
    """How many times longer the side of an image is than that of its latent, and how many channels a latent has."""
    pixels = torch.zeros(1, 3, 64, 64, device=next(vae.parameters()).device)
    try:
        latents = encode(vae, pixels)
    except (RuntimeError, ValueError):
        latents = encode(vae, pixels, is_video=True)
    return 64 // latents.shape[-1], latents.shape[1]


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
        vae = load_vae(name, settings, ("AutoencoderKL",))
    except (OSError, ValueError) as error:
        if Path(name).is_dir():
            raise
        raise ValueError(
            f"{path} needs a VAE: put the VAE's folder beside it as {path.parent / 'vae'}, or name its folder or hub "
            f"id as `vae` in {path.with_suffix('.json')}; {name}: {str(error).strip().splitlines()[0]}"
        ) from error
    if vae.config.scaling_factor is None:
        raise ValueError(f"the VAE {name} has scaling_factor null in its config.json; give the one it was trained with")
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


def latents_beside(unet: Any, folder: Path, settings: Settings) -> Latents | None:
    """The encoder of a UNet that was trained on latents, whose VAE lies in its folder as vae/; None of pixels."""
    if not (folder / "vae").is_dir():
        return None
    return latents_of(folder, unet.config.in_channels, unet.config.sample_size, 1, settings)


def with_vae(fingerprint: str, latents: Encoder) -> str:
    """Adds the VAE to the fingerprint of a model's own files, because the VAE may lie elsewhere."""
    return hashlib.sha256(f"{fingerprint} {latents.fingerprint}".encode()).hexdigest()


def find_vae(folder: Path, part: str, settings: Settings) -> Any:
    """The VAE of a pipeline, which calls it `part`: in its folder, or beside the folder of a network alone.

    Raises ValueError if there is none.
    """
    for place in (folder / part, folder.parent / part, folder / "vae", folder.parent / "vae"):
        if place.is_dir():
            vae = load_vae(str(place), settings)
            if vae.config.get("shift_factor", 0) is None:  # pipelines of later models calculate with it
                vae.register_to_config(shift_factor=0.0)
            return vae
    raise ValueError(
        f"{folder} needs its VAE; put the VAE's folder into it as {folder / part}, or beside it as "
        f"{folder.parent / part}"
    )


def load_vae(name: str, settings: Settings, kinds: tuple[str, ...] = ()) -> Any:
    """Loads the encoding half of a VAE onto the device, from a folder or hub id of the VAE or a pipeline.

    Raises ValueError if it is none of diffusers, or not one of `kinds`, if given.
    """
    import diffusers

    folder = subfolder(local_path(name), "vae")
    found = model_class(folder)
    if kinds and found not in kinds:
        raise ValueError(f"{folder} is a {found}; the only supported VAE is {', '.join(kinds)}")
    kind = getattr(diffusers, found, None)
    if not hasattr(kind, "encode"):
        raise ValueError(f"{folder} is a {found}, which is no VAE of diffusers {diffusers.__version__}")
    vae = load_network(kind, folder)
    vae.folder = folder
    if hasattr(vae, "decoder"):
        vae.decoder = nn.Module()
    check_finite(vae)
    check_not_zero(vae)
    return vae.to(settings.device).eval().requires_grad_(False)


def restore_decoder(vae: Any) -> None:
    """Load the decoding half that load_vae leaves out, once."""
    if hasattr(vae, "decoder") and not list(vae.decoder.parameters()):
        whole = load_network(type(vae), vae.folder)
        check_finite(whole.decoder)
        vae.decoder = whole.decoder.to(next(vae.parameters()).device).eval().requires_grad_(False)


def downsampling(vae: Any) -> int:
    """How many times longer the side of an image is than that of its latent."""
    return 2 ** (len(vae.config.block_out_channels) - 1)
