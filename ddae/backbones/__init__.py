"""Diffusion networks by hub id or local folder."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from ddae.backbones import ddpm
from ddae.backbones.base import Backbone, Block

BACKBONES: dict[str, Callable[[Path, str, str], Backbone]] = {
    "DDPMPipeline": ddpm.load,
    "DDIMPipeline": ddpm.load,
    "UNet2DModel": ddpm.load,
}
"""The class that a diffusers folder names -> (folder, fingerprint, device) -> Backbone."""

FILES = (".json", ".safetensors", ".bin")
"""What a model is made of: configuration and weights."""

SHIPPED = {"ddpm-fashion-mnist": Path(__file__).parents[1] / "assets" / "ddpm-fashion-mnist"}
"""Networks that come with the package."""


def load_backbone(name: str, device: str = "cpu") -> Backbone:
    """name: in SHIPPED, a local diffusers folder, or a hub id, `owner/model` or `owner/model@revision`.

    Raises ValueError where there is none, or where its class is not in BACKBONES.
    """
    folder = local_folder(name)
    family = model_class(folder)
    if family not in BACKBONES:
        raise ValueError(f"backbone={name!r} is a {family}; supported: {', '.join(BACKBONES)}")
    try:
        return BACKBONES[family](folder, weights_fingerprint(folder), device)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"backbone={name!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def local_folder(name: str) -> Path:
    """A shipped folder, the folder itself, or the snapshot that the hub's cache (HF_HOME) holds or fetches."""
    if name in SHIPPED:
        return SHIPPED[name]
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(repo, revision=revision or None, allow_patterns=[f"*{suffix}" for suffix in FILES])
        )
    except Exception as error:  # the hub client raises a dozen classes; each means that the name leads nowhere
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"backbone={name!r} is neither a folder here nor a model that the hub gives ({reason}); "
            "give a diffusers folder or `owner/model@revision`"
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


def weights_fingerprint(folder: Path) -> str:
    """sha256 over the names and bytes of the configuration and weight files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in FILES):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


__all__ = ["BACKBONES", "SHIPPED", "Backbone", "Block", "load_backbone", "weights_fingerprint"]
