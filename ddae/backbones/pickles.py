"""Reads files of weights without running anything that the files carry, and without more memory than they are long."""

import argparse
import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor

ZIP = b"PK\x03\x04"
"""The first bytes by which torch.load takes a file for a zip; other files may hold one further on."""

MOST = 100_000
"""Modules, dictionaries and members of a nested tuple that a file may have; published ones have thousands."""


def read_torch(path: Path) -> Any:
    """Reads what torch.save has written."""
    with path.open("rb") as file:
        scan(file, path.stat().st_size)
    with torch.serialization.safe_globals([argparse.Namespace, *((make, name) for name, make in INERT.items())]):
        return torch.load(path, map_location="cpu", weights_only=True)


def scan(file: BinaryIO, size: int) -> None:
    """Raises ValueError or UnpicklingError if torch.load would need more time or memory than a file of this many bytes
    should; the file is left at its start."""
    if file.read(4) == ZIP:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(record.file_size for record in archive.infolist())
            if unpacked > 2 * size + 10**6:
                raise ValueError(f"it unpacks to {unpacked} bytes, far more than it is long")
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    Scan(io.BytesIO(archive.read(name))).load()
    else:
        file.seek(0)
        for _ in range(5):  # a number, a version, the system, the object, and the keys of its storages
            Scan(file).load()
    file.seek(0)


def read_pickle(path: Path) -> Any:
    """Reads a plain pickle as NVlabs publishes them; modules become Inert objects that hold their tensors. What
    torch.save has written by such a name is read as that."""
    with path.open("rb") as file:
        if file.read(4) == ZIP:
            return read_torch(path)
        file.seek(0)
        data = WeightsUnpickler(file).load()
    return read_torch(path) if data == torch.serialization.MAGIC_NUMBER else data


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


def modules(module: Inert) -> Iterator[tuple[str, Inert]]:
    """Yields a pickled module and all inside it with their paths, as named_modules() would. Raises ValueError for one
    that holds itself, or endlessly many."""
    found = 0
    waiting: list[tuple[str, Inert]] = [("", module)]
    while waiting:
        path, inner = waiting.pop()
        yield path, inner
        found += 1
        if found > MOST or path.count(".") > 100:
            raise ValueError("its modules hold each other")
        children = inner.state["_modules"].items()
        waiting += [(f"{path}{name}.", child) for name, child in reversed(children) if child is not None]


def module_tensors(module: Inert) -> dict[str, Tensor]:
    """What state_dict() would return for the torch.nn.Module that this stands for."""
    return {
        path + name: tensor
        for path, inner in modules(module)
        for kind in ("_parameters", "_buffers")
        for name, tensor in inner.state[kind].items()
        if isinstance(tensor, Tensor)
    }


def module_attributes(module: Inert) -> dict[str, Any]:
    """The numbers and words that a pickled module and those inside it keep beside their tensors, by dotted names;
    `class_name` is the class of each."""
    said: dict[str, Any] = {}
    for path, inner in modules(module):
        said[f"{path}class_name"] = inner.name
        said |= {f"{path}{name}": value for name, value in inner.state.items() if is_plain(value)}
    return said


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a word, or a short list of these."""
    return isinstance(value, (bool, int, float, str)) or (
        isinstance(value, list) and len(value) < 10 and all(isinstance(each, (int, float, str)) for each in value)
    )


def load_storage(content: bytes) -> Any:
    """Does what torch.storage._load_from_bytes does, but loads nothing other than weights."""
    file = io.BytesIO(content)
    scan(file, len(content))
    return torch.load(file, map_location="cpu", weights_only=True)


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
    "numpy.core.multiarray._reconstruct": Inert,
    "numpy._core.multiarray._reconstruct": Inert,
    "numpy.ndarray": Inert,
    "_codecs.encode": Inert,
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


class BoundedUnpickler(pickle._Unpickler):
    """An unpickler whose time and memory grow with the length of the file: written in Python, it has no table that a
    number in the file makes huge, and it refuses tuples in tuples whose hash would take for ever."""

    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)

    stack: list

    def __init__(self, file: Any):
        super().__init__(file)
        self.weights: dict[int, tuple[tuple, int]] = {}

    def weigh(self) -> None:
        made = self.stack[-1]
        weight = 1 + sum(self.weights.get(id(member), ((), 0))[1] for member in made)
        if weight > MOST:
            raise pickle.UnpicklingError("its tuples hold each other")
        self.weights[id(made)] = made, weight  # kept, so that no other gets the same id


def weighed(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_and_weigh(unpickler: BoundedUnpickler) -> None:
        load(unpickler)
        unpickler.weigh()

    return load_and_weigh


for opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    BoundedUnpickler.dispatch[opcode[0]] = weighed(BoundedUnpickler.dispatch[opcode[0]])


class WeightsUnpickler(BoundedUnpickler):
    """Resolves the names in WEIGHTS and refuses all others, so that a pickle imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in WEIGHTS:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return WEIGHTS[f"{module}.{name}"]


class Nothing(Inert):
    """Stands for whatever Scan meets."""

    def append(self, member: Any) -> None: ...

    def add(self, member: Any) -> None: ...


def copied_bytes(*content: Any) -> Nothing:
    """Stands for bytearray, which torch would call, and which makes any number of bytes of a number."""
    if any(isinstance(each, int) for each in content):
        raise pickle.UnpicklingError("it asks for bytes that it does not hold")
    return Nothing()


class Scan(BoundedUnpickler):
    """Goes through a pickle and builds nothing of weight, before another unpickler, which is not bounded, reads it."""

    def find_class(self, module: str, name: str) -> Any:
        return copied_bytes if name == "bytearray" else Nothing

    def persistent_load(self, pid: Any) -> None:
        return None
