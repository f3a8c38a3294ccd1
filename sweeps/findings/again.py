"""The report of a finished sweep, given again before anything heavy is imported, where nothing that it stands on has
changed: flags, working folder, Python and packages, this code, every file of model and data (size and times), results.

A finished command leaves `again-<key>.json` in the sweep's folder. The key is of all that is not a file; inside stand
the files' states. Where one differs, or one of them cannot be looked at, the command goes the long way.
"""

import glob
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from storage.files import published
from sweeps.flags import as_flags

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CODE = tuple(Path(__file__).parents[2] / package for package in ("ddae", "storage", "sweeps"))
RESULTS = "results.json", "report.txt", "not_logged.txt", "not_drawn.txt"
"""What must be as the command has left it: the last two are not there where all is whole."""
DECIDES = "RAY_", "MLFLOW_", "CUDA_", "NVIDIA_", "HF_", "TORCH_", "AWS_", "XDG_"
"""How the names of variables begin that may change what the long way does."""
CACHE = "__pycache__"
RACY_SECONDS = 2
"""A file that was changed so shortly before the command began, or since, may not be the one that it has read."""


def report(key: str, out: Path, task: str) -> str | None:
    """What the same command has printed when it ended; None where anything is not as it was then."""
    for path in out.glob(f"{task}-*/again-{key}.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(path.read_text(encoding="utf-8"))
            is_there = record["folder"] == str(path.parent.absolute()) and all(map(os.path.exists, record["there"]))
            if is_there and record["files"] == states(record["files"])[0]:
                return (path.parent / "report.txt").read_text(encoding="utf-8")
    return None


def remember(
    key: str,
    folder: Path,
    printed: str,
    started_seconds: float,
    inputs: Sequence[Path] | None,
    there: Iterable[str],
) -> None:
    """Have report() find what the command has printed.

    key: as it was when the command began, because libraries set variables. started_seconds: when that was, since the
    epoch. inputs: all files and folders of model and data; None where they cannot be told, as those of a hub, and
    nothing is remembered. there: folders that must not be gone.
    """
    if inputs is None:
        return
    with suppress(OSError):
        known, newest = states(map(str, [*CODE, *inputs]))
        found, _ = states(str((folder / name).absolute()) for name in RESULTS)
        is_whole = (folder / "report.txt").read_text(encoding="utf-8") == printed
        if not is_whole or newest > (started_seconds - RACY_SECONDS) * 1e9:
            return
        for earlier in folder.glob("again-*.json"):
            earlier.unlink()
        record = {"folder": str(folder.absolute()), "there": list(there), "files": known | found}
        with published(folder / f"again-{key}.json") as part:
            part.write_text(json.dumps(record), encoding="utf-8")


def key_of(config: "DataclassInstance") -> str:
    """A hash of all that decides what a command prints and is not in the files that it reads."""
    decides = [
        {name: str(value) for name, value in as_flags(config).items()},
        os.getcwd(),
        [str(package) for package in CODE],
        sys.version,
        sorted(packages()),
        sorted((name, value) for name, value in os.environ.items() if name.startswith(DECIDES)),
        sorted(glob.glob("/dev/nvidia*")),
    ]
    return xxhash.xxh3_64_hexdigest(json.dumps(decides).encode())


def packages() -> Iterator[str]:
    """name-version of everything that is installed, by one listing of each folder."""
    for folder in sys.path:
        with suppress(OSError):
            yield from (name for name in os.listdir(folder or ".") if name.endswith((".dist-info", ".egg-info")))


def states(roots: Iterable[str]) -> tuple[dict[str, str], int]:
    """root -> a hash of the names of all files and folders in it and of the files' sizes and times, empty where there
    is none; and the last time at which one of them was changed, in nanoseconds since the epoch.

    Raises OSError where something cannot be looked at.
    """
    found, newest = {}, 0
    for root in roots:
        stamps = sorted(stamps_of(root))
        newest = max([newest, *(changed for *_, changed in stamps)])
        names_and_files = [(path, size, *times) if size >= 0 else path for path, size, *times in stamps]
        found[root] = xxhash.xxh3_128_hexdigest(json.dumps(names_and_files).encode()) if stamps else ""
    return found, newest


def stamps_of(root: str) -> Iterator[tuple[str, int, int, int]]:
    """(path, size, mtime, ctime) of a file, or of every file and folder below a folder, links followed. A folder has
    size -1, and the time at which something last came into it or went. Python's own caches are left out, and the times
    of folders that hold one."""
    waiting, seen = [root], set()
    while waiting:
        path = waiting.pop()
        try:
            status = os.stat(path)
        except FileNotFoundError:
            if path != root:  # a link that leads nowhere
                yield path, 0, 0, 0
            continue
        if not os.path.isdir(path):
            yield path, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        elif (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            names = os.listdir(path)
            yield path, -1, 0, 0 if CACHE in names else status.st_ctime_ns
            waiting += [os.path.join(path, name) for name in names if name != CACHE]
