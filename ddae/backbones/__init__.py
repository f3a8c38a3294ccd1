"""Diffusion networks by hub id, local folder or official checkpoint file."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ddae.backbones import adm, ddpm, dit, edm, generic, stable_diffusion
from ddae.backbones.base import Backbone, Block, Settings
from ddae.backbones.checkpoints import read_checkpoint, sidecars

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

FILES = (".json", ".safetensors", ".bin", ".txt", ".model")
"""What a model is made of: configuration, weights, vocabulary."""

SHIPPED = {"ddpm-fashion-mnist": Path(__file__).parents[1] / "assets" / "ddpm-fashion-mnist"}
"""Networks that come with the package."""


DEFAULT = Settings()


def load_backbone(name: str, settings: Settings = DEFAULT) -> Backbone:
    """name: in SHIPPED, a local diffusers folder, an official checkpoint file, or a hub id, `owner/model` or
    `owner/model@revision`.

    Raises ValueError where there is none, or where it is of no kind that is known.
    """
    path = local_path(name)
    try:
        if path.is_file():
            return load_official(path, settings)
        load = BACKBONES.get(model_class(path), generic.load)
        return load(path, fingerprint(path, settings), settings)
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"backbone={name!r} cannot be loaded: {first_line(error)}") from error


def load_official(path: Path, settings: Settings) -> Backbone:
    state = read_checkpoint(path)
    for tensor, from_state in OFFICIAL.items():
        if tensor in state:
            return from_state(state, path, fingerprint(path, settings), settings)
    raise ValueError(
        f"{path} holds no network that is known: it has none of the tensors {', '.join(OFFICIAL)}, by which the "
        f"codes of DDAE, EDM, DiT and guided diffusion are told; its first are {', '.join(list(state)[:3])}"
    )


def local_path(name: str) -> Path:
    """A shipped folder, the folder or file itself, or the snapshot that the hub's cache (HF_HOME) holds or fetches."""
    if name in SHIPPED:
        return SHIPPED[name]
    if Path(name).exists():
        return Path(name)
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(repo, revision=revision or None, allow_patterns=[f"*{suffix}" for suffix in FILES])
        )
    except Exception as error:  # the hub client raises a dozen classes; each means that the name leads nowhere
        raise ValueError(
            f"backbone={name!r} is neither a folder or file here nor a model that the hub gives ({first_line(error)}); "
            "give a diffusers folder, an official checkpoint, or `owner/model@revision`"
        ) from error


def model_class(folder: Path) -> str:
    """The diffusers class that model_index.json or config.json names."""
    for name in ("model_index.json", "config.json"):
        path = folder / name
        if path.exists():
            try:
                return str(json.loads(path.read_text())["_class_name"])
            except (ValueError, KeyError) as error:
                raise ValueError(f"{path} does not name a diffusers class (`_class_name`)") from error
    raise ValueError(f"{folder} is not a diffusers folder: it has neither model_index.json nor config.json")


def fingerprint(path: Path, settings: Settings) -> str:
    """sha256 over the names and bytes of configuration and weights, and over the settings that change features."""
    digest = hashlib.sha256()
    files = [path, *sidecars(path)] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in FILES)
    for file in files:
        digest.update((file.relative_to(path).as_posix() if path.is_dir() else file.suffix).encode())
        digest.update(file_digest(file))
    changed = settings.precision, settings.image_size, settings.num_steps
    if changed != (Settings.precision, Settings.image_size, Settings.num_steps):
        digest.update(repr(changed).encode())
    if settings.text_embedding:
        digest.update(file_digest(Path(settings.text_embedding)))
    return digest.hexdigest()


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


__all__ = ["BACKBONES", "OFFICIAL", "SHIPPED", "Backbone", "Block", "Settings", "fingerprint", "load_backbone"]
