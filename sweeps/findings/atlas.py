"""The atlas: what every sweep of a network on a dataset has found, one small JSON file each, in a folder that can be
shown to anybody and merged with others. A file holds numbers and fingerprints; no path, no user, no image."""

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from storage.files import published
from storage.ledger import digest

FORMAT = 1
MOST_BYTES = 2**24
"""A file that is larger is foreign; an entry of 60,000 sites is not."""

log = logging.getLogger("sweeps")


@dataclass(frozen=True)
class Site:
    """A block at a timestep, and how ridge regression judged it in the last round of screening that it was in."""

    block: str
    depth: float
    """Share of a forward pass after which the block is done."""
    timestep: int
    sigma: float
    accuracy: float
    stderr: float
    num_images: int


@dataclass(frozen=True)
class Answered:
    """The cell that a sweep has chosen, fitted on all training images."""

    block: str
    depth: float
    timestep: int
    sigma: float
    pooling: int
    head: str
    accuracy: float
    stderr: float


@dataclass(frozen=True)
class Entry:
    """What one sweep has found."""

    backbone: str
    """The network's name, without its folder."""
    backbone_sha256: str
    family: str
    """The class of the network."""
    dataset: str
    """The dataset's name where that is public, else empty."""
    dataset_fingerprint: str
    num_train: int
    num_val: int
    num_classes: int
    metric: str
    sites: tuple[Site, ...]
    """Every site that was screened, best first: those that stayed longest, and of these the most accurate."""
    answer: Answered
    raw_pixels: float | None
    """Accuracy of pixels under the answer's head."""
    sweep: str
    """A hash of what was searched: a sweep that goes on with more trials has the same."""
    version: str
    """The code's."""
    format: int = FORMAT

    @property
    def name(self) -> str:
        """The file's, in which equal findings are one file."""
        return f"{self.series}{digest(asdict(self))[:8]}.json"

    @property
    def series(self) -> str:
        """Begins the names of all files of the same sweep."""
        return f"{self.backbone_sha256[:8]}-{self.dataset_fingerprint[:8]}-{self.sweep[:8]}-"


def write(folder: Path, entry: Entry, replaces: bool = True) -> Path:
    """Add an entry to an atlas; one that is there already stays. replaces: whether it takes the place of what the same
    sweep has found before, whose pixels it keeps where it has none and the head is the same."""
    folder.mkdir(parents=True, exist_ok=True)
    if replaces and entry.raw_pixels is None:
        entry = replace(entry, raw_pixels=known_pixels(folder, entry))
    path = folder / entry.name
    if not path.exists():
        with published(path) as part:
            part.write_text(json.dumps(asdict(entry), indent=1) + "\n", encoding="utf-8")
    for earlier in folder.glob(f"{entry.series}*.json") if replaces else ():
        if earlier != path:
            earlier.unlink(missing_ok=True)
    return path


def known_pixels(folder: Path, entry: Entry) -> float | None:
    for path in folder.glob(f"{entry.series}*.json"):
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            earlier = parse(path)
            if earlier.raw_pixels is not None and earlier.answer.head == entry.answer.head:
                return earlier.raw_pixels
    return None


def read(folder: Path) -> list[Entry]:
    """The entries of an atlas, in the order of their names. What is damaged or foreign is named, and skipped."""
    entries = []
    for path in sorted(folder.glob("*.json")):
        try:
            entries.append(parse(path))
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            log.warning(f"{path} is no entry of an atlas and is skipped ({type(error).__name__}: {reason})")
    return entries


def parse(path: Path) -> Entry:
    """One file. Raises ValueError, TypeError or KeyError for what is none of ours, or of another format."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    values = json.loads(path.read_text(encoding="utf-8"))
    if values["format"] != FORMAT:
        raise ValueError(f"format {values['format']!r}, where {FORMAT} is known")
    sites = tuple(checked(Site, site) for site in values["sites"])
    entry = checked(Entry, {**values, "sites": sites, "answer": checked(Answered, values["answer"])})
    if not sites or path.name != entry.name:
        raise ValueError("it was changed, or cut off, since it was written")
    return entry


NUMBER = int, float
KINDS: dict[Any, tuple[type, ...]] = {str: (str,), int: (int,), float: NUMBER, float | None: (*NUMBER, type(None))}


def checked(of: type, values: dict[str, Any]) -> Any:
    """A dataclass of values of the kinds that it says. Raises TypeError for others, or for names that it has not."""
    for each in fields(of):
        if each.type in KINDS and type(values[each.name]) not in KINDS[each.type]:
            raise TypeError(f"{each.name}={values[each.name]!r}")
    return of(**values)


def merge(sources: Sequence[Path], into: Path) -> int:
    """Copy the entries of other atlases into one. Returns how many are new there."""
    known = {entry.name for entry in read(into)} if into.is_dir() else set()
    new = {entry.name: entry for source in sources for entry in read(source) if entry.name not in known}
    for entry in new.values():
        write(into, entry, replaces=False)
    return len(new)
