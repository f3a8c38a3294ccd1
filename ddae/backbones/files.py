"""Finds the files of a model, here or on the hub, and loads networks of diffusers from them."""

import hashlib
import inspect
import itertools
import json
import logging
import shlex
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ddae.backbones.contents import WEIGHT_FILES, check_weights, what_is_in, what_it_is
from ddae.nearest import did_you_mean

SHIPPED = {"ddpm-fashion-mnist": Path(__file__).parents[1] / "assets" / "ddpm-fashion-mnist"}
"""Networks that come with the package."""

CONFIGURATION = (".json", ".txt", ".model")
"""Suffixes of options and vocabularies."""

VARIANTS = "fp16", "bf16"
"""Half-precision variants of weights, as their files are called."""

WEIGHTS = (".safetensors", ".bin")
"""Suffixes of weights; the first that exists is read, because repositories keep the same tensors in several formats."""


def local_path(name: str) -> Path:
    """Finds a model: a shipped folder, a folder or file here, or the hub's snapshot, which is kept in HF_HOME.

    Raises ValueError if the name leads nowhere.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    if Path(name).exists():
        return Path(name)
    if Path(name).is_symlink():
        raise ValueError(f"backbone={name!r} is a link to {Path(name).readlink()}, which is not there")
    if Path(name).is_absolute():
        raise ValueError(
            f"backbone={name!r} is neither a folder or file here nor a model that the hub gives; if it was moved, put "
            f"a link to it there: ln -s THERE {shlex.quote(name)}"
        )
    try:
        return hub_snapshot(name)
    except Exception as error:  # the hub client raises a dozen classes; each means that the name leads nowhere
        raise ValueError(
            f"backbone={name!r} is neither a folder or file here nor a model that the hub gives ({first_line(error)}); "
            "give a diffusers folder, an official checkpoint, or `owner/model@revision`"
            f"{did_you_mean(name, SHIPPED)}"
        ) from error


def hub_snapshot(name: str, parts: Callable[[Path], list[tuple[str, str]]] | None = None) -> Path:
    """The folder of a hub id, `owner/model[@revision]`, with its configuration and the weights of its `parts` (those of
    a diffusers folder if not given), each in one format."""
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    configuration = [f"*{suffix}" for suffix in CONFIGURATION]
    folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=configuration))
    for part, stem in (parts or diffusers_parts)(folder):
        for infix, suffix in itertools.product(("", *VARIANTS), WEIGHTS):
            if not weights(folder, part, stem):
                patterns = [str(Path(part, file)) for file in names_of(stem, infix, suffix)]
                snapshot_download(repo, revision=folder.name, allow_patterns=patterns)
    return folder


def subfolder(folder: Path, *names: str) -> Path:
    """The first of these sub-folders that exists, or the folder itself: a pipeline has a sub-folder for each network,
    and a network that was saved alone has none."""
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def diffusers_parts(folder: Path) -> list[tuple[str, str]]:
    """(sub-folder, stem of its weight files) for every network that is loaded from a diffusers folder."""
    names = ["unet", "transformer", "decoder", "prior", "vae", "movq", "vqvae"]
    names += sorted(path.name for path in folder.glob("*_encoder*") if path.is_dir())
    found = [(name, "*model") for name in names if (folder / name / "config.json").exists()]
    return found + [("", "diffusion_pytorch_model")] * (folder / "config.json").exists()


def weights(folder: Path, part: str, stem: str) -> list[Path]:
    """The weight files of a part in the format that is read: without a variant, or in half precision where there is
    nothing else."""
    for infix in ("", *VARIANTS):
        for suffix in WEIGHTS:
            patterns = names_of(stem, infix, suffix)
            if files := sorted(file for pattern in patterns for file in (folder / part).glob(pattern)):
                return files
    return []


def names_of(stem: str, infix: str, suffix: str) -> list[str]:
    """How the files of a variant are called: whole, or in parts, as diffusers numbers them now and did before."""
    if not infix:
        return [f"{stem}{suffix}", f"{stem}-*-of-*{suffix}"]
    return [f"{stem}.{infix}{suffix}", f"{stem}.{infix}-*-of-*{suffix}", f"{stem}-*-of-*.{infix}{suffix}"]


def variant(files: list[Path]) -> str | None:
    """The variant that these weight files are, in their names."""
    return next((infix for infix in VARIANTS if files and f".{infix}" in files[0].name), None)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a configuration. Raises ValueError if it is not a JSON mapping."""
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        said = what_it_is(path) or f"is not JSON ({error}); mend it, or fetch it again"
        raise ValueError(f"{path} {said}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must be a mapping of options to values, not {type(config).__name__}")
    return config


def check_files(folder: Path, stem: str) -> dict[str, Any]:
    """The options of a network. Raises ValueError if they are no mapping, or if there are no weights of it."""
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    if "quantization_config" in config:
        method = config["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else method
        raise ValueError(f"{folder} is quantised ({method}); give the same network before that was done")
    if not (files := weights(folder, "", stem)):
        names = [name for suffix in WEIGHTS for name in names_of(stem, "", suffix)]
        others = ", ".join(path.name for path in sorted(folder.glob("*")) if path.suffix in WEIGHT_FILES)
        raise ValueError(
            f"{folder} has no weights; looked for {', '.join(names)}, and their {' and '.join(VARIANTS)} variants: "
            f"fetch them{f'; {others} is not read' if others else ''}"
        )
    check_weights(files)
    return config


def load_network(network_class: Any, folder: Path, precision: str = "float32") -> Any:
    """Loads a diffusers model: weights that are stored in the half precision that the network is run in stay in it, but
    for its norms; all others become float32.

    Raises ValueError if a weight is missing; diffusers itself would only warn, and leave it uninitialised.
    """
    config = check_files(folder, "diffusion_pytorch_model")
    files = weights(folder, "", "diffusion_pytorch_model")
    safe = any(file.suffix == WEIGHTS[0] for file in files)
    options = {"dtype": dtype_of(files, precision), "use_safetensors": safe, "variant": variant(files)}
    if isinstance(size := config.get("sample_size"), list) and len(set(map(str, size))) == 1:
        options["sample_size"] = size[0]  # not every constructor takes a list
    try:
        with quiet():
            network, found = network_class.from_pretrained(folder, output_loading_info=True, **options)
    except Exception as error:  # diffusers passes on errors of every class
        reason = " ".join(str(error).split()).split(" If you want")[0][:300]
        raise ValueError(
            f"{folder} cannot be loaded as a {network_class.__name__} ({type(error).__name__}: {reason}); "
            "look at its files, or fetch them again"
        ) from error
    check_whole(found, folder)
    known = [*inspect.signature(network_class.__init__).parameters, "null_class"]
    if unknown := [f"{n}={v!r}" for n, v in config.items() if v and n[0] != "_" and n not in known]:
        logging.getLogger("ddae").warning(
            "%s/config.json says %s, which %s does not know; it is run without", folder, ", ".join(unknown),
            network_class.__name__,
        )  # fmt: skip
    for module in network.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.float()
    return network


def dtype_of(files: list[Path], precision: str) -> torch.dtype:
    """The precision if the first tensor in files of weights is stored in it, and otherwise float32."""
    with suppress(OSError, SafetensorError, ValueError, IndexError), safe_open(files[0], "pt") as tensors:
        first, *_ = tensors.keys()
        if (dtype := tensors.get_tensor(first).dtype) == getattr(torch, precision):
            return dtype
    return torch.float32


@contextmanager
def quiet() -> Iterator[None]:
    """Loads without the progress bars and notes of diffusers and transformers."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def load_pretrained(model_class: Any, folder: Path, optional: str = "", **options: Any) -> Any:
    """Loads a network of transformers in float32, without a progress bar. A module named `optional` becomes None if it
    has no weights, which transformers would draw at random.

    Raises ValueError if any other weight is missing.
    """
    with quiet():
        network, found = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    missing = found["missing_keys"]
    if optional and any(name.startswith(f"{optional}.") for name in missing):
        setattr(network, optional, None)
        found["missing_keys"] = {name for name in missing if not name.startswith(f"{optional}.")}
    check_whole(found, folder)
    return network.eval()


def check_whole(found: dict[str, Any], folder: Path) -> None:
    """Checks what from_pretrained returns with output_loading_info: raises ValueError for missing weights, and warns of
    superfluous ones, because some repositories have those and they do no harm."""
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
    """The diffusers class that model_index.json or config.json names. Raises ValueError if neither names one."""
    for name in ("model_index.json", "config.json"):
        path = folder / name
        if path.exists():
            named = read_json(path).get("_class_name")
            if isinstance(named, list) and named and name == "model_index.json":  # a file of its own, and a class in it
                named = named[-1]
            if named is None and (library := library_of(read_json(path))):
                raise ValueError(f"{folder} is a model of {library}; give it as {library}:{folder}")
            if not isinstance(named, str):
                raise ValueError(f"{path} does not name a diffusers class: _class_name={named!r}")
            return named
    inside = what_is_in(folder) if folder.is_dir() else ""
    raise ValueError(
        f"{folder} is not a diffusers folder: it has neither model_index.json nor config.json{inside and f'; {inside}'}"
    )


def library_of(config: dict[str, Any]) -> str:
    """The library of classifiers that writes such a configuration, or ""."""
    return "transformers" if "model_type" in config else "timm" if "pretrained_cfg" in config else ""


def model_files(folder: Path) -> list[Path]:
    """All files that decide what a diffusers folder computes: configuration and weights."""
    configuration = [file for file in folder.rglob("*") if file.suffix in CONFIGURATION]
    return sorted(configuration + [file for part in diffusers_parts(folder) for file in weights(folder, *part)])


def file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
