"""Keeps the weights of a network in CPU memory; hooks of diffusers move each layer to the device while it runs."""

from collections.abc import Collection
from itertools import chain

import torch
from torch import Tensor, nn

from ddae.units import size

HOOKED = "forward", "_diffusers_hook"
"""What the hooks leave on a module."""


def offload(network: nn.Module, device: str, called: Collection[str], folder: str = "") -> None:
    """Leaves the weights where they are, and has layers run on the device.

    called: paths of the modules whose forward pass runs; the weights of others, which their parents use, stay on the
    device. folder: where weights are kept instead of in memory, if given."""
    from diffusers.hooks import apply_group_offloading

    stay = [(each, each.data) for name, module in network.named_modules() if name not in called for each in own(module)]
    where = {"offload_type": "leaf_level", "offload_to_disk_path": folder or None}
    apply_group_offloading(network, torch.device(device), **where)
    for each, data in stay:
        each.data = data.to(device)


def onload(network: nn.Module) -> None:
    """Takes the hooks away, and leaves all weights in CPU memory."""
    for module in network.modules():
        for name in HOOKED:
            module.__dict__.pop(name, None)
    network.to("cpu")


def own(module: nn.Module) -> list[Tensor]:
    """The parameters and buffers of a module without those of the modules in it."""
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def size_bytes(module: nn.Module) -> int:
    """The bytes of its parameters and buffers."""
    return sum(each.nbytes for each in chain(module.parameters(), module.buffers()))


def largest_layer_bytes(network: nn.Module) -> int:
    """The bytes of the layer that is largest, without the layers in it."""
    return max(sum(each.nbytes for each in own(module)) for module in network.modules())


def check_room(network: nn.Module, device: str) -> None:
    """Raises ValueError if a GPU has less memory free than the network's weights take."""
    if device.startswith("cuda"):
        needed, free = size_bytes(network), torch.cuda.mem_get_info(device)[0]
        if needed > free:
            raise ValueError(
                f"the weights of the {type(network).__name__} take {size(needed)}, and {device} has {size(free)} free; "
                "--offload keeps them in CPU memory"
            )
