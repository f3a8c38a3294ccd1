"""Reads the tensors in official checkpoint files without running anything that the files carry."""

import argparse
import io
import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

NETWORKS = ("ema", "EMA", "state_dict", "model", "MODEL", "net")
"""Keys under which training codes keep their networks; moving averages come before the networks that are trained."""

PREFIXES = {"ema_model.": any, "nn_model.": any, "module.": all, "_orig_mod.": all, "model.": all}
"""Prefixes of modules that wrap a network, and whether any or all tensors must have them: ema_pytorch and the DDAE code
keep other tensors beside the network's."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Reads the state dict of the network in a .safetensors, .pt, .pth, .ckpt or .pkl file, or of its moving average.

    Raises ValueError for files that are damaged, hostile or hold no network.
    """
    try:
        network = find_network(READERS.get(path.suffix, read_torch)(path))
        state = state_dict(network)
    except Exception as error:  # damaged and hostile files raise errors of every class
        if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"{path} asks for {refused[1]}, which no tensor needs; nothing of it was run. If you trust it, "
                "save the state_dict of its network as .safetensors with the code that wrote it"
            ) from error
        raise ValueError(
            f"{path} is damaged, cut short or of another format than {', '.join(READERS)} ({type(error).__name__})"
        ) from error
    if isinstance(network, Inert) and network.name.endswith("Precond") and network.name != "EDMPrecond":
        raise ValueError(f"{path} holds {network.name}; of NVlabs' networks only EDMPrecond is supported")
    if not state:
        raise ValueError(f"{path} holds no tensors by name, as a state dict does")
    return state


def sidecars(path: Path) -> list[Path]:
    """The files beside a checkpoint that say what its tensors do not: <name>.json, .yaml or .yml, whichever exist."""
    return [other for suffix in (".json", ".yaml", ".yml") if (other := path.with_suffix(suffix)).is_file()]


def read_options(path: Path) -> dict[str, Any]:
    """Reads the official code's options, by their own names, from the sidecar of a checkpoint; empty if it has none."""
    for sidecar in sidecars(path):
        # YAML is not asked to read JSON: it takes 1e-05 for a word
        parse = json.loads if sidecar.suffix == ".json" else yaml.safe_load
        try:
            options = parse(sidecar.read_text())
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{sidecar} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(options, dict):
            raise ValueError(f"{sidecar} must be a mapping of options to values, not {type(options).__name__}")
        return options
    return {}


def find_network(data: Any) -> Any:
    """Finds the module or state dict among everything that training codes save."""
    inside = [data[key] for key in NETWORKS if isinstance(data.get(key), dict)] if isinstance(data, dict) else []
    return find_network(inside[0]) if inside else data


def state_dict(network: Any) -> dict[str, Tensor]:
    """The tensors of a network by their names in the innermost module, without the prefixes of wrappers."""
    named = dict(module_tensors(network) if isinstance(network, Inert) else network)
    state = {str(name): tensor.detach() for name, tensor in named.items() if isinstance(tensor, Tensor)}
    while prefix := next((p for p, how in PREFIXES.items() if state and how(name.startswith(p) for name in state)), ""):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if isinstance(network, Inert) and "sigma_data" in network.state:
        state["sigma_data"] = torch.tensor(network.state["sigma_data"])  # EDM keeps it beside the tensors
    return state


def read_torch(path: Path) -> Any:
    """Reads what torch.save has written."""
    with torch.serialization.safe_globals([argparse.Namespace, *((make, name) for name, make in INERT.items())]):
        return torch.load(path, map_location="cpu", weights_only=True)


def read_pickle(path: Path) -> Any:
    """Reads a plain pickle as NVlabs publishes them; modules become Inert objects that hold their tensors."""
    with path.open("rb") as file:
        return WeightsUnpickler(file).load()


READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": load_file,
    ".pt": read_torch,
    ".pth": read_torch,
    ".ckpt": read_torch,
    ".pkl": read_pickle,
}


class Inert(dict):
    """Stands for an object of any class; it keeps the state that the object would have got, and runs nothing."""

    name = ""
    state: Any

    def __init__(self, *args: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state


def persistent(meta: dict[str, Any]) -> Inert:
    """Stands for an object of NVlabs' torch_utils.persistence, which carries the source of its class; the source is not
    run."""
    module = Inert()
    module.name, module.state = meta["class_name"], meta["state"]
    return module


def module_tensors(module: Inert, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields what state_dict() would return for the torch.nn.Module that this stands for."""
    for kind in ("_parameters", "_buffers"):
        yield from ((prefix + name, tensor) for name, tensor in module.state[kind].items() if tensor is not None)
    for name, child in module.state["_modules"].items():
        if child is not None:
            yield from module_tensors(child, f"{prefix}{name}.")


def load_storage(content: bytes) -> Any:
    """Does what torch.storage._load_from_bytes does, but loads nothing other than weights."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def rebuild_tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *unused: Any) -> Tensor:
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())


def rebuild_parameter(tensor: Tensor, *unused: Any) -> Tensor:
    return tensor


INERT: dict[str, Any] = {
    "torch_utils.persistence._reconstruct_persistent_obj": persistent,
    "torch.nn.modules.container.ModuleDict": Inert,
    "torch.nn.modules.container.ModuleList": Inert,
    "torch.nn.modules.container.Sequential": Inert,
    "dnnlib.util.EasyDict": Inert,
    "numpy.dtype": Inert,
    "numpy.core.multiarray.scalar": Inert,
    "numpy._core.multiarray.scalar": Inert,
}
"""Names in NVlabs' files that are no tensors, with what stands for them."""

WEIGHTS: dict[str, Any] = {
    **INERT,
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "torch.storage._load_from_bytes": load_storage,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": rebuild_parameter,
}
"""All names that a plain pickle may use; none of them imports, opens or runs anything."""


class WeightsUnpickler(pickle.Unpickler):
    """Resolves the names in WEIGHTS and refuses all others, so that a pickle imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in WEIGHTS:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return WEIGHTS[f"{module}.{name}"]
