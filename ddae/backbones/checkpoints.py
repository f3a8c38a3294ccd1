"""Finds the network, or the average of its weights, in what training codes save, and reads the options beside it."""

import logging
import re
from argparse import Namespace
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddae.backbones.contents import check_numbers, what_it_is
from ddae.backbones.options import read_options
from ddae.backbones.pickles import MOST, READERS, Inert, module_attributes, module_tensors, read_torch
from ddae.nearest import did_you_mean

logger = logging.getLogger("ddae")

Keys = tuple[str, ...]
State = dict[str, Tensor]

AVERAGE = re.compile(
    r"(?i)(^|[._-])(ema|emas|averaged?|shadow|swa|polyak)(?![a-z])"
    r"|^(model|net|network|params|weights)_avg|^avg_(model|net|network|params|weights|state)"
)
"""Keys under which codes keep a moving average of the weights: ema, model_ema, ema_0.9999, shadow_params, ..."""

WRAPPERS = re.compile(
    r"module|_orig_mod|_forward_module|model|net|network|inner_model|base_model|nn_model|online_model|diffusion_model"
    r"|score_model|eps_model|denoise_fn|denoiser|backbone|unet"
)
"""Modules that hold a network and have its tensors under their own name."""

INSIDE = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Wrappers of modules inside a network, which its names do not have."""

OTHERS = re.compile(
    r"(?i)(opt|optim|optimizer|lr_scheduler|scheduler|scaler|callback|discriminator|teacher|first_stage|cond_stage)(s|_.*)?"
    r"|vae|augpipe|text_encoder|loss|loss_fn|lpips|metrics?"
)
"""Keys of what is kept beside a network and is not one that is looked for."""

ARGUMENTS = ("args", "hyper_parameters", "config", "cfg")
"""Keys under which training codes keep the options that a network was made with."""


@dataclass(frozen=True)
class Checkpoint:
    """The network that was chosen from a file."""

    state: State
    said: dict[str, Any] = field(default_factory=dict)
    """What the file says beside its tensors: the arguments of the training script, or the attributes of a pickled
    module and of those inside it, by dotted names."""
    beside: tuple[str, ...] = ()
    """Keys of what else is in the file."""


def read_checkpoint(path: Path) -> State:
    """Reads the state dict of the network in a .safetensors, .pt, .pth, .ckpt or .pkl file, or of its moving average.

    Raises ValueError for files that are damaged, hostile, or hold no network or several.
    """
    return open_checkpoint(path).state


def open_checkpoint(path: Path, known: Collection[str] = ()) -> Checkpoint:
    """Like read_checkpoint, with what the file says beside the tensors. known: names of tensors by which networks are
    recognised, whatever modules wrap them. `network` in the sidecar may name one of several networks."""
    try:
        found = Found(READERS.get(path.suffix, read_torch)(path), known)
        check_sizes(found, path)
    except Exception as error:  # damaged and hostile files raise errors of every class
        if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"{path} asks for {refused[1]}, which no tensor needs; nothing of it was run. If you trust it, "
                "save the state_dict of its network as .safetensors with the code that wrote it"
            ) from error
        if said := what_it_is(path):
            raise ValueError(f"{path} {said}") from error
        why = f": {error}" if type(error) is ValueError and "\n" not in str(error) else ""
        raise ValueError(
            f"{path} is damaged, cut short or of another format than {', '.join(READERS)} "
            f"({type(error).__name__}{why[:200]})"
        ) from error
    wanted = read_options(path).get("network")
    keys, state = Choice(found, path, wanted if isinstance(wanted, str) else "").network()
    if not state:
        raise ValueError(f"{path} holds no tensors by name, as a state dict does")
    check_numbers(((name, each.ndim, str(each.dtype).removeprefix("torch.")) for name, each in state.items()), path)
    if not any(tensor.numel() for tensor in state.values()):
        raise ValueError(
            f"{path} has the names of its tensors and no numbers, which lie in files of other processes (DeepSpeed's "
            "ZeRO-3, FSDP); make one file of them with what wrote it, such as zero_to_fp32.py"
        )
    outer = [keys[:n] for n in range(len(keys), -1, -1) if keys[:n] in found.attributes]
    attributes = found.attributes[outer[0]] if outer else {}
    if "sigma_data" in attributes:
        state = state | {"sigma_data": torch.tensor(attributes["sigma_data"])}  # EDM keeps it beside the tensors
    return Checkpoint(
        state, found.said | attributes, tuple(".".join(other) for other in found.networks if other != keys)
    )


class Found:
    """Everything that a file of weights holds: networks by the keys that lead to them, and what is said beside them."""

    def __init__(self, data: Any, known: Collection[str]):
        self.networks: dict[Keys, State] = {}
        self.recognised: set[Keys] = set()
        self.lists: dict[Keys, list[Tensor]] = {}
        self.averaged: set[Keys] = set()
        """Keys of what torch's AveragedModel has written, known by its n_averaged."""
        self.said: dict[str, Any] = {}
        self.attributes: dict[Keys, dict[str, Any]] = {}
        for keys, value in containers(data):
            if isinstance(value, (list, tuple)):
                self.lists[keys] = list(value)
            elif isinstance(value, Inert):
                self.attributes[keys] = module_attributes(value)
                self.add(keys, module_tensors(value), known)
            else:
                named = {str(name): each for name, each in value.items() if isinstance(each, Tensor)}
                for name in filter(AVERAGE.search, named if keys and keys[-1].isdigit() else ()):
                    self.lists.setdefault((*keys[:-1], name), []).append(named[name])  # an optimizer's, by parameter
                self.add(keys, named, known)
        for key in ARGUMENTS if isinstance(data, Mapping) else ():
            said = data.get(key)
            said = vars(said) if isinstance(said, Namespace) else said
            if isinstance(said, Mapping):
                self.said = {str(name): value for name, value in said.items()} | self.said

    def add(self, keys: Keys, named: State, known: Collection[str]) -> None:
        """Sorts the tensors of one mapping into the networks that they belong to."""
        if "n_averaged" in named:
            self.averaged.add(keys)
        named = {INSIDE.sub("", name): tensor.detach() for name, tensor in named.items()}
        ends = tuple(f".{name}" for name in known)
        roots = {
            name[: -len(end)] if name.endswith(end) else ""
            for name in named
            if name in known or name.endswith(ends)
            for end in ends
            if name.endswith(end) or name == end[1:]
        }
        for root in roots:
            inside = {
                n.removeprefix(f"{root}.") if root else n: t
                for n, t in named.items()
                if not root or n.startswith(f"{root}.")
            }
            network = (*keys, *root.split(".")) if root else keys
            self.recognised.add(network)
            self.networks[network] = inside
        rest = {n: t for n, t in named.items() if not any(n.startswith(f"{root}.") or not root for root in roots)}
        for wrappers, state in grouped(rest).items():
            self.networks.setdefault((*keys, *wrappers), {}).update(state)

    def is_average(self, keys: Keys) -> bool:
        """Whether a network is a moving average, by the innermost key that says so."""
        for n in range(len(keys), 0, -1):
            if keys[n - 1] == "online_model":
                return False
            if AVERAGE.search(keys[n - 1]) or keys[: n - 1] in self.averaged:
                return True
        return False


def containers(data: Any) -> Iterator[tuple[Keys, Any]]:
    """Yields every mapping that holds tensors, every pickled module and every list of tensors, with the keys that lead
    to it. Raises ValueError for data that hold themselves or are nested without end."""
    waiting: list[tuple[Keys, Any]] = [((), data)] if isinstance(data, (Mapping, list, tuple)) else []
    for _ in range(MOST):
        if not waiting:
            return
        keys, value = waiting.pop()
        if isinstance(value, Inert) and isinstance(getattr(value, "state", None), Mapping):
            if "_modules" in value.state:
                yield keys, value
            continue
        inside = list(value.items() if isinstance(value, Mapping) else enumerate(value))
        tensors = [isinstance(each, Tensor) for _, each in inside]
        if any(tensors) if isinstance(value, Mapping) else tensors and all(tensors):
            yield keys, value
        deeper = [((*keys, str(key)[:100]), each) for key, each in inside if isinstance(each, (Mapping, list, tuple))]
        if len(keys) < 20:
            waiting += reversed(deeper)
        elif deeper:
            break
    raise ValueError("its dictionaries hold each other")


def grouped(named: State) -> dict[Keys, State]:
    """Splits the tensors of a mapping by the modules that wrap them. A module is no wrapper if it has neighbours with
    weights of their own."""
    groups: dict[Keys, State] = {}
    for name, tensor in named.items():
        wrappers: Keys = ()
        while (parts := name.split(".", 1))[1:] and (WRAPPERS.fullmatch(parts[0]) or AVERAGE.search(parts[0])):
            wrappers, name = (*wrappers, parts[0]), parts[1]
        if "." in name and OTHERS.fullmatch(first := name.split(".")[0]):
            wrappers = (*wrappers, first)
        groups.setdefault(wrappers, {})[name] = tensor
    for outer in sorted(groups, key=len):
        if is_named(groups.get(outer, {})) and not any(map(OTHERS.fullmatch, outer)):
            for inner in [keys for keys in groups if keys != outer and keys[: len(outer)] == outer]:
                if not any(map(OTHERS.fullmatch, inner)):
                    prefix = ".".join(inner[len(outer) :])
                    groups[outer] |= {f"{prefix}.{name}": tensor for name, tensor in groups.pop(inner).items()}
    if list(groups) == [()]:
        return {(): named}
    return groups


def is_named(state: State) -> bool:
    """Whether a state dict has weights of modules, and not buffers alone."""
    return any("." in name for name in state)


class Choice:
    """Chooses between the networks of a file."""

    def __init__(self, found: Found, path: Path, wanted: str):
        self.found, self.path, self.wanted = found, path, wanted
        self.others = {
            keys: {name.removeprefix(f"{keys[-1]}."): tensor for name, tensor in state.items()}
            for keys, state in found.networks.items()
            if any(OTHERS.fullmatch(key) and not (key == "callbacks" and found.is_average(keys)) for key in keys)
        }
        networks = {keys: state for keys, state in found.networks.items() if keys not in self.others}
        raw = {keys: state for keys, state in networks.items() if is_named(state) and not found.is_average(keys)}
        recognised = {keys: state for keys, state in raw.items() if keys in found.recognised}
        self.raw = recognised if found.recognised else raw
        self.averages: dict[Keys, State] = {}
        self.unmatched: list[Keys] = []
        for keys, average in networks.items():
            if found.is_average(keys) and any(tensor.numel() > 1 for tensor in average.values()):
                self.sort_in(keys, self.matched(keys, average))
        for keys, tensors in found.lists.items():
            if any(map(AVERAGE.search, keys)):
                self.sort_in(keys, in_order(tensors, self.raw.values()))

    def sort_in(self, keys: Keys, average: State | None) -> None:
        if average is None:
            self.unmatched.append(keys)
        else:
            self.averages[keys] = average

    def matched(self, keys: Keys, average: State) -> State | None:
        """The average by the names of its network."""
        if keys in self.found.recognised or (is_named(average) and not self.found.recognised):
            return average
        if any(average.keys() <= state.keys() for state in self.raw.values()):
            return average
        return flattened(average, self.raw)

    def network(self) -> tuple[Keys, State]:
        """The average of the weights if there is one, else the only network, or the one that is wanted; with the keys
        that lead to it. Raises ValueError if there are several, or an average that has no names."""
        averages, raw, unmatched = self.averages, self.raw, self.unmatched
        if self.wanted:
            named = averages, {**self.others, **raw}
            averages, raw = ({k: s for k, s in each.items() if self.is_wanted(k)} for each in named)
            unmatched = [keys for keys in unmatched if self.is_wanted(keys)]
            if not averages and not raw and not unmatched:
                every = [".".join(keys) for keys in (*self.averages, *self.raw, *self.unmatched) if keys]
                raise ValueError(
                    f"{self.path} has no network={self.wanted!r}, which the file beside it names; it has "
                    f"{', '.join(every) or 'one, without a key'}{did_you_mean(self.wanted, every)}"
                )
        if unmatched and not averages and (self.raw or self.wanted):
            names = ", ".join(".".join(keys) for keys in self.raw) or "another"
            raise ValueError(
                f"{self.path} keeps an average of its weights under {'.'.join(unmatched[0])}, which cannot be matched "
                f"to the names of its network; name the raw weights in {self.path.with_suffix('.json')} to take those "
                f"(`network`: {names})"
            )
        candidates = distinct(averages or raw)
        if len(candidates) > 1:
            several = [".".join(keys) or "its outermost tensors" for keys in candidates]
            raise ValueError(
                f"{self.path} holds {len(several)} networks that differ, {', '.join(several[:8])}; name the one to "
                f"take as `network` in {self.path.with_suffix('.json')}"
            )
        keys, state = next(iter(candidates.items()), ((), {}))
        twins = [".".join(other) for other, theirs in self.others.items() if theirs.keys() == state.keys()]
        if twins and not averages and not self.wanted:
            logger.warning(
                "%s: taking the network under %s; %s has the same tensors, and is taken with `network: %s` in %s",
                self.path, ".".join(keys), ", ".join(twins), twins[0], self.path.with_suffix(".json"),
            )  # fmt: skip
        return keys, self.completed(keys, state) if averages else state

    def is_wanted(self, keys: Keys) -> bool:
        return f"{'.'.join(keys)}.".startswith(f"{self.wanted}.")

    def completed(self, keys: Keys, average: State) -> State:
        """An average of trained weights alone, with what else the network has."""
        raw = [state for state in distinct(self.raw).values() if average.keys() < state.keys()]
        if len(raw) != 1:
            return average
        lacking = [name for name in raw[0] if name not in average]
        logger.warning(
            "%s: the average under %s has no %s; these %d tensors are the raw network's",
            self.path, ".".join(keys), ", ".join(lacking[:3]), len(lacking),
        )  # fmt: skip
        return {**raw[0], **average}


def flattened(average: State, raw: dict[Keys, State]) -> State | None:
    """An average of LDM's LitEma, whose names are the network's without dots, by the network's names."""
    weights = {name for name, tensor in average.items() if tensor.numel() > 1 or name not in ("decay", "num_updates")}
    for keys, state in raw.items():
        for start in range(len(keys) + 1):
            flat = {"".join((*keys[start:], name)).replace(".", ""): name for name in state}
            same = all(name in flat and state[flat[name]].shape == average[name].shape for name in weights)
            if weights and same and len(flat) == len(state):
                return {**state, **{flat[name]: average[name] for name in weights}}
    return None


def in_order(tensors: list[Tensor], raw: Iterable[State]) -> State | None:
    """A list of averaged parameters, which come in the order of their network's, by the network's names."""
    for state in raw:
        for names in (list(state), [name for name in state if "." in name]):
            if [state[name].shape for name in names] == [tensor.shape for tensor in tensors]:
                return {**state, **dict(zip(names, tensors, strict=True))}
    return None


def distinct(networks: dict[Keys, State]) -> dict[Keys, State]:
    """Leaves out networks that another one equals."""
    kept: dict[Keys, State] = {}
    for keys, state in networks.items():
        if not any(
            state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)
            for other in kept.values()
        ):
            kept[keys] = state
    return kept


def check_sizes(found: Found, path: Path) -> None:
    """Raises ValueError for tensors that are larger than their file, as a view of one number can be declared to be."""
    tensors = [tensor for state in found.networks.values() for tensor in state.values()]
    for tensor in [*tensors, *(tensor for each in found.lists.values() for tensor in each)]:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ValueError(f"a tensor of it is {tensor.layout}, quantised or without numbers")
        if tensor.numel() * tensor.element_size() > path.stat().st_size:
            raise ValueError(f"it declares a tensor of shape {list(tensor.shape)[:8]}, larger than itself")
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) > 8 * path.stat().st_size + 10**6:
        raise ValueError("it declares many more numbers than it holds")
