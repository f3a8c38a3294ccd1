"""Opens the images of a set before anything is made of them, and remembers what it saw of each."""

import json
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from io import BytesIO
from pathlib import Path

import xxhash

from ddae.datasets.pixels import DECODERS, open_image
from ddae.units import counted

log = logging.getLogger("ddae")

MANY, SAMPLE = 100_000, 1_000
"""Sets of so many images are not opened as a whole, but so many of their images."""
LONG = 5_000
"""Opening more images than these takes so long that a person is told."""
RACY_SECONDS = 2
"""A file that changed so lately may change again without another time."""
VERSION = 2
"""Raise it when Facts of the same bytes come out differently."""

NO_IMAGES = {
    b"version https://git-lfs": "it is a pointer of Git LFS in place of the image; `git lfs pull` fetches that",
    rb"(?s:....)ftyp(heic|heix|hevc|heif|mif1|msf1)": "it is HEIC, whatever it is called; save it as PNG or JPEG",
    rb"\s*<(?i:!doctype|html|\?xml|svg)": "it is a web page or a drawing in XML, not an image",
    rb"\Z": "it is empty",
}
"""How the bytes of files begin that are no image -> what they are."""


@dataclass(frozen=True)
class Reading:
    """How the images and labels of a set are read."""

    label_column: str = ""
    """The column of the classes in a Hugging Face set."""
    group_by: str = ""
    """What stays together in train, val or test: a column of a Hugging Face set, or a regular expression with one group
    for the paths of files."""
    white: float = 0
    """The value of white in images of more than 8 bits a channel that do not say it; 0 is found from all of them."""
    check: bool = True
    """Open every image first; a worker need not, whose driver has done so."""
    skip_unreadable: bool = False
    """Leave out the images that cannot be read."""
    left_out: tuple[str, ...] = ()
    """The names of those."""
    profiles: bool = True
    """Show colours by their profile; published sets are read without, as their papers read them."""
    shown: str = ""
    """What in the set 0.2 did not show as a person sees it (depth, transparency, profiles); fingerprints hold it."""


@dataclass(frozen=True)
class Facts:
    """What opening an image shows."""

    error: str = ""
    """Why it cannot be read; empty where it can."""
    digest: str = ""
    """Hash of its pixels."""
    news: str = ""
    """Opened.news"""
    kind: str = ""
    """i or f: the numbers of an image of more than 8 bits a channel that does not say which value is white."""
    low: float = 0
    high: float = 0
    """The smallest and the largest of these."""
    num_frames: int = 1


def stride(num_images: int) -> int:
    """Every which image of a set is opened."""
    return 1 + (num_images // SAMPLE if num_images >= MANY else 0)


def inspect(content: bytes) -> Facts:
    try:
        opened = open_image(BytesIO(content))
        digest, deep = opened.digest(), opened.deep
    except Exception as error:  # damaged files raise errors of every class
        said = next((what for start, what in NO_IMAGES.items() if re.match(start, content)), "")
        return Facts(error=said or re.sub(r" ?<_io.BytesIO[^>]*>", "", " ".join(str(error).split())))
    seen = Facts(digest=digest, news=opened.news, num_frames=opened.num_frames)
    if deep is None:
        return seen
    return replace(seen, kind=deep.dtype.kind, low=float(deep.min()), high=float(deep.max()))


def scan_files(root: Path, paths: Sequence[str], look: bool) -> tuple[list[str], list[Facts]]:
    """The hash of the bytes of each file and, where look, what opening it shows. Files of a known size and times are
    not read again. Raises OSError where a file cannot be read, unless look."""
    memory, now = Memory(str(root.absolute())), time.time_ns()
    if look and (num_new := len(set(paths).difference(memory.stamps))) > LONG:
        log.warning(f"{root}: {num_new:,} images are opened, this once; --no-check-data leaves that out")

    def scan(path: str) -> tuple[list, Facts | None]:
        full = os.path.join(root, path)
        try:
            status = os.stat(full)
            if not stat.S_ISREG(status.st_mode):
                return [], Facts(error="it is no file")
            stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            *before, content = memory.stamps.get(path, [""])
            if before == stamp and (not look or content in memory.facts):
                return [*stamp, content], memory.facts.get(content)
            data = Path(full).read_bytes()
        except OSError as error:
            if not look:
                raise
            return [], Facts(error=str(error.strerror))
        content = xxhash.xxh3_128(data).hexdigest()
        return [*stamp, content], memory.facts.get(content) or (inspect(data) if look else None)

    with ThreadPoolExecutor(DECODERS) as threads:
        found = list(threads.map(scan, paths))
    old = now - RACY_SECONDS * 10**9
    memory.keep(
        {path: entry for path, (entry, _) in zip(paths, found, strict=True) if entry and entry[2] < old},
        {entry[3]: facts for entry, facts in found if entry and facts},
    )
    return [entry[3] if entry else "" for entry, _ in found], [facts or Facts() for _, facts in found]


def scan_sources(name: str, sources: Iterable[Sequence[str | BytesIO]]) -> list[Facts]:
    """What opening each of a set's encoded images shows; those of known bytes are not opened again.

    sources: paths and contents, some at a time.
    """
    memory = Memory(name)

    def scan(source: str | BytesIO) -> tuple[str, Facts]:
        try:
            data = source.getvalue() if isinstance(source, BytesIO) else Path(source).read_bytes()
        except OSError as error:
            return "", Facts(error=str(error.strerror))
        content = xxhash.xxh3_128(data).hexdigest()
        return content, memory.facts.get(content) or inspect(data)

    with ThreadPoolExecutor(DECODERS) as threads:
        found = [each for some in sources for each in threads.map(scan, some)]
    memory.keep({}, dict(found))
    return [facts for _, facts in found]


class Memory:
    """What is known of a set's files, in a folder of this machine below XDG_CACHE_HOME or ~/.cache; it may be deleted
    at any time."""

    def __init__(self, name: str):
        home = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
        self.path = home / "ddae-sweeps" / "images" / f"{xxhash.xxh3_64_hexdigest(name.encode())}-{VERSION}.json"
        self.stamps: Mapping[str, list] = {}
        """path -> size, time of change of its content, and of anything, hash of its bytes"""
        self.facts: Mapping[str, Facts] = {}
        """hash of bytes -> what they show"""
        with suppress(OSError, ValueError, TypeError, KeyError):
            record = json.loads(self.path.read_text())
            self.stamps = dict(record["stamps"])
            self.facts = {content: Facts(*facts) for content, facts in record["facts"].items()}

    def keep(self, stamps: Mapping[str, list], facts: Mapping[str, Facts]) -> None:
        """A file that cannot be read may be mended without another size or time, on a disk that came back."""
        facts = {content: each for content, each in facts.items() if content and not each.error}
        if (stamps, facts) == (self.stamps, self.facts):
            return
        with suppress(OSError):  # a machine whose disk may not be written is slower, no more
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as part:
                json.dump({"stamps": stamps, "facts": {c: astuple(each) for c, each in facts.items()}}, part)
            os.replace(part.name, self.path)


def learn(
    reading: Reading, names: Sequence[str], facts: Sequence[Facts], called: Callable[[str], str], num_images: int
) -> tuple[Reading, list[str]]:
    """What the facts of some images, or of all num_images, add to how they are read, and notes for a person.

    called: what a person calls an image of this name. Raises ValueError where images cannot be read and are not to be
    left out, and where it cannot tell which value is white.
    """
    notes = []
    if broken := [(name, each.error) for name, each in zip(names, facts, strict=True) if each.error]:
        listed = "; ".join(f"{called(name)} cannot be read as an image ({error})" for name, error in broken[:3])
        more = f"; and {len(broken) - 3:,} more" if len(broken) > 3 else ""
        if not reading.skip_unreadable:
            raise ValueError(
                f"{listed}{more}; repair or remove the file{'s' * (len(broken) > 1)}, or leave "
                f"{'them' if len(broken) > 1 else 'it'} out with --skip-unreadable"
            )
        notes.append(f"left out {len(broken):,} of {len(facts):,} images: {listed}{more}")
    sound = [(name, each) for name, each in zip(names, facts, strict=True) if not each.error]
    if not reading.profiles:
        sound = [(name, replace(each, news=each.news.replace("profile", ""))) for name, each in sound]
    white = reading.white or white_of(sound, called)
    if deep := [each for _, each in sound if each.kind]:
        if not reading.white and len(facts) < num_images:
            raise ValueError(
                f"of {num_images:,} images not all are opened, and some have more than 8 bits a channel; give --white"
            )
        reach = f"{min(each.low for each in deep):g} to {max(each.high for each in deep):g}"
        notes.append(
            f"{counted(len(deep), 'image has', 'images have')} more than 8 bits a channel, of values from {reach}; in "
            f"{'it' if len(deep) == 1 else 'all of them'} {white:g} is white"
            + (", as given" if reading.white else "; --white gives another value")
        )
    elif reading.white:
        notes.append(f"no image has more than 8 bits a channel, so white={reading.white:g} is not used")
    is_, has = ("image is", "images are"), ("image has", "images have")
    for verb, what, is_so in (
        (is_, "transparent in places and seen on white", lambda each: "alpha" in each.news),
        (has, "a colour profile, by which the colours are seen", lambda each: "profile" in each.news),
        (has, "several frames or pages, of which the first is seen", lambda each: each.num_frames > 1),
    ):
        if found := [name for name, each in sound if is_so(each)]:
            notes.append(f"{counted(len(found), *verb)} {what}, such as {called(found[0])}")
    if white == 2**16 - 1:  # as 0.2 took it
        sound = [(name, replace(each, news=each.news.replace("depth", ""))) for name, each in sound]
    shown = " ".join(sorted({word for _, each in sound for word in each.news.split()}))
    if len(facts) < num_images and reading.profiles:
        shown = f"{shown} others".strip()
    left_out = (*reading.left_out, *(name for name, _ in broken))
    return replace(reading, white=white, left_out=left_out, shown=shown), notes


def white_of(facts: Sequence[tuple[str, Facts]], called: Callable[[str], str]) -> float:
    """The value of white that all deep images of a set share: of whole numbers the largest of as many bits as the set
    uses, 8 at least and 16 at most; of fractions 1; 0 where no image is deep. Raises ValueError where it cannot tell.
    """
    deep = [(each.low, each.high, each.kind, name) for name, each in facts if each.kind]
    if not deep:
        return 0
    low, (_, high, _, name) = min(deep)[0], max(deep, key=lambda each: each[1])
    kinds = {kind for _, _, kind, _ in deep}
    if kinds == {"i"} and low >= 0 and high < 2**16:
        return 2 ** max(8, int(high).bit_length()) - 1
    if kinds == {"f"} and low >= 0 and high <= 1:
        return 1
    images = counted(len(deep), "image", "images")
    raise ValueError(
        f"{called(name)} cannot be read as an image (its white is not known: {images} of 16 or 32 bits a channel, "
        f"whose numbers reach from {low:g} to {high:g}); give the value of white with --white, or save them with 8 bits"
    )
