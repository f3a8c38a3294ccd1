"""Loads diffusion networks by hub id, local folder or official checkpoint file, and classifiers by library and name."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ddae.backbones import (
    adm,
    adm_classifier,
    ddpm,
    dit,
    edm,
    edm2,
    generic,
    sit,
    stable_diffusion,
    timm_models,
    torchvision_models,
    transformers_models,
    wide_resnet,
)
from ddae.backbones.base import Backbone, Block, Settings, check_finite
from ddae.backbones.checkpoints import open_checkpoint
from ddae.backbones.contents import ADAPTER_FILES, LORA, averages_beside, check_not_zero
from ddae.backbones.dit_layout import kind_of
from ddae.backbones.files import SHIPPED, file_digest, first_line, local_path, model_class, model_files, subfolder
from ddae.backbones.lean import import_diffusers
from ddae.backbones.options import sidecars
from ddae.backbones.random_weights import draw_weights
from ddae.backbones.unsupported import refuse_unsupported

BACKBONES: dict[str, Callable[[Path, str, Settings], Backbone]] = {
    "DDPMPipeline": ddpm.load,
    "DDIMPipeline": ddpm.load,
    "UNet2DModel": ddpm.load,
    "DiTPipeline": dit.load,
    "DiTTransformer2DModel": dit.load,
    "StableDiffusionPipeline": stable_diffusion.load,
    "SongUNet2DModel": edm.load,
}
"""Loaders of diffusers folders, by the class that the folder or its network names; generic.load loads all others."""

OFFICIAL: dict[str, Callable[[dict[str, Tensor], Path, str, Settings, dict[str, Any]], Backbone]] = {
    "image_proj.weight": ddpm.from_state,
    "map_layer0.weight": edm.from_state,
    "x_embedder.proj.weight": dit.from_state,
    "input_blocks.0.0.weight": adm.from_state,
    "emb_fourier.freqs": edm2.from_state,
}
"""Loaders of official checkpoints, by a tensor that no other official code's checkpoints have."""


def load_random(name: str, settings: Settings) -> Backbone:
    """Loads the network of this name, with weights that are drawn anew."""
    backbone = load_backbone(name, replace(settings, weights=""))
    draw_weights(backbone.network)
    backbone.fingerprint = hashlib.sha256(f"random tensors of {backbone.fingerprint}".encode()).hexdigest()
    return backbone


LIBRARIES: dict[str, Callable[[str, Settings], Backbone]] = {
    "random": load_random,
    "torchvision": torchvision_models.load,
    "timm": timm_models.load,
    "transformers": transformers_models.load,
    "wrn": wide_resnet.load,
}
"""Loaders of classifiers, and of any network with random weights, by what stands before the colon; they get what stands
behind it."""

DEFAULT = Settings()

logger = logging.getLogger("ddae")


def load_backbone(name: str, settings: Settings = DEFAULT) -> Backbone:
    """Loads a network by its name: one in SHIPPED, a local diffusers folder, an official checkpoint file, a hub id
    (`owner/model` or `owner/model@revision`), or a classifier (`torchvision:name[@weights]`, `timm:name`,
    `transformers:owner/model`).

    Raises ValueError if there is no such network, if its kind is unknown, or if the settings do not suit it.
    """
    if settings.text_embedding and not Path(settings.text_embedding).is_file():
        raise ValueError(f"text_embedding={settings.text_embedding!r} is no file; sweeps/learn_text.py makes one")
    import_diffusers(settings.compile)
    library, _, model = name.partition(":")
    path = Path(name) if library in LIBRARIES else local_path(name)
    try:
        if library in LIBRARIES:
            backbone = LIBRARIES[library](model, settings)
        else:
            backbone = load_official(path, settings) if path.is_file() else load_folder(path, settings)
        check_finite(backbone.network)
        check_not_zero(backbone.network)
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
        stable_diffusion.text_inputs(backbone)
    if settings.weights:
        replace_weights(backbone, Path(settings.weights))
    return backbone


def replace_weights(backbone: Backbone, file: Path) -> None:
    """Puts the tensors of a safetensors file in place of the network's own of the same names. Raises ValueError if one
    has no counterpart."""
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"weights={str(file)!r} cannot be read ({error}); sweeps/finetune.py writes such files"
        ) from error
    own = backbone.network.state_dict()
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise ValueError(
                f"weights={str(file)!r} has {name} of shape {list(tensor.shape)}, which this network has not; give the "
                "network that they were trained from"
            )
        own[name].copy_(tensor)
    check_finite(backbone.network)
    backbone.fingerprint = hashlib.sha256(backbone.fingerprint.encode() + file_digest(file)).hexdigest()


def load_folder(path: Path, settings: Settings) -> Backbone:
    """Loads a diffusers folder by the class that it names, or, for a pipeline that is not known, by its network's."""
    if is_part(path):
        logger.warning("%s is taken with what lies beside it in %s", path, path.parent)
        path = path.parent
    load = BACKBONES.get(model_class(path)) or BACKBONES.get(generic.network_class(path), generic.load)
    name_unread(path)
    if load is ddpm.load and model_class(path) != "DDPMPipeline" and generic.decoder_folder(path):
        load = generic.load
    return load(path, fingerprint(path, settings), settings)


def is_part(path: Path) -> bool:
    """Whether a folder is the network of the pipeline that it lies in."""
    if (path / "model_index.json").exists() or not (path.parent / "model_index.json").exists():
        return False
    return path.resolve() == subfolder(path.parent, *generic.NETWORK_FOLDERS).resolve()


def name_unread(folder: Path) -> None:
    """Names what beside a network would change it and is not read."""
    for path in sorted([*folder.glob("*"), *folder.glob("unet/*"), *folder.glob("transformer/*")]):
        if ADAPTER_FILES.fullmatch(path.name):
            logger.warning("%s is not applied: it is %s", path, LORA)
        elif path.is_dir() and "ema" in path.name.split("_") and (path / "config.json").exists():
            logger.warning("%s is not read; to take this average, give its path", path)


def load_official(path: Path, settings: Settings) -> Backbone:
    """Loads an official checkpoint by the tensors in it. Raises ValueError if they are those of no known code."""
    checkpoint = open_checkpoint(path, OFFICIAL)
    for average in averages_beside(path):
        logger.warning("%s: %s beside it is called as its average is; to take that, give its path", path, average.name)
    state = checkpoint.state
    refuse_unsupported(state, checkpoint.beside, path)
    for tensor, from_state in OFFICIAL.items():
        if tensor in state:
            if from_state is dit.from_state and kind_of(state, path, checkpoint.said) != "DiT":
                from_state = sit.from_state
            if from_state is adm.from_state and adm_classifier.POSITIONS in state:
                from_state = adm_classifier.from_state
            return from_state(state, path, fingerprint(path, settings), settings, checkpoint.said)
    raise ValueError(
        f"{path} holds no network that is known: it has none of the tensors {', '.join(OFFICIAL)}, by which "
        f"checkpoints of DDAE, EDM, DiT and guided diffusion are recognised; its first are {', '.join(list(state)[:3])}"
    )


def fingerprint(path: Path, settings: Settings) -> str:
    """sha256 over the names and bytes of configuration and weights, and the settings that change features."""
    digest = hashlib.sha256()
    for file in [path, *sidecars(path)] if path.is_file() else model_files(path):
        digest.update((file.relative_to(path).as_posix() if path.is_dir() else file.suffix).encode())
        digest.update(file_digest(file))
    digest.update(settings.stamp)
    if settings.text_embedding:
        digest.update(file_digest(Path(settings.text_embedding)))
    return digest.hexdigest()


__all__ = ["BACKBONES", "OFFICIAL", "SHIPPED", "Backbone", "Block", "Settings", "fingerprint", "load_backbone"]
