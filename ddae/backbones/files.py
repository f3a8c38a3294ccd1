"""Where the files of a model lie, and which of them it is made of."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch

from ddae.nearest import did_you_mean

SHIPPED = {"ddpm-fashion-mnist": Path(__file__).parents[1] / "assets" / "ddpm-fashion-mnist"}
"""Networks that come with the package."""

CONFIGURATION = (".json", ".txt", ".model")
"""Options and vocabularies."""

WEIGHTS = (".safetensors", ".bin")
"""By precedence: repositories of the hub have the same tensors in several formats."""


def local_path(name: str) -> Path:
    """A shipped folder, the folder or file itself, or the snapshot that the hub's cache (HF_HOME) holds or fetches."""
    if name in SHIPPED:
        return SHIPPED[name]
    if Path(name).exists():
        return Path(name)
    try:
        return hub_snapshot(name)
    except Exception as error:  # the hub client raises a dozen classes; each means that the name leads nowhere
        raise ValueError(
            f"backbone={name!r} is neither a folder or file here nor a model that the hub gives ({first_line(error)}); "
            "give a diffusers folder, an official checkpoint, or `owner/model@revision`"
            f"{did_you_mean(name, SHIPPED)}"
        ) from error


def hub_snapshot(name: str) -> Path:
    """The folder of a hub id, with no more weights than features need: repositories have each in many formats."""
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    configuration = [f"*{suffix}" for suffix in CONFIGURATION]
    folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=configuration))
    for part, stem in parts(folder):
        for suffix in WEIGHTS:
            if not weights(folder, part, stem):
                patterns = [str(Path(part, file)) for file in (f"{stem}{suffix}", f"{stem}-*-of-*{suffix}")]
                snapshot_download(repo, revision=folder.name, allow_patterns=patterns)
    return folder


def parts(folder: Path) -> list[tuple[str, str]]:
    """(sub-folder, stem of its weights' files) of all that is loaded from a diffusers folder."""
    names = ["unet", "transformer", "vae"]
    if model_class(folder) == "StableDiffusionPipeline":
        names.append("text_encoder")
    found = [(name, "*model") for name in names if (folder / name / "config.json").exists()]
    return found + [("", "diffusion_pytorch_model")] * (folder / "config.json").exists()


def weights(folder: Path, part: str, stem: str) -> list[Path]:
    """The files of a part's weights in the one format that is read: without half-precision and other variants."""
    for suffix in WEIGHTS:
        patterns = f"{stem}{suffix}", f"{stem}-*-of-*{suffix}"
        if files := sorted(file for pattern in patterns for file in (folder / part).glob(pattern)):
            return files
    return []


def read_json(path: Path) -> dict[str, Any]:
    """A configuration of diffusers."""
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); mend it, or fetch it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must be a mapping of options to values, not {type(config).__name__}")
    return config


def load_network(network_class: Any, folder: Path) -> Any:
    """A diffusers model in float32. Raises ValueError where a weight is missing; diffusers itself would warn of it, and
    leave it as memory happens to be."""
    from diffusers.utils.logging import set_verbosity_error

    set_verbosity_error()
    try:
        network, found = network_class.from_pretrained(
            folder,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            use_safetensors=any(file.suffix == WEIGHTS[0] for file in weights(folder, "", "diffusion_pytorch_model")),
            output_loading_info=True,
        )
    except Exception as error:  # diffusers passes on errors of every class
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{folder} cannot be loaded as a {network_class.__name__} ({type(error).__name__}: {reason}); "
            "look at its files, or fetch them again"
        ) from error
    check_whole(found, folder)
    return network


def check_whole(found: dict[str, Any], folder: Path) -> None:
    """found: what from_pretrained tells with output_loading_info. Warns of weights that nothing calls for, because
    repositories have had some that did no harm."""
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"{folder} lacks {len(missing)} weights that its config.json calls for, such as {missing[0]}; give the "
            "weights and the config.json that belong together"
        )
    if unexpected := sorted(found["unexpected_keys"]):
        logging.getLogger("ddae").warning(
            "%s has %d weights that its config.json does not call for, such as %s; they are left out",
            folder, len(unexpected), unexpected[0],
        )  # fmt: skip


def model_class(folder: Path) -> str:
    """The diffusers class that model_index.json or config.json names."""
    for name in ("model_index.json", "config.json"):
        path = folder / name
        if path.exists():
            try:
                return str(json.loads(path.read_text())["_class_name"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} does not name a diffusers class (`_class_name`)") from error
    raise ValueError(f"{folder} is not a diffusers folder: it has neither model_index.json nor config.json")


def model_files(folder: Path) -> list[Path]:
    """All that decides what a diffusers folder computes."""
    configuration = [file for file in folder.rglob("*") if file.suffix in CONFIGURATION]
    return sorted(configuration + [file for part in parts(folder) for file in weights(folder, *part)])


def file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
