"""Flags, a config file and errors, the same for every command."""

import dataclasses
import errno
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from io import StringIO
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import tyro

from ddae.nearest import did_you_mean
from storage.files import locked
from storage.secrets import discreet, hidden
from sweeps.flags import as_args

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

REMEDIES = {
    errno.ESTALE: "mount it again, and the same command goes on",
    errno.EIO: "its disk or network fails; what was finished is kept, and the same command goes on",
    errno.EMFILE: "raise the number of files that a process may open (ulimit -n 4096)",
    errno.ENFILE: "the machine has too many files open",
    errno.ENAMETOOLONG: "give a shorter path with --out or --store",
}
"""What to do about an error of the machine."""

Config = TypeVar("Config", bound="DataclassInstance")


Recipes = Mapping[str, Mapping[str, object]]


def run(
    main: Callable[[Config], None],
    config_class: type[Config],
    description: str | None,
    recipes: Recipes | None = None,
) -> None:
    """Parse the flags into config_class and call main; a user's mistake is one line and exit code 2, an answer of which
    something could not be logged or drawn exit code 3. Nothing that is printed shows a password.

    recipes: name -> defaults of flags, for a command that takes --recipe."""
    with discreet():
        if "--version" in sys.argv[1:]:
            print(version_text())
        else:
            _run(main, lambda: parse(config_class, sys.argv[1:], description, recipes))


def version_text() -> str:
    """ddae-sweeps 0.2.0 (the commit, in a clone)."""
    from sweeps.findings.versions import own_version

    return f"ddae-sweeps {own_version()}"


def _run(main: Callable[[Config], None], read: Callable[[], Config]) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # Slurm's warning that time is nearly up; what is done is kept anyway
    try:
        main(read())
        if sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:  # who read the answer has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fail(f"{error.filename or 'the sweep'}: its disk is full; make room, and the same command goes on")
        remedy = REMEDIES.get(error.errno or 0, "allow it, or name other folders with --out and --store")
        what = f"{error.filename}: {str(error.strerror).lower()}" if error.filename else str(error)
        fail(f"{what}; {remedy}" if error.errno else what)  # errors of buckets say themselves what to do
    except Incomplete as error:
        fail(str(error), 3)
    except ValueError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept, and the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except Exception:  # here, where no password is printed
        traceback.print_exc()
        sys.exit(1)


class Incomplete(Exception):
    """The answer stands, and something could not be logged or drawn; the same command goes on."""


def fail(message: str, code: int = 2) -> NoReturn:
    print(f"error: {' '.join(hidden(message).split())}", file=sys.stderr)
    sys.exit(code)


def check_complete(incomplete: str) -> None:
    """Raises Incomplete where something is."""
    if incomplete:
        again = "" if "same command" in incomplete else "; the same command tries again"
        raise Incomplete(f"the answer stands, but {incomplete}{again}")


def sync(folders: Sequence[Path], out: Path, task: str) -> str:
    """Log finished sweeps to MLFLOW_TRACKING_URI, those of a task in `out` where no folder is given."""
    from sweeps.findings import logged

    return logged.sync(folders, out, task)


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
            with locked(probe := Path(place) / f".lock-{os.getpid()}"):
                probe.unlink(missing_ok=True)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line a row, its columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def parse(
    config_class: type[Config],
    args: list[str],
    description: str | None,
    recipes: Recipes | None = None,
    default: Config | None = None,
) -> Config:
    """Flags over `--config FILE` over those of `--recipe NAME` over the default, or the defaults of the dataclass.
    Raises ValueError for what is wrong with them."""
    for position, arg in enumerate(args):
        name, equals, path = arg.partition("=")
        if name == "--config":
            given, rest = ([path], args[position + 1 :]) if equals else (args[position + 1 :][:1], args[position + 2 :])
            if not given:
                raise ValueError("--config wants a file")
            args = read_config(config_class, Path(given[0])) + args[:position] + rest
            break
    description = f"{description or ''}\n--config FILE takes the same names from a YAML file; flags win over it."
    description += "\n--version says which version this is."
    printed = StringIO()
    try:
        with redirect_stderr(printed):
            if recipes:
                default = config_class(**of_recipe(args, recipes))
            given_default: dict[str, Any] = {"default": default} if default else {}
            config, unknown = tyro.cli(
                config_class,
                args=[f" {arg}" if holds_flags(arg) else arg for arg in args],
                description=description,
                return_unknown_args=True,
                **given_default,
            )
    except SystemExit as exit:
        if exit.code:
            raise ValueError(f"{in_the_box(printed.getvalue())}; --help explains every flag") from None
        raise
    if unknown:
        names = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(config_class)]
        hint = did_you_mean(unknown[0].partition("=")[0], names)
        raise ValueError(f"{unknown[0]!r} is no flag, and no flag takes it; --help lists them{hint}")
    for field in dataclasses.fields(config_class):
        if getattr(config, field.name) == "" and field.default != "":
            raise ValueError(f"--{field.name.replace('_', '-')} is empty; give a value, or leave it out")
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config_class) if field.init}
    return dataclasses.replace(config, **{name: without_space(value) for name, value in values.items()})


def holds_flags(arg: str) -> bool:
    """Whether an argument is a value that holds flags of another command, as '--num-levels 128 --flip'. A space before
    it keeps tyro from taking it for a flag. '--training=--flip --seed 1' is a flag of this command."""
    name, _, value = arg.partition("=")
    return arg.startswith("-") and (" " in name or (" --" in value and not value.startswith("-")))


def without_space(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(without_space, value))
    return value[1:] if isinstance(value, str) and value.startswith(" -") else value


def of_recipe(args: list[str], recipes: Recipes) -> dict[str, Any]:
    """The defaults that the last --recipe among the flags names. Raises ValueError for one that is not known."""
    names = [
        arg.partition("=")[2] or value for arg, value in pairwise([*args, ""]) if arg.partition("=")[0] == "--recipe"
    ]
    if not names or not names[-1]:
        return {}
    if names[-1] not in recipes:
        hint = did_you_mean(names[-1], recipes)
        raise ValueError(f"recipe={names[-1]!r} is not known; known: {', '.join(recipes)}{hint}")
    return dict(recipes[names[-1]])


def in_the_box(printed: str) -> str:
    """What tyro says, without its colours, its box and its help: that stands between the first two rules."""
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[\d;]*m", "", printed).splitlines()]
    title, *sections = re.split(r"\s*[─╮-]{5,}\s*", " ".join(lines))
    return (sections or [title])[0].rstrip(".")


def read_config(config_class: type[Config], path: Path) -> list[str]:
    """The flags that a YAML file of `name: value` lines stands for; a key that is no flag is an error."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
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
        items = value if isinstance(value, list) else [value]
        for item in items:
            flag = isinstance(item, str) and item.startswith("-") and not holds_flags(item)
            if flag or isinstance(item, dict | list | NoneType):
                raise ValueError(f"--config {path} has {name}={item!r}; give numbers or words, none with - first")
        flags += as_args(name, value)
    return flags
