"""Images in one row order, from memory or from files that are decoded when they are read."""

import logging
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import xxhash
from torch import Tensor

log = logging.getLogger("ddae")

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
TRAIN = ("train", "training")
HELD_OUT = ("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation")
"""Names of splits in any case, the first choice first."""
NO_CLASSES = ("__MACOSX",)
"""Folders that unpacking leaves behind."""
DECODERS = min(8, os.cpu_count() or 1)
"""Threads; PIL lets go of the interpreter while it decodes, and two take half the time of one."""


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

    def __post_init__(self) -> None:
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ValueError(
                f"labels are {self.labels.min()} to {self.labels.max()}, and there are {len(self.classes)} classes; "
                "fetch the data again, or mend its labels"
            )


def in_memory(pixels: Tensor, labels: np.ndarray, classes: tuple[str, ...], num_train: int) -> Images:
    """pixels: uint8 [N, 1 or 3, H, W]."""
    if len(pixels) != len(labels):
        raise ValueError(f"there are {len(pixels)} images and {len(labels)} labels; fetch the data again")
    fingerprint = xxhash.xxh3_128(pixels.contiguous().numpy().data).hexdigest()

    def read(rows: np.ndarray) -> Tensor:
        return pixels[torch.from_numpy(np.asarray(rows))].expand(-1, 3, -1, -1)

    return Images(classes, labels, num_train, read, fingerprint)


def image_files(
    root: Path, files: Sequence[tuple[str, int, bool]], classes: Sequence[str], image_size: int, published: bool = True
) -> Images:
    """files: path below root, index into classes, whether it is a training image. Without a test image a fixed fifth of
    every class is the test split; classes without an image are left out.

    Files are turned to RGB, resized (shorter side) and centre-cropped to image_size. The fingerprint rests on all
    paths and labels, and on the sizes of at most 1,000 files where the set is a published one, whose names say what is
    in them (a resized copy differs); else on the sizes and times of all.
    """
    labels = np.array([label for _, label, _ in files], dtype=np.int64)
    is_train = np.array([train for _, _, train in files], dtype=bool)
    order, num_train = np.argsort(~is_train, kind="stable"), int(is_train.sum())
    if is_train.all():
        order, num_train = fifth_as_test(labels)
    paths = [files[row][0] for row in order]
    used, labels = np.unique(labels[order], return_inverse=True)
    stamp = xxhash.xxh3_128(f"{image_size} {num_train}".encode())
    stamp.update(os.fsencode("\n".join(paths)))
    stamp.update(labels.tobytes())
    for path in paths[:: 1 + len(paths) // 1000 if published else 1]:
        status = os.stat(os.path.join(root, path))
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{root / path} is named like an image and is no file; rename or remove it")
        stamp.update(b"%d %d " % (status.st_size, 0 if published else status.st_mtime_ns))

    def read(rows: np.ndarray) -> Tensor:
        found = [os.path.join(root, paths[row]) for row in rows]
        return decode(zip(found, found, strict=True), image_size)

    return Images(tuple(classes[label] for label in used), labels, num_train, read, stamp.hexdigest())


def image_folder(root: Path, image_size: int) -> Images:
    """Images in root/<class>/, or in root/train/<class>/ with root/test/<class>/ beside it (HELD_OUT has what else that
    may be called). What is left out is named in one line."""
    train, others = splits_of(root)
    held_out = next((name for name in others if class_folders(root / name)), None)
    images = class_images(root, image_size, train, held_out if train != "." else None)
    if left := left_out(root, [train, held_out] if held_out and train != "." else [train]):
        log.warning(f"{root}: left out {'; '.join(left)}")
    return images


def splits_of(root: Path) -> tuple[str, list[str]]:
    """The sub-folder of the training images, or "." where the folder has none, and those that may be held out."""
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    train, held_out = ([n for word in words for n in names if n.lower() == word] for words in (TRAIN, HELD_OUT))
    found = (name for name in train if name == "train" or class_folders(root / name))
    return next(found, "."), held_out


def left_out(root: Path, used: Sequence[str]) -> list[str]:
    """What of a folder is no part of the dataset, and why. used: the sub-folders that hold a split, or "."."""
    left = [] if "." in used else [f"{n} (no split that is used)" for n in visible(root) if n not in used]
    for split in used:
        folders = class_folders(root / split)
        empty = [n for n in visible(root / split) if n not in folders and (root / split / n).is_dir()]
        left += [f"{os.path.join(split, name)} (no images in it)" for name in empty]
        others = [
            os.path.join(split, name, file)
            for name, images in folders.items()
            for file in set(visible(root / split / name)).difference(images)
        ]
        if others:
            left.append(f"{len(others):,} files that by their names are no images, such as {min(others)}")
    return left


def visible(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name[0] != ".")


def class_images(
    root: Path,
    image_size: int,
    train: str,
    test: str | None,
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
    return image_files(root, files, list(folders), image_size, published)


def class_folders(root: Path, only: Iterable[str] | None = None) -> dict[str, list[str]]:
    """The sub-folders that have images -> the names of these. Nothing but names is asked of the file system, so that
    ImageNet's 1.28 million take seconds."""
    if only is None:
        only = [entry.name for entry in os.scandir(root) if entry.is_dir()] if root.is_dir() else []
    found, nested = {}, []
    for name in sorted(name for name in only if name[0] != "." and name not in NO_CLASSES):
        with os.scandir(root / name) as entries:
            listed = list(entries)
        images = sorted(e.name for e in listed if e.name[0] != "." and e.name.lower().endswith(IMAGE_SUFFIXES))
        if images:
            found[name] = images
        elif any(entry.is_dir() for entry in listed):
            nested.append(name)
    if found and nested:
        raise ValueError(f"{root / nested[0]} has folders instead of images; move its images up, or move it away")
    return found


def decode(sources: Iterable[tuple[str, "str | BytesIO | Image.Image"]], size: int) -> Tensor:
    """(what an error calls it, path, bytes or PIL image) of each image -> uint8 [N, 3, size, size]."""
    with ThreadPoolExecutor(DECODERS) as threads:
        return torch.stack(list(threads.map(lambda source: _decode(source[0], source[1], size), sources)))


def _decode(name: str, source: "str | BytesIO | Image.Image", size: int) -> Tensor:
    from PIL import Image, ImageOps

    try:
        with nullcontext(source) if isinstance(source, Image.Image) else Image.open(source) as image:
            upright: Image.Image = image
            with suppress(SyntaxError):  # damaged EXIF does not damage the pixels
                upright = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))  # convert() cuts it off at 255
            elif image.mode[0] in "IF":
                raise ValueError("its white is not known; 8 and 16 bits a channel are read, 32 are not")
            fitted = ImageOps.fit(upright.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    except Exception as error:  # damaged files raise errors of every class
        raise ValueError(f"{name} cannot be read as an image ({error}); repair or remove the file") from error
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def fifth_as_test(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """An order of the rows in which a fixed fifth of every class comes last, and where this begins."""
    train, test = stratified(labels, 0.2, np.random.default_rng(0))
    return np.concatenate([train, test]), len(train)


def stratified(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two shuffled, disjoint lists of row numbers, the second with `fraction` of every class (at least one row
    where the class has two or more)."""
    order = rng.permutation(len(labels))
    second = np.zeros(len(labels), dtype=bool)
    _, counts = np.unique(labels, return_counts=True)
    for rows in np.split(order[np.argsort(labels[order], kind="stable")], np.cumsum(counts)[:-1]):
        num_second = round(len(rows) * fraction)
        second[rows[: max(num_second, 1) if len(rows) > 1 else 0]] = True
    # Shuffled anew: the second list has taken the first rows of every class, so what is left begins with the classes
    # that filled their share first.
    return rng.permutation(np.flatnonzero(~second)), rng.permutation(np.flatnonzero(second))
