"""Images by name: train, val and test, where val is always carved from the official train split."""

import logging
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import xxhash

from ddae.datasets.checks import find_twins, is_uneven, notes_of, seen_notes, summary
from ddae.datasets.hugging_face import ARCHIVES, METADATA, data_files, hugging_face
from ddae.datasets.images import (
    Images,
    class_folders,
    image_folder,
    is_image,
    splits_of,
    stratified,
)
from ddae.datasets.named import ASSETS, DATASETS, folders_of
from ddae.datasets.scan import Reading
from ddae.datasets.spellings import HELD_OUT, TRAIN, called
from ddae.nearest import did_you_mean
from ddae.units import counted

log = logging.getLogger("ddae")

OPENED = Reading()
"""Every image is opened first."""
HUGGING_FACE_FILES = ("dataset_dict.json", "state.json", *METADATA)
"""By which a folder is known as one for HF `datasets` even where it has sub-folders of images."""
GUESSED = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation"}
"""Folders at any depth that Hugging Face takes for splits."""
HUB_ID = r"\w[\w.-]*/\w[\w.-]*(@.+)?"


@dataclass(frozen=True)
class Dataset:
    """Disjoint row numbers of train, val and test. Each order is a fixed shuffle, so a prefix is a fair sample."""

    name: str
    images: Images
    splits: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()
    """The classes and the sizes of the splits, then what is left out and what else is to be known; a line each."""
    twins: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Which images of val and of test have the very pixels of one that comes before, bool [n]; empty where not all
    images were opened."""

    @property
    def num_classes(self) -> int:
        return len(self.images.classes)

    def labels(self, split: str) -> np.ndarray:
        """int64 [N], in the order of the split's rows."""
        return self.images.labels[self.splits[split]]


def load_dataset(
    name: str,
    image_size: int,
    data_root: str = "data",
    seed: int = 0,
    val_fraction: float = 0.2,
    reading: Reading = OPENED,
    num_channels: int = 3,
) -> Dataset:
    """A dataset by its name in DATASETS, any folder of images with one sub-folder a class, or any image dataset of
    Hugging Face: a folder that `datasets` reads, or a hub id `owner/name[@revision]`.

    image_size: side in pixels to which image files are resized and cropped; sets that are one array keep their own.
    data_root: where the named sets lie or are downloaded to.
    reading: how the files are read. Where it says check, what a person should know of the set is logged as warnings.
    seed: decides which training images are val, and the order of every split.
    num_channels: of the pixels that the network takes; that one of a single channel sees no colours is said.
    Raises ValueError for an unknown name, missing files, an empty folder, fewer than two classes, a class that is only
    in test, or an unreadable image.
    """
    images = load_images(name, image_size, data_root, reading)
    if len(images.classes) < 2:
        raise ValueError(
            f"dataset={name!r} has {counted(len(images.classes), 'class', 'classes')} ({', '.join(images.classes)}); "
            "a probe needs at least 2: give a folder with one sub-folder a class"
        )
    unseen = np.setdiff1d(images.labels[images.num_train :], images.labels[: images.num_train])
    if len(unseen):
        raise ValueError(
            f"dataset={name!r} has test images of {counted(len(unseen), 'class', 'classes')} without a training "
            f"image, such as {images.classes[unseen[0]]!r}; give every class training images, or remove it"
        )
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction={val_fraction} must lie between 0 and 1, both excluded; the default is 0.2")
    splits = split_rows(images, seed, val_fraction)
    notes, twins = (summary(images, splits), *images.notes), find_twins(images, splits)
    if reading.check:
        notes += tuple(notes_of(images, splits, twins, num_channels))
        for note in notes[1:]:
            log.warning(f"{name}: {note}")
    return Dataset(name, images, splits, notes, twins)


def load_images(name: str, image_size: int, data_root: str = "data", reading: Reading = OPENED) -> Images:
    """The images of load_dataset before val is carved from train; its arguments. What is left out is in their notes."""
    images = _images(name, image_size, str(Path(data_root).expanduser().absolute()), reading)
    if not reading.group_by:
        return images
    if images.groups is None:
        raise ValueError(f"group_by={reading.group_by!r}: dataset={name!r} has no files or columns to group by")
    hashed = xxhash.xxh3_128(images.fingerprint.encode() + images.groups.tobytes()).hexdigest()
    return replace(images, fingerprint=hashed, old_fingerprint="")


def split_rows(images: Images, seed: int, val_fraction: float) -> dict[str, np.ndarray]:
    """Row numbers of train, val (the same fraction of every class of the official train split) and test."""
    rng = np.random.default_rng(seed)
    groups = None if images.groups is None else images.groups[: images.num_train]
    train, val = stratified(images.labels[: images.num_train], val_fraction, rng, groups)
    test = rng.permutation(np.arange(images.num_train, len(images.labels)))
    splits = {"train": train, "val": val, "test": test}
    for split, rows in splits.items():
        if len(rows) == 0:
            raise ValueError(
                f"the {split} split is empty: {images.num_train} training images are too few; give 5 a class or more"
            )
    return splits


def _images(name: str, image_size: int, data_root: str, reading: Reading) -> Images:
    if not name:
        raise ValueError("dataset='' is empty; give a name or a folder, as . for this one")
    if name in DATASETS:
        _check_no_column(name, reading)
        try:
            return DATASETS[name](data_root, image_size, reading)
        except ValueError:
            raise
        except Exception as error:  # the disk, the network, torchvision and scipy raise a dozen classes
            raise ValueError(
                f"dataset={name!r} is not whole in --data-root={data_root} and cannot be downloaded "
                f"({type(error).__name__}: {error}); connect to the network, or put its files there"
            ) from error
    if Path(name).is_dir():
        try:
            return _folder(Path(name), image_size, reading)
        except OSError as error:
            raise ValueError(
                f"dataset={name!r}: {error.filename} cannot be read ({error.strerror}); mend it, or remove it"
            ) from error
    if Path(name).is_file():
        inside = "unpack it, and give" if name.endswith(ARCHIVES) else "give the folder that it lies in, or"
        raise ValueError(f"dataset={name!r} is a file; {inside} a folder with one sub-folder of images a class")
    if re.fullmatch(HUB_ID, name):
        return hugging_face(name, image_size, reading)
    if Path(name).is_absolute():
        raise ValueError(
            f"dataset={name!r} is neither a known name nor a folder; if it was moved, put a link to it there: "
            f"ln -s THERE {shlex.quote(os.path.normpath(name))}"
        )
    raise ValueError(
        f"dataset={name!r} is neither a known name nor a folder; known: {', '.join(DATASETS)}; "
        "or give a folder with one sub-folder of images a class, or a Hugging Face dataset as owner/name[@revision]"
        f"{did_you_mean(name, DATASETS)}"
    )


def _check_no_column(name: str, reading: Reading) -> None:
    if reading.label_column:
        raise ValueError(
            f"label_column={reading.label_column!r} is for Hugging Face sets, and dataset={name!r} is none; leave "
            "--label-column out"
        )


def _folder(root: Path, image_size: int, reading: Reading) -> Images:
    """An image folder where it is one, else whatever HF `datasets` makes of its files."""
    if _is_hugging_face(root):
        _check_any(root)
        _check_sorted(root)
        return hugging_face(str(root), image_size, reading)
    _check_no_column(str(root), reading)
    return image_folder(root, image_size, reading)


def _is_hugging_face(root: Path) -> bool:
    parts = [root, *(root / name for name in called(os.listdir(root), (*TRAIN, *HELD_OUT)))]
    if any((part / file).exists() for part in parts for file in HUGGING_FACE_FILES):
        return True
    return not class_folders(root / splits_of(root)[0]) and any(path.is_file() for path in root.rglob("*"))


def _check_any(root: Path) -> None:
    """Raises ValueError where a folder has files, and none that Hugging Face may read."""
    if data_files(root) or any((root / name).exists() for name in ("dataset_dict.json", "state.json")):
        return
    files = [path for path in root.rglob("*") if path.is_file() and path.name[0] != "."]
    kinds = Counter(path.suffix or "no suffix" for path in files).most_common(3)
    listed = ", ".join(f"{number:,} of {suffix}" for suffix, number in kinds)
    raise ValueError(
        f"dataset={str(root)!r} has no images that are read; its files are {listed}. Save them as PNG or JPEG, called "
        "so, with one sub-folder a class"
    )


def _check_sorted(root: Path) -> None:
    """Raises ValueError where Hugging Face would guess splits and classes of images from the names of folders, and may
    guess otherwise than a person: test images would be trained on."""
    files = data_files(root)
    images = [path for path in files if is_image(path.name)]
    if 2 * len(images) <= len(files) or any(path.name in HUGGING_FACE_FILES for path in files):
        return  # Hugging Face takes the kind of file that is the most frequent
    holders = sorted({path.parent.relative_to(root) for path in images})
    if all(len(GUESSED.intersection(each.parts[:-1])) == 1 and each.name not in GUESSED for each in holders):
        return  # data/train/<class>/ and data/test/<class>/
    train = splits_of(root)[0]
    if train == "." and (parents := sorted({str(each.parent) for each in holders if len(each.parts) > 1})):
        if len(parents) == 1:
            raise ValueError(f"the class folders of dataset={str(root)!r} are in {parents[0]}; give that as --dataset")
        raise ValueError(
            f"dataset={str(root)!r}: {', '.join(parents[:5])}{', ...' * (len(parents) > 5)} hold folders of images, "
            "and which is train cannot be told; rename the splits to train/ and test/ in one folder and give that, or "
            "give as --dataset the one that holds the training images; if they are classes, move their images up"
        )
    if train == "." or Path(train) in holders:
        others = [
            str(each) for each in holders if len(each.parts) == 1 and not called([str(each)], (*TRAIN, *HELD_OUT))
        ]
        reason = "its images lie in no class folders"
        if train != ".":
            reason = f"the images in {train}/ lie in no class folders"
        remedy = f"; if {train} is a class as {', '.join(others[:5])} are, rename it" if others else ""
        raise ValueError(
            f"dataset={str(root)!r}: {reason}; make one sub-folder a class{f' in {train}/' * (train != '.')}, or name "
            f"the class of each image in a metadata.csv of the columns file_name and label{remedy}"
        )


__all__ = [
    "ASSETS",
    "DATASETS",
    "Dataset",
    "Images",
    "Reading",
    "folders_of",
    "is_uneven",
    "load_dataset",
    "load_images",
    "seen_notes",
    "split_rows",
    "stratified",
]
