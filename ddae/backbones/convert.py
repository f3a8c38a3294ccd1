"""Converts official state dicts to those of the same network in diffusers."""

from collections.abc import Callable, Iterable

from torch import Tensor, nn

State = dict[str, Tensor]
Part = Callable[[State], State]
"""Converts the tensors of one official module to those of its counterpart, both by their names inside it."""


def convert(state: State, parts: Iterable[tuple[str, str, Part]]) -> State:
    """Converts a state dict part by part: (official module, diffusers module, conversion of its tensors).

    Raises ValueError for a part that is missing, and for a tensor that no part takes: a network that is not understood
    must not be half loaded.
    """
    left = dict(state)
    converted: State = {}
    for official, module, part in parts:
        names = [name for name in left if name.startswith(f"{official}.")]
        if not names:
            raise ValueError(f"the checkpoint has no {official}, which its other tensors call for")
        inside = {name.removeprefix(f"{official}."): left.pop(name) for name in names}
        converted |= {f"{module}.{name}": tensor for name, tensor in part(inside).items()}
    if left:
        raise ValueError(f"the checkpoint has {len(left)} tensors that its network should not have: {next(iter(left))}")
    return converted


def renamed(**modules: str) -> Part:
    """Makes a part that renames modules inside it, as in norm0="norm1"; two underscores mean a dot in an old name."""
    table = {old.replace("__", "."): new for old, new in modules.items()}

    def part(inside: State) -> State:
        converted = {}
        for name, tensor in inside.items():
            module, _, leaf = name.rpartition(".")
            if module not in table:
                raise ValueError(f"the checkpoint has {name} where only {', '.join(table)} are known")
            converted[f"{table[module]}.{leaf}"] = tensor
        return converted

    return part


def attention(norm: str, qkv: str, out: str, heads: int) -> Part:
    """Makes a part that converts an attention block, given the official names of its modules, to diffusers' Attention.

    qkv.weight is [heads * 3 * C / heads, C, ...]: each head has its query, key and value together. With heads = 1 all
    queries come first, then all keys and all values; with heads = C they alternate channel by channel.
    """
    rename = renamed(**{norm.replace(".", "__"): "group_norm", out.replace(".", "__"): "to_out.0"})

    def part(inside: State) -> State:
        rest = dict(inside)
        split = {leaf: rest.pop(f"{qkv}.{leaf}").unflatten(0, (heads, 3, -1)) for leaf in ("weight", "bias")}
        converted = rename(rest) | {
            f"to_{name}.{leaf}": tensor[:, i].flatten(0, 1)
            for leaf, tensor in split.items()
            for i, name in enumerate("qkv")
        }
        return {name: tensor if tensor.ndim < 2 else tensor.flatten(1) for name, tensor in converted.items()}

    return part


def unchanged(inside: State) -> State:
    return inside


def load_state(network: nn.Module, state: State) -> None:
    """Loads a state dict as float32. A network on the meta device takes the tensors themselves, on their device.

    Raises ValueError if a tensor is missing, left over or of another shape.
    """
    try:
        network.load_state_dict(
            {name: tensor.float() for name, tensor in state.items()}, assign=next(network.parameters()).is_meta
        )
    except RuntimeError as error:
        raise ValueError(
            f"the checkpoint does not fit its network: {str(error).strip().splitlines()[1].strip()}"
        ) from error
