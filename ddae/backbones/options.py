"""Reads the options of the official codes from the files beside checkpoints, and checks them."""

import difflib
import json
import logging
import reprlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

logger = logging.getLogger("ddae")

NOTHING: Mapping[str, Any] = MappingProxyType({})

LONGEST = 300_000
"""Bytes of a file of options; YAML takes seconds to read them."""

COMMON = {"network": str, "model_type": str, "vae": str}
"""Options that every family takes: which network of the file to read, of which kind it is, and its VAE."""


def sidecars(path: Path) -> list[Path]:
    """The files beside a checkpoint that say what its tensors do not: <name>.json, .yaml or .yml, whichever exist."""
    return [other for suffix in (".json", ".yaml", ".yml") if (other := path.with_suffix(suffix)).is_file()]


def read_options(path: Path) -> dict[str, Any]:
    """Reads the official code's options, by their own names, from the sidecar of a checkpoint; empty if it has none.

    Raises ValueError for a sidecar that cannot be read, and for two that differ.
    """
    found = sidecars(path)
    options = [read_sidecar(sidecar) for sidecar in found]
    for other, sidecar in zip(options[1:], found[1:], strict=True):
        if other != options[0]:
            differ = sorted(name for name in {*other, *options[0]} if other.get(name) != options[0].get(name))
            raise ValueError(
                f"{found[0]} and {sidecar} say different things about {path.name} ({', '.join(map(str, differ[:5]))}); "
                "keep one of them"
            )
    return options[0] if options else {}


def read_sidecar(sidecar: Path) -> dict[str, Any]:
    try:
        if sidecar.stat().st_size > LONGEST:
            raise ValueError(f"{sidecar.stat().st_size} bytes are too many for options")
        text = sidecar.read_text()
        if sidecar.suffix == ".json":  # YAML is not asked to read JSON: it takes 1e-05 for a word
            options = json.loads(text)
        else:
            check_yaml(text)
            options = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{sidecar} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{sidecar} must be a mapping of options to values, not {type(options).__name__}")
    return options


def check_yaml(text: str) -> None:
    """Raises ValueError for what makes a short text endless: aliases, which repeat, and deep nesting."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > 50:
            raise ValueError("it has aliases (*name), or is nested too deeply; write its values out")


def checked_options(path: Path, kinds: Mapping[str, Any], unused: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The options of a checkpoint that `kinds` names, each with its type (or types, or allowed words), checked.

    Official options in `unused` change nothing here. Others are named in a warning; one that is nearly an option
    raises ValueError, as a value of another type does.
    """
    options = read_options(path)
    return check_options(options, kinds, sidecars(path)[0] if options else path, unused or {})


def check_options(
    options: Mapping[str, Any], kinds: Mapping[str, Any], where: Path, unused: Mapping[str, Any]
) -> dict[str, Any]:
    kinds = {**COMMON, **kinds}
    strange = [str(name) for name in options if name not in kinds and name not in unused]
    for name in strange:
        if near := difflib.get_close_matches(name, kinds, 1, cutoff=0.85):
            raise ValueError(f"{where}: {reprlib.repr(name)} is no option of this network; did you mean {near[0]!r}?")
    if strange:
        logger.warning("%s: %s mean nothing here and are left out", where, ", ".join(strange[:8]))
    for name, kind in kinds.items():
        if name in options and not is_of(kind, options[name]):
            raise ValueError(f"{where} says {name}={reprlib.repr(options[name])}; it must be {described(kind)}")
    return {name: options[name] for name in kinds if name in options}


def is_of(kind: Any, value: Any) -> bool:
    """Whether a value is of a type, one of several types, or one of several words. True is no number, and a whole
    number is a float."""
    if isinstance(kind, tuple):
        return any(is_of(each, value) if isinstance(each, type) else each == value for each in kind)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind) and value == value


def described(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", list: "a list"}
    if isinstance(kind, tuple):
        return " or ".join(words[each] if isinstance(each, type) else repr(each) for each in kind)
    return words[kind]


def name_assumed(path: Path, assumed: Mapping[str, Any]) -> None:
    """Warns, in one line, of all that neither the tensors nor the options beside them say, with what is taken."""
    if assumed:
        logger.warning(
            "%s does not say, and nothing beside it says, %s; taking these (others in %s)",
            path, ", ".join(f"{name}={value}" for name, value in assumed.items()), path.with_suffix(".json"),
        )  # fmt: skip
