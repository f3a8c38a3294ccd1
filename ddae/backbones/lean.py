"""Import one class of diffusers without the two hundred beside it, whose import takes seconds in every process that
loads a network.

diffusers.models.unets and .transformers import all of their models, and what these need, as soon as one is asked for.
diffusers imports torch._dynamo, which is PyTorch's compiler, to mark classes for it, and does without where there is
none; a network that is moved imports it to see whether it is offloaded, and PyTorch's counter of operations to be
hidden from it. A scheduler is made after a look at all others that take its file.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

PACKAGES = "diffusers.models.transformers", "diffusers.models.unets"
COMPILER = "torch._dynamo"


class OnDemand(ModuleType):
    """A package whose modules can be imported, and whose own code runs when a name is asked of it that it lacks."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__ and self.__spec__.loader
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def import_diffusers(compiles: bool = False) -> None:
    """Have diffusers import what is asked of it alone. What is imported already stays as it is. compiles: whether
    torch.compile will see its classes."""
    if compiles:
        importlib.import_module(COMPILER)
    if "diffusers" not in sys.modules:
        with _without_compiler():
            importlib.import_module("diffusers")
    for name in PACKAGES:
        if name not in sys.modules and (spec := importlib.util.find_spec(name)):
            package = OnDemand(name)
            package.__spec__, package.__path__ = spec, spec.submodule_search_locations  # type: ignore[assignment]
            package.__package__, package.__file__ = name, spec.origin
            sys.modules[name] = package


def make_scheduler(kind: Any, config: Mapping[str, Any]) -> Any:
    """A scheduler of a class of diffusers from its configuration. Which options are for other classes alone is not
    looked up, because it only silences a warning."""
    with patch.object(kind, "has_compatibles", False):
        return kind.from_config(config)


def move(network: nn.Module, **where: Any) -> None:
    """Do what network.to does for one that diffusers does not offload."""
    nn.Module.to(network, **where)


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Counts the floating-point operations of the block. PyTorch hides the functions that it calls then from the
    compiler; where that is not imported there is nothing to hide them from."""
    if COMPILER not in sys.modules:
        sys.modules[COMPILER] = _StandIn(COMPILER)
    try:
        with FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        if isinstance(sys.modules.get(COMPILER), _StandIn):
            del sys.modules[COMPILER]


class _StandIn(ModuleType):
    """Hides nothing from the compiler, and is replaced by it where anything else is asked of it."""

    def disable(self, function: Callable, *args: object, **options: object) -> Callable:
        return function

    def __getattr__(self, name: str) -> Any:
        if sys.modules[COMPILER] is self:
            del sys.modules[COMPILER]
        return getattr(importlib.import_module(COMPILER), name)


@contextmanager
def _without_compiler() -> Iterator[None]:
    """In the block torch._dynamo cannot be imported, unless it is already."""
    is_new = COMPILER not in sys.modules
    if is_new:
        sys.modules[COMPILER] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if is_new:
            del sys.modules[COMPILER]
