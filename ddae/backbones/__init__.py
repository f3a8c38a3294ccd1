"""Diffusion networks by hub id, local folder or official checkpoint file, and classifiers by library and name."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ddae.backbones import adm, classifier, ddpm, dit, edm, generic, stable_diffusion
from ddae.backbones.base import Backbone, Block, Settings, check_finite
from ddae.backbones.checkpoints import read_checkpoint, sidecars
from ddae.backbones.files import SHIPPED, file_digest, first_line, local_path, model_class, model_files
from ddae.backbones.stable_diffusion import text_inputs

BACKBONES: dict[str, Callable[[Path, str, Settings], Backbone]] = {
    "DDPMPipeline": ddpm.load,
    "DDIMPipeline": ddpm.load,
    "UNet2DModel": ddpm.load,
    "DiTPipeline": dit.load,
    "DiTTransformer2DModel": dit.load,
    "StableDiffusionPipeline": stable_diffusion.load,
    "SongUNet2DModel": edm.load,
}
"""The class that a diffusers folder names -> (folder, fingerprint, settings) -> Backbone; generic.load for others."""

OFFICIAL: dict[str, Callable[[dict[str, Tensor], Path, str, Settings], Backbone]] = {
    "image_proj.weight": ddpm.from_state,
    "map_layer0.weight": edm.from_state,
    "x_embedder.proj.weight": dit.from_state,
    "input_blocks.0.0.weight": adm.from_state,
}
"""A tensor that one official code's checkpoints alone have -> (state dict, file, fingerprint, settings) -> Backbone."""

DEFAULT = Settings()


def load_backbone(name: str, settings: Settings = DEFAULT) -> Backbone:
    """name: in SHIPPED, a local diffusers folder, an official checkpoint file, a hub id, `owner/model` or
    `owner/model@revision`, or a classifier, `torchvision:name[@weights]` or `timm:name`.

    Raises ValueError where there is none, where it is of no kind that is known, or where the settings do not suit it.
    """
    if settings.text_embedding and not Path(settings.text_embedding).is_file():
        raise ValueError(f"text_embedding={settings.text_embedding!r} is no file; sweeps/learn_text.py makes one")
    named = classifier.is_name(name)
    path = Path(name) if named else local_path(name)
    try:
        if named:
            backbone = classifier.load(name, settings)
        else:
            backbone = load_official(path, settings) if path.is_file() else load_folder(path, settings)
        check_finite(backbone.network)
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"backbone={name!r}: {error}") from error
    except Exception as error:  # damaged files and options of wrong types raise errors of every class
        raise ValueError(
            f"backbone={name!r} cannot be loaded ({type(error).__name__}: {first_line(error)}); look at its files, or "
            "fetch them again"
        ) from error
    if settings.text_embedding:
        text_inputs(backbone)
    return backbone


def load_folder(path: Path, settings: Settings) -> Backbone:
    load = BACKBONES.get(model_class(path), generic.load)
    return load(path, fingerprint(path, settings), settings)


def load_official(path: Path, settings: Settings) -> Backbone:
    state = read_checkpoint(path)
    for tensor, from_state in OFFICIAL.items():
        if tensor in state:
            return from_state(state, path, fingerprint(path, settings), settings)
    raise ValueError(
        f"{path} holds no network that is known: it has none of the tensors {', '.join(OFFICIAL)}, by which the "
        f"codes of DDAE, EDM, DiT and guided diffusion are told; its first are {', '.join(list(state)[:3])}"
    )


def fingerprint(path: Path, settings: Settings) -> str:
    """sha256 over the names and bytes of configuration and weights, and over the settings that change features."""
    digest = hashlib.sha256()
    for file in [path, *sidecars(path)] if path.is_file() else model_files(path):
        digest.update((file.relative_to(path).as_posix() if path.is_dir() else file.suffix).encode())
        digest.update(file_digest(file))
    digest.update(settings.stamp)
    if settings.text_embedding:
        digest.update(file_digest(Path(settings.text_embedding)))
    return digest.hexdigest()


__all__ = ["BACKBONES", "OFFICIAL", "SHIPPED", "Backbone", "Block", "Settings", "fingerprint", "load_backbone"]
