"""Images in one row order, from memory or from files that are decoded when they are read."""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import xxhash
from torch import Tensor

from ddae.datasets.pixels import decode
from ddae.datasets.scan import MANY, Reading, learn, scan_files, stride
from ddae.datasets.spellings import HELD_OUT, TRAIN, called, check_classes
from ddae.units import counted

IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tif", ".tiff", ".webp",
)  # fmt: skip
NO_CLASSES = ("__MACOSX",)
"""Folders that unpacking leaves behind."""


@dataclass(frozen=True)
class Images:
    """All images of a dataset in one row order: num_train official training images, then the test images."""

    classes: tuple[str, ...]
    labels: np.ndarray
    """int64 [N], an index into classes."""
    num_train: int
    read: Callable[[np.ndarray], Tensor]
    """row numbers [n] -> uint8 [n, 3, H, W]."""
    fingerprint: str
    """Hash of what decides the pixels, and of the labels where they lie apart from these."""
    reading: Reading = field(default_factory=Reading)
    """How they are read, with all that opening them has shown: a worker that is given it need not open them again."""
    notes: tuple[str, ...] = ()
    """What is left out of the set, and what a person should know of the rest; a line each."""
    digests: tuple[str, ...] = ()
    """A hash of each image's pixels; empty where not all were opened."""
    groups: np.ndarray | None = None
    """int64 [N]: images of one number stay together."""
    old_fingerprint: str = ""
    """Under which version 0.2 knew the same files; it may have shown them otherwise, which reading.shown says."""
    has_own_test: bool = True
    """Whether the test images are official, not a fifth of every class."""
    in_memory: bool = False
    """Whether reading them costs nothing."""

    def __post_init__(self) -> None:
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ValueError(
                f"labels are {self.labels.min()} to {self.labels.max()}, and there are {len(self.classes)} classes; "
                "fetch the data again, or mend its labels"
            )


def in_memory(
    pixels: Tensor, labels: np.ndarray, classes: tuple[str, ...], num_train: int, has_own_test: bool = True
) -> Images:
    """pixels: uint8 [N, 1 or 3, H, W]."""
    if len(pixels) != len(labels):
        raise ValueError(f"there are {len(pixels)} images and {len(labels)} labels; fetch the data again")
    fingerprint = xxhash.xxh3_128(pixels.contiguous().numpy().data).hexdigest()

    def read(rows: np.ndarray) -> Tensor:
        return pixels[torch.from_numpy(np.asarray(rows))].expand(-1, 3, -1, -1)

    digests = tuple(xxhash.xxh3_128(image.tobytes()).hexdigest() for image in pixels.numpy())
    return Images(
        classes, labels, num_train, read, fingerprint, digests=digests, has_own_test=has_own_test, in_memory=True
    )


def image_files(
    root: Path,
    files: Sequence[tuple[str, int, bool]],
    classes: Sequence[str],
    image_size: int,
    reading: Reading,
    published: bool = True,
) -> Images:
    """files: path below root, index into classes, whether it is a training image. Without a test image a fixed fifth of
    every class is the test split; classes without an image are left out.

    Files are shown as a person sees them, resized (shorter side) and centre-cropped to image_size. The fingerprint
    rests on all paths and labels, and on the sizes of at most 1,000 files where the set is a published one, whose names
    say what is in them (a resized copy differs); else on the bytes of all, of MANY or more on their sizes and times.
    """
    reading = replace(reading, profiles=not published)
    found = _scanned(root, files, classes, reading, published)
    files, reading = found.files, found.reading
    labels = np.array([label for _, label, _ in files], dtype=np.int64)
    is_train = np.array([train for _, _, train in files], dtype=bool)
    groups = groups_of([os.path.normpath(path) for path, _, _ in files], reading.group_by)
    order, num_train = np.argsort(~is_train, kind="stable"), int(is_train.sum())
    if is_train.all():
        order, num_train = fifth_as_test(labels, groups)
    paths = [files[row][0] for row in order]
    used, labels = np.unique(labels[order], return_inverse=True)

    def stamp(contents: Iterable[bytes]) -> str:
        hashed = xxhash.xxh3_128(f"{image_size} {num_train}".encode())
        hashed.update(os.fsencode("\n".join(paths)))
        hashed.update(labels.tobytes())
        for content in contents:
            hashed.update(content)
        hashed.update(f"{reading.shown} {reading.white:g}".encode() if reading.shown else b"")
        return hashed.hexdigest()

    status = [os.stat(os.path.join(root, path)) for path in paths[:: 1 + len(paths) // 1000 if published else 1]]
    old = stamp(b"%d %d " % (each.st_size, 0 if published else each.st_mtime_ns) for each in status)

    def read(rows: np.ndarray) -> Tensor:
        names = [os.path.join(root, paths[row]) for row in rows]
        return decode(zip(names, names, strict=True), image_size, reading.white, reading.profiles)

    return Images(
        classes=tuple(os.fsencode(classes[label]).decode(errors="backslashreplace") for label in used),
        labels=labels,
        num_train=num_train,
        read=read,
        fingerprint=stamp(found.contents[path].encode() for path in paths) if found.contents else old,
        reading=reading,
        notes=tuple(found.notes),
        digests=tuple(found.digests[path] for path in paths) if len(found.digests) >= len(paths) else (),
        groups=None if groups is None else groups[order],
        old_fingerprint=old,
        has_own_test=not is_train.all(),
    )


class _Scanned(NamedTuple):
    files: Sequence[tuple[str, int, bool]]
    """Without those that are left out."""
    reading: Reading
    notes: list[str]
    contents: dict[str, str]
    """path -> hash of its bytes; empty where these do not make the fingerprint"""
    digests: dict[str, str]
    """path -> hash of its pixels, of those that were opened"""


def _scanned(
    root: Path, files: Sequence[tuple[str, int, bool]], classes: Sequence[str], reading: Reading, published: bool
) -> _Scanned:
    out = set(reading.left_out)
    files = [file for file in files if file[0] not in out]
    for path, _, _ in files[:: 1 + len(files) // 1000] if published else ():
        os.stat(root / path)  # raises where the set is not whole
    by_content = not published and len(files) < MANY
    if not (reading.check or by_content):
        return _Scanned(files, reading, [], {}, {})
    paths = [path for path, _, _ in files[:: stride(len(files))]]
    hashes, facts = scan_files(root, paths, reading.check)
    contents = dict(zip(paths, hashes, strict=True)) if by_content else {}
    if not reading.check:
        return _Scanned(files, reading, [], contents, {})
    reading, notes = learn(reading, paths, facts, lambda path: str(root / path), len(files))
    out = set(reading.left_out)
    digests = {path: each.digest for path, each in zip(paths, facts, strict=True) if path not in out}
    sound = [file for file in files if file[0] not in out]
    if lost := {label for _, label, _ in files} - {label for _, label, _ in sound}:
        names = ", ".join(classes[label] for label in sorted(lost))
        notes.append(f"left out classes of which no image can be read: {names}")
    return _Scanned(sound, reading, notes, contents, digests)


def groups_of(paths: Sequence[str], pattern: str) -> np.ndarray | None:
    """int64 [N], one number for all paths in which the pattern's group is the same; None without a pattern."""
    if not pattern:
        return None
    try:
        compiled = re.compile(pattern)
        if compiled.groups != 1:
            raise re.error(f"it has {compiled.groups}; brackets that are none begin with (?:")
    except re.error as error:
        raise ValueError(
            f"group_by={pattern!r} must be a regular expression with one group in brackets ({error}), such as "
            "'(patient[0-9]+)'; it is searched in paths below the set's folder"
        ) from error
    names = [match.group(1) if (match := compiled.search(path)) else None for path in paths]
    if None in names:
        raise ValueError(f"group_by={pattern!r} is not found in {paths[names.index(None)]}; give what all paths hold")
    return np.unique(list(map(str, names)), return_inverse=True)[1]


def image_folder(root: Path, image_size: int, reading: Reading) -> Images:
    """Images in root/<class>/, or in root/train/<class>/ with root/test/<class>/ beside it (HELD_OUT has what else that
    may be called). What is left out is noted in one line."""
    train, others = splits_of(root)
    held_out = next((name for name in others if class_folders(root / name)), None)
    if train == ".":
        names = list(class_folders(root))
        check_classes(names)
        classes = [name for name in names if name not in others]
        taken = classes if len(classes) > 1 else None  # of two folders one may well be called test
        images = class_images(root, image_size, train, None, reading, taken)
        left = left_out(root, [train], others if taken else ())
    else:
        images = class_images(root, image_size, train, held_out, reading)
        left = left_out(root, [train, held_out] if held_out else [train])
    return replace(images, notes=(f"left out {'; '.join(left)}", *images.notes)) if left else images


def splits_of(root: Path) -> tuple[str, list[str]]:
    """The sub-folder of the training images, or "." where the folder has none, and those that may be held out."""
    names = [entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != "."]
    found = (name for name in called(names, TRAIN) if name == "train" or class_folders(root / name))
    return next(found, "."), called(names, HELD_OUT)


def left_out(root: Path, used: Sequence[str], no_classes: Sequence[str] = ()) -> list[str]:
    """What of a folder is no part of the dataset, and why. used: the sub-folders that hold a split, or ".". no_classes:
    folders among those of classes that are called as splits are."""
    left = [f"{name} (called like a split, and there is no train; rename it if it is a class)" for name in no_classes]
    if "." not in used:
        left += [f"{name} ({_why_unused(root / name)})" for name in visible(root) if name not in used]
    for split in used:
        folders = {name: files for name, files in class_folders(root / split).items() if name not in no_classes}
        names = visible(root / split)
        empty = [n for n in names if n not in (*folders, *no_classes) and (root / split / n).is_dir()]
        gone = [os.path.join(split, n) for n in names if not (root / split / n).exists()]
        left += [f"{name} (a link that leads nowhere)" for name in gone]
        left += [
            f"{os.path.join(split, name)} ({'unpacking leaves it' if name in NO_CLASSES else 'no images in it'})"
            for name in empty
        ]
        beside = [name for name in names if (root / split / name).is_file()]
        if beside:
            files = counted(len(beside), "file", "files")
            left.append(f"{files} beside the class folders, such as {os.path.join(split, beside[0])}")
        others = [
            os.path.join(split, name, file)
            for name, images in folders.items()
            for file in set(visible(root / split / name)).difference(images)
        ]
        below = sorted(path for path in others if (root / path).is_dir())
        others = sorted(set(others).difference(below))
        if num_below := sum(is_image(file) for path in below for _, _, files in os.walk(root / path) for file in files):
            images = counted(num_below, "image", "images")
            left.append(f"{images} in sub-folders of class folders, such as {below[0]}")
        hidden = [e.name for e in os.scandir(root / split) if e.name[0] == "." and e.is_dir()]
        hidden = sorted(name for name in hidden if any(map(is_image, os.listdir(root / split / name))))
        left += [
            f"{os.path.join(split, name)} (its name begins with a dot; rename it if it is a class)" for name in hidden
        ]
        if others:
            files = counted(len(others), "file that by its name is no image", "files that by their names are no images")
            left.append(f"{files}, such as {others[0]}")
    return left


def is_image(file: str) -> bool:
    """By its name."""
    return file[0] != "." and file.lower().endswith(IMAGE_SUFFIXES)


def _why_unused(path: Path) -> str:
    if called([path.name], HELD_OUT) and path.is_dir() and not class_folders(path):
        return "its images lie in no class folders"
    return "no split that is used"


def visible(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name[0] != ".")


def class_images(
    root: Path,
    image_size: int,
    train: str,
    test: str | None,
    reading: Reading,
    only: Iterable[str] | None = None,
    published: bool = False,
) -> Images:
    """Images in root/train/<class>/ and root/test/<class>/. only: the classes to take, all of them if None."""
    folders = class_folders(root / train, only)
    if not folders:
        raise ValueError(
            f"no images in {root / train}; expected one sub-folder a class with files ending in "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    held_out = class_folders(root / test, only) if test else {}
    differ = sorted(folders.keys() ^ held_out.keys()) if test else []
    if differ:
        raise ValueError(
            f"{root}: {train} and {test} must have the same class folders, with images in each; "
            f"{len(differ)} are in one only: {', '.join(differ[:5])}"
        )
    index = {name: label for label, name in enumerate(folders)}
    files = [
        (f"{part}/{name}/{file}", index[name], part == train)
        for part, found in ((train, folders), (test, held_out))
        for name, names in found.items()
        for file in names
    ]
    return image_files(root, files, list(folders), image_size, reading, published)


def class_folders(root: Path, only: Iterable[str] | None = None) -> dict[str, list[str]]:
    """The sub-folders that have images -> the names of these. Nothing but names is asked of the file system, so that
    ImageNet's 1.28 million take seconds."""
    if only is None:
        only = [entry.name for entry in os.scandir(root) if entry.is_dir()] if root.is_dir() else []
    found, nested = {}, []
    for name in sorted(name for name in only if name[0] != "." and name not in NO_CLASSES):
        with os.scandir(root / name) as entries:
            listed = list(entries)
        images = sorted(entry.name for entry in listed if is_image(entry.name))
        if images:
            found[name] = images
        elif any(entry.is_dir() for entry in listed):
            nested.append(name)
    if found and nested:
        raise ValueError(f"{root / nested[0]} has folders instead of images; move its images up, or move it away")
    return found


def fifth_as_test(labels: np.ndarray, groups: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """An order of the rows in which a fixed fifth of every class comes last, and where this begins."""
    train, test = stratified(labels, 0.2, np.random.default_rng(0), groups)
    return np.concatenate([train, test]), len(train)


def stratified(
    labels: np.ndarray, fraction: float, rng: np.random.Generator, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Two shuffled, disjoint lists of row numbers, the second with `fraction` of every class (at least one row
    where the class has two or more); of groups, which stay together, with about as much of it as they allow."""
    if groups is not None:
        return _whole_groups(labels, fraction, rng, groups)
    order = rng.permutation(len(labels))
    second = np.zeros(len(labels), dtype=bool)
    _, counts = np.unique(labels, return_counts=True)
    for rows in np.split(order[np.argsort(labels[order], kind="stable")], np.cumsum(counts)[:-1]):
        num_second = round(len(rows) * fraction)
        second[rows[: max(num_second, 1) if len(rows) > 1 else 0]] = True
    # Shuffled anew: the second list has taken the first rows of every class, so what is left begins with the classes
    # that filled their share first.
    return rng.permutation(np.flatnonzero(~second)), rng.permutation(np.flatnonzero(second))


def _whole_groups(labels: np.ndarray, fraction: float, rng: np.random.Generator, groups: np.ndarray):
    from sklearn.model_selection import StratifiedGroupKFold

    if (num_groups := len(np.unique(groups))) < 2:
        raise ValueError(f"group_by leaves {num_groups} group where two are needed to split it; give more of them")
    num_parts = min(num_groups, max(2, round(1 / fraction)))
    folds = StratifiedGroupKFold(num_parts, shuffle=True, random_state=int(rng.integers(2**31)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class of few images
        first, second = next(iter(folds.split(labels, labels, groups)))
    if lost := np.setdiff1d(labels, labels[first]).tolist():
        raise ValueError(
            f"group_by leaves {counted(len(lost), 'class', 'classes')} without a training image, because all images of "
            "such a class are of one group; give it more groups, or leave --group-by out"
        )
    return rng.permutation(first), rng.permutation(second)
