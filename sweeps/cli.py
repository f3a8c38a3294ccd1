"""Flags, a config file and errors, the same for every command."""

import dataclasses
import errno
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Literal, NoReturn, TypeVar

import tyro

from ddae.nearest import did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PRIVATE_RAY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
"""A Ray of one machine: on loopback, as on macOS, and deaf to other users of the machine. Read when Ray is imported."""
SEEDS = 0, 2**32 - 1
"""What every generator takes."""

Config = TypeVar("Config", bound="DataclassInstance")


@dataclass(frozen=True)
class ModelAndData:
    """The flags that every command takes which looks into a model."""

    backbone: str = "ddpm-fashion-mnist"
    """A diffusers folder, a hub id `owner/model[@revision]`, or an official checkpoint file (.pt, .pth, .pkl,
    .safetensors) of DDAE, EDM, DiT or guided diffusion; the default ships with the package."""
    dataset: str = "fashion-mnist-8k"
    """A name (fashion-mnist-8k ships with the package; README lists the others), a folder with one sub-folder of images
    a class, a folder that Hugging Face datasets reads, or a hub id `owner/name[@revision]`."""
    blocks: tuple[str, ...] = ()
    """Names of blocks, for example `mid up.1.0`, or the papers', `out_7` or `b24`; all of them if not given."""
    timesteps: tuple[int, ...] = ()
    """Noise levels in the model's own counting: 0 to 999 for most, 1 to 18 for EDM. By default up to nine of them."""
    data_seed: int = 0
    """Of the val split, the order of the images and the noise; another one extracts anew."""
    store: str = "out/store"
    """Folder of features and results, shared by sweeps, or an address: s3://bucket/folder, gs://, abfs://, and others
    that pyarrow or fsspec knows. What lies at an address is fetched once a machine."""
    out: Path = Path("out")
    """Folder in which the sweep's own folder is made."""
    data_root: str = "data"
    """Where the named datasets lie, or torchvision downloads them to."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    gpus_per_extractor: float = 1.0
    """Share of a GPU that runs one copy of the network; 0.5 puts two copies on each GPU."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the forward passes (autocast); another one extracts anew."""
    channels_last: bool = False
    """Memory layout of the forward passes."""
    compile: bool = False
    """torch.compile: faster passes after minutes of compiling, which every extractor does anew."""
    image_size: int = 0
    """Side in pixels of the images the network sees, where it is not bound to one; 0 is the model's own."""
    num_steps: int = 18
    """EDM alone: the steps of the schedule that timesteps count, 18 or 50 in the DDAE paper."""
    text_embedding: str = ""
    """Stable Diffusion alone: a text embedding that sweeps/learn_text.py has learned, instead of the null text."""
    dry_run: bool = False
    """Say what it would cost, and stop."""


def run(main: Callable[[Config], None], config_class: type[Config], description: str | None) -> None:
    """Parse the flags into config_class and call main; a user's mistake is one line and exit code 2."""
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.update(PRIVATE_RAY | {"RAY_AUTH_TOKEN": secrets.token_hex(32)})
    try:
        main(parse(config_class, sys.argv[1:], description))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fail(f"{error.filename or 'the sweep'}: its disk is full; make room, and the same command goes on")
        allow = "allow it, or name other folders with --out and --store"
        fail(f"{error.filename}: {str(error.strerror).lower()}; {allow}" if error.filename else str(error))
    except ValueError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept, and the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def check_numbers(config: "DataclassInstance", **ranges: tuple[float, float]) -> None:
    """Raises ValueError for a flag beyond its range (least, most)."""
    for name, (least, most) in ranges.items():
        if not least <= (value := getattr(config, name)) <= most:
            raise ValueError(f"{name}={value} must be {least:,} or more, and {most:,} at most")


def check_writable(*places: str | Path) -> None:
    """Makes the folders. Raises OSError, or of an address ValueError, where nothing can be written into one, before
    there is anything to write."""
    from storage.remote import Remote, is_address

    for place in places:
        if is_address(place):
            Remote(str(place)).check_writable()
        else:
            Path(place).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=place).close()


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line a row, its columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def parse(config_class: type[Config], args: list[str], description: str | None) -> Config:
    """Flags over `--config FILE` over the defaults of the dataclass."""
    for position, arg in enumerate(args):
        name, equals, path = arg.partition("=")
        if name == "--config":
            given, rest = ([path], args[position + 1 :]) if equals else (args[position + 1 :][:1], args[position + 2 :])
            if not given:
                fail("--config wants a file")
            args = read_config(config_class, Path(given[0])) + args[:position] + rest
            break
    description = f"{description or ''}\n--config FILE takes the same names from a YAML file; flags win over it."
    printed = StringIO()
    try:
        with redirect_stderr(printed):
            config, unknown = tyro.cli(config_class, args=args, description=description, return_unknown_args=True)
    except SystemExit as exit:
        if exit.code:
            fail(f"{in_the_box(printed.getvalue())}; --help explains every flag")
        raise
    if unknown:
        names = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(config_class)]
        hint = did_you_mean(unknown[0].partition("=")[0], names)
        fail(f"{unknown[0]!r} is no flag, and no flag takes it; --help lists them{hint}")
    return config


def in_the_box(printed: str) -> str:
    """What tyro says, without its colours, its box and its help: that stands between the first two rules."""
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[\d;]*m", "", printed).splitlines()]
    title, *sections = re.split(r"\s*[─╮-]{5,}\s*", " ".join(lines))
    return (sections or [title])[0].rstrip(".")


def read_config(config_class: type[Config], path: Path) -> list[str]:
    """The flags that a YAML file of `name: value` lines stands for; a key that is no flag is an error."""
    import yaml

    try:
        text = path.read_text()
        values, root = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except OSError as error:
        raise ValueError(f"--config {path} cannot be read ({error.strerror})") from error
    except Exception as error:  # tags that do not suit their values raise errors of every class
        raise ValueError(f"--config {path} is not YAML: {error}") from error
    if root is None:
        return []
    if not isinstance(values, dict):
        raise ValueError(f"--config {path} must hold `name: value` lines, not a {type(values).__name__}")
    given = [str(key.value).replace("-", "_") for key, _ in root.value]
    if doubles := sorted({name for name in given if given.count(name) > 1}):
        raise ValueError(f"--config {path} gives the key {doubles[0]!r} more than once; give it once")
    names = [field.name for field in dataclasses.fields(config_class)]
    flags = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in names:
            hint = did_you_mean(name, names)
            raise ValueError(f"--config {path} has the unknown key {key!r}; keys: {', '.join(names)}{hint}")
        flag = name.replace("_", "-")
        items = value if isinstance(value, list) else [value]
        for item in items:
            if isinstance(item, dict | list | NoneType) or (isinstance(item, str) and item.startswith("-")):
                raise ValueError(f"--config {path} has {name}={item!r}; give numbers or words, none with - first")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", *map(str, items)]
    return flags
