"""Files as NVlabs' codes write them: pickles of modules that carry the source of their classes."""

import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch


def _reconstruct_persistent_obj(meta: dict) -> None:
    """Pickled by its name: what NVlabs' torch_utils.persistence has by that name runs meta["module_src"]."""
    raise AssertionError("a checkpoint's code was about to run")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


class Persistent:
    """Pickled as NVlabs' torch_utils.persistence does it."""

    def __init__(self, class_name: str, state: dict, module_src: str = ""):
        self.meta = {"type": "class", "version": 6, "module_src": module_src, "class_name": class_name, "state": state}

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta,)


def nvlabs_module(state: dict[str, torch.Tensor], class_name: str, module_src: str = "", **attributes: Any) -> Any:
    """The module that a state dict is of, as it is pickled: persistent, but for ModuleDicts."""
    inside: dict[str, dict[str, torch.Tensor]] = {}
    own = {"_parameters": OrderedDict(), "_buffers": OrderedDict(), "_modules": OrderedDict()}
    for name, tensor in state.items():
        module, _, rest = name.partition(".")
        if rest:
            inside.setdefault(module, {})[rest] = tensor
        elif name in ("resample_filter", "freqs", "phases"):
            own["_buffers"][name] = tensor
        else:
            own["_parameters"][name] = torch.nn.Parameter(tensor)
    for name, tensors in inside.items():
        own["_modules"][name] = nvlabs_module(tensors, name, module_src, skip_scale=np.sqrt(0.5))
    if class_name not in ("enc", "dec"):
        return Persistent(class_name, {**own, "_non_persistent_buffers_set": set(), **attributes}, module_src)
    container = torch.nn.ModuleDict()
    container._modules = own["_modules"]
    return container


def nvlabs_save(path: Path, data: Any) -> None:
    """A .pkl, or a .pt as torch.save has it; persistent objects name a module that is there while they are written."""
    package, persistence = ModuleType("torch_utils"), ModuleType("torch_utils.persistence")
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    with patch.dict(sys.modules, {module.__name__: module for module in (package, persistence)}):
        if path.suffix == ".pkl":
            path.write_bytes(pickle.dumps(data))
        else:
            torch.save(data, path)


def edm_snapshot(
    path: Path, state: dict[str, torch.Tensor], class_name: str = "EDMPrecond", module_src: str = "", **attributes: Any
) -> None:
    """What EDM's training code publishes of a network."""
    wrapped = {f"model.{name}": tensor for name, tensor in state.items()}
    network = nvlabs_module(wrapped, class_name, module_src, **attributes)
    nvlabs_save(path, {"ema": network, "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2}, module_src)})
