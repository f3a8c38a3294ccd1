"""Finds the blocks of a network that is known by its module tree alone, and arranges what they return as maps."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from ddae.backbones.base import BlockSpec, first_map, token_grid
from ddae.backbones.hooks import hooked, run_on_meta

LISTS = nn.Sequential, nn.ModuleList


def find_blocks(network: nn.Module, inputs: dict[str, Any], named: Iterable[str] = ()) -> tuple[BlockSpec, ...]:
    """Finds the modules that return a map or a grid of tokens, in the order in which they run, by a pass of one image
    on the meta device. It looks at the modules that block_paths finds and at those that the library has `named`. If two
    of them return the same output (a stage and the last block in it), the library's name becomes the alias."""
    searched = set(block_paths(network))
    outputs: dict[str, Tensor] = {}

    def keep(path: str, output: Any) -> None:
        map = first_map(output) if isinstance(output, tuple) else output
        if is_map(map):
            outputs.setdefault(path, map)

    with hooked({path: network.get_submodule(path) for path in searched.union(named)}, keep):
        run_on_meta(network, inputs)

    aliases: dict[str, str] = {}
    for path in outputs.keys() - searched:
        twins = [other for other in outputs if other in searched and outputs[other] is outputs[path]]
        aliases |= {twins[0]: path} if twins else {path: ""}
    names = [path for path in outputs if path in searched or path in aliases]
    return tuple(BlockSpec(path, index, path, aliases.get(path, "")) for index, path in enumerate(names))


def block_paths(module: nn.Module, path: str = "") -> Iterator[str]:
    """Yields the outermost modules that have modules in them, but of lists of such modules the items. Of a flat list of
    convolutions, like VGG's, it yields the last module before each next convolution."""
    for name, child in module.named_children():
        inside, items = f"{path}{name}", list(child.named_children())
        starts = [i for i, (_, item) in enumerate(items) if isinstance(item, nn.Conv2d)]
        if is_stage(child):
            yield from block_paths(child, f"{inside}.")
        elif isinstance(child, LISTS) and len(starts) > 1:
            yield from (f"{inside}.{items[end - 1][0]}" for end in [*starts[1:], len(items)])
        elif items:
            yield inside


def is_stage(module: nn.Module) -> bool:
    """Whether a module is a list of blocks, or has one beside other modules."""
    if isinstance(module, LISTS):
        return depth(module) > 1
    lists = [child for child in module.children() if isinstance(child, LISTS) and depth(child) > 2]
    return any(len({type(item) for item in items}) == 1 for items in lists)


def depth(module: nn.Module) -> int:
    """How deeply modules are nested in it: 0 if it has none."""
    return max((1 + depth(child) for child in module.children()), default=0)


def is_map(output: Any) -> bool:
    """Whether it is tokens or a square map of the one image that went in."""
    if not isinstance(output, Tensor) or len(output) != 1:
        return False
    return output.ndim == 3 or (output.ndim == 4 and (output.shape[2] == output.shape[3] or is_channels_last(output)))


def is_channels_last(output: Tensor) -> bool:
    return output.shape[1] == output.shape[2] != output.shape[3]


def to_map(output: Any, num_prefix_tokens: int = 0) -> Tensor:
    """Arranges what a block returns as a map [N, C, S, S]. Class and register tokens, which stand first, are left out:
    num_prefix_tokens of them, or, if the others would not be a square, as many as leave the largest square."""
    map = first_map(output)
    if map.ndim == 3:
        num_patches = map.shape[1] - num_prefix_tokens
        if num_patches < 1 or math.isqrt(num_patches) ** 2 != num_patches:
            num_patches = math.isqrt(map.shape[1]) ** 2
        return token_grid(map[:, map.shape[1] - num_patches :])
    return map.permute(0, 3, 1, 2) if is_channels_last(map) else map
