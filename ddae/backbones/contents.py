"""Says what files and folders are that cannot be loaded as they are, and what to do instead."""

import logging
import re
import tarfile
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

logger = logging.getLogger("ddae")

CODE = "is {}; save the state_dict of its network as .safetensors with the code that wrote it"
LFS = b"version https://git-lfs"
FORMATS = {
    LFS: "is a pointer of Git LFS in place of the file; run `git lfs pull` where it was cloned, or fetch it again",
    b"<": "is a web page in place of the file; fetch it again, logged in if its site asks for that",
    b"GGUF": "is a GGUF file; give the diffusers folder of the same network, which is not quantised",
    b"\x89HDF": CODE.format("an HDF5 file"),
    b"{": "is JSON, not weights; give its folder",
    b"\x1f\x8b": "is an archive; unpack it, and give what is in it",
}
"""How files begin -> what they are, and what to do."""

ADAPTERS = re.compile(r"(^|[._])lora_(A|B|up|down|unet|te)|(^|\.)(hada|lokr)_")
QUANTISED = re.compile(
    r"\.(absmax|quant_map|quant_state\..*|SCB|qweight)$|(^|\.)(scale_weight|weight_scale\w*|scaled_fp8)$"
)
"""Tensors of LoRAs, and those without which quantised weights are no numbers."""

WEIGHT_FILES = ".safetensors", ".ckpt", ".pt", ".pth", ".pkl", ".bin", ".gguf", ".onnx", ".msgpack"
ADAPTER_FILES = re.compile(r"(adapter_model|pytorch_lora_weights|.*lora.*)\.(safetensors|bin)", re.IGNORECASE)
WHOLE = re.compile(r"(diffusion_)?(pytorch_)?model(-\d+-of-\d+)?(\.fp16)?\.(safetensors|bin)")
"""How diffusers and accelerate call the weights of a network whose options lie beside them."""
STATES = re.compile(r"(?i)(opt|scheduler|scaler|random_states|rng_state|training_args)")
"""How files of a training are called that hold no network."""

LORA = (
    "a LoRA, which changes another network and is none: fuse them with diffusers (`load_lora_weights`, `fuse_lora`, "
    "`unload_lora_weights`, `save_pretrained`) and give the folder"
)


def what_it_is(path: Path) -> str:
    """What a file is, as its first bytes tell, and what to do instead of giving it; "" if they tell nothing."""
    with suppress(OSError):
        with path.open("rb") as file:
            start = file.read(64)
        found = next((prefix for prefix in FORMATS if start.lstrip().startswith(prefix)), b"")
        if found and not (found == b"{" and path.suffix == ".json"):
            return FORMATS[found]
        if start[8:10] == b'{"' and path.suffix != ".safetensors":
            return "is a safetensors file by another name; call it .safetensors"
        if start[:2] == b"PK" and zipfile.is_zipfile(path):
            return what_a_zip_is(path)
        if tarfile.is_tarfile(path):
            return FORMATS[b"\x1f\x8b"]
    return ""


def what_a_zip_is(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith(("constants.pkl", ".json")) and "/code/" in "".join(names) for name in names):
        return CODE.format("a program of TorchScript")
    if any(name.endswith("data.pkl") for name in names):
        if any("archive_" in name or "/models/" in name for name in names):
            return CODE.format("a program of torch.export")
        return f"is what torch.save writes; call it {path.stem}.pt" if path.suffix == ".safetensors" else ""
    if any(name.endswith(".npy") for name in names):
        return CODE.format("an archive of NumPy")
    return FORMATS[b"\x1f\x8b"]


def what_is_in(folder: Path) -> str:
    """What a folder that is no diffusers folder holds, and what to give of it; "" if it holds nothing that is known."""
    pipelines = [path.parent for path in sorted(folder.glob("**/model_index.json"))]
    networks = [path.parent for path in sorted(folder.glob("*/config.json"))]
    files = [path for path in sorted(folder.iterdir()) if path.suffix in WEIGHT_FILES and path.is_file()]
    adapters = [path for path in files if ADAPTER_FILES.fullmatch(path.name)]
    files = [path for path in files if not STATES.match(path.name)]
    if pipelines or networks:
        found = pipelines or networks
        average = [path.name for path in found if "ema" in path.name.lower()]
        listed = " or ".join(map(str, found[:5]))
        return f"give {listed}, which it holds" + (f" ({average[0]} is the average)" if average else "")
    if adapters:
        return f"{adapters[0].name} is {LORA}"
    if whole := [path.name for path in files if WHOLE.fullmatch(path.name)]:
        return f"it holds {whole[0]}: put the config.json of its network beside it"
    if files:
        said = what_it_is(files[0])
        return f"it holds {', '.join(path.name for path in files[:5])}: {said or 'give the path of the file'}"
    return "" if any(folder.iterdir()) else "it is empty"


def check_numbers(named: Iterable[tuple[str, int, str]], where: Any) -> None:
    """Raises ValueError for weights that are no numbers as they stand: quantised ones, and LoRAs.

    named: name, number of dimensions and type of every tensor."""
    for name, num_dims, kind in named:
        if ADAPTERS.search(name):
            raise ValueError(f"{where} is or holds {LORA}; its tensor {name} shows it")
        whole = (
            num_dims > 1 and name.endswith("weight") and not re.match(r"(?i)b?f(loat)?\d", kind.replace("bfloat", "bf"))
        )
        if whole or QUANTISED.search(name):
            raise ValueError(
                f"{where} is quantised, as its tensor {name} ({kind}) shows; give the weights from before that, which "
                "are floating point numbers"
            )


def check_weights(files: Iterable[Path]) -> None:
    """Looks at the names and types in files of weights. Raises ValueError for what is something else than it is called,
    and like check_numbers."""
    for path in files:
        if said := what_it_is(path):
            raise ValueError(f"{path} {said}")
        named: list[tuple[str, int, str]] = []
        if path.suffix == ".bin":
            with suppress(Exception):  # of every class; what cannot be read is refused where it is loaded
                state = torch.load(path, map_location="meta", mmap=True, weights_only=True)
                named = [(name, each.ndim, str(each.dtype).removeprefix("torch.")) for name, each in state.items()]
        elif path.suffix == ".safetensors":
            with suppress(OSError, SafetensorError), safe_open(path, "pt") as tensors:
                slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
                named = [(n, len(each.get_shape()), each.get_dtype()) for n, each in slices.items()]
        check_numbers(named, path)


def check_not_zero(network: nn.Module) -> None:
    """Raises ValueError if all weights are zero throughout, as those of a file are that was never filled, and warns if
    many are."""
    weights = {name: tensor for name, tensor in network.state_dict().items() if tensor.ndim > 1}
    zero = [name for name, tensor in weights.items() if not tensor.any()]
    kind = type(network).__name__
    if zero and len(zero) == len(weights):
        raise ValueError(f"every weight of the {kind} is zero; fetch its file again, or train it")
    if len(zero) > len(weights) / 10:
        logger.warning(
            "%d of the %d weights of the %s are zero throughout, such as %s; was it trained, and is its file whole?",
            len(zero), len(weights), kind, zero[0],
        )  # fmt: skip


def averages_beside(path: Path) -> list[Path]:
    """The averages of a network's weights that OpenAI's codes keep in files of their own: ema_0.9999_010000.pt of
    model010000.pt."""
    step = re.fullmatch(r"model(\d+)\.pt", path.name)
    return sorted(path.parent.glob(f"ema_*_{step[1]}.pt")) if step else []
