"""Passes through a network in which hooks see what its modules return."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.func import functional_call


@contextmanager
def hooked(modules: Mapping[str, nn.Module], keep: Callable[[str, Any], None]) -> Iterator[None]:
    """Calls keep(name, output) whenever one of the modules has run."""

    def hook_of(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            keep(name, output)

        return hook

    hooks = [module.register_forward_hook(hook_of(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def run_on_meta(network: nn.Module, inputs: dict[str, Any], args: tuple = ()) -> Any:
    """Runs a network on the meta device, where hooks see shapes and nothing is computed; what it keeps meanwhile goes
    with a copy that shares its tensors."""
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    twin = copy.deepcopy(network, {id(tensor): tensor for tensor in state.values()})
    on_meta = {name: tensor.to("meta") for name, tensor in state.items()}
    in_float32 = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in on_meta.items()}
    return functional_call(twin, in_float32, args, inputs)
