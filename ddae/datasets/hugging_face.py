"""Any image dataset that Hugging Face `datasets` reads: a folder, or a repository of the hub."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from torch import Tensor

from ddae.datasets.images import IMAGE_SUFFIXES, Images, fifth_as_test, is_image
from ddae.datasets.pixels import decode
from ddae.datasets.scan import Reading, learn, scan_sources, stride
from ddae.datasets.spellings import HELD_OUT, TRAIN, called

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "fine_label", "coarse_label")
"""Plain columns that are taken for the classes."""
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TABLES = (".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl")
REMEDY = "mend it with datasets, save_to_disk it and name that folder"


def hugging_face(name: str, image_size: int, reading: Reading) -> Images:
    """name: a hub id `owner/name[@revision]`, a folder of save_to_disk, or one that datasets.load_dataset reads.

    Test is the first of the splits in HELD_OUT that has labels, else a fixed fifth of every class.
    The fingerprint rests on all labels, the sizes of all encoded images and the bytes of at most 256 of them: the same
    on every machine, which HF's own is not.
    """
    import datasets

    splits = _load(name)
    table = _joined(name, splits, reading)
    notes = table.notes + _unnamed(name, splits)
    encoded = datasets.concatenate_datasets([part.select_columns(table.image) for part in table.parts])
    encoded = encoded.cast_column(table.image, datasets.Image(decode=False))

    def sources(rows: np.ndarray) -> list[str | BytesIO]:
        return [_source(each) for each in encoded[rows.tolist()][table.image]]

    def name_of(row: int | str) -> str:
        source = _source(encoded[int(row)][table.image])
        return f"image {row} of {name}" if isinstance(source, BytesIO) else source

    rows = np.setdiff1d(np.arange(len(encoded)), np.array(reading.left_out, dtype=int))
    digests: list[str] = []
    if reading.check:
        opened = rows[:: stride(len(rows))]
        facts = scan_sources(name, (sources(some) for some in np.array_split(opened, 1 + len(opened) // 256)))
        reading, more = learn(reading, list(map(str, opened)), facts, name_of, len(rows))
        notes += more
        rows = np.setdiff1d(rows, np.array(reading.left_out, dtype=int))
        digests = [each.digest for each in facts if not each.error] if len(opened) >= len(rows) else []
    used, labels = np.unique([table.labels[row] for row in rows], return_inverse=True)
    groups = None if table.groups is None else table.groups[rows]
    num_train = int((rows < len(table.parts[0])).sum())
    order = np.arange(len(rows))
    if len(table.parts) == 1:
        order, num_train = fifth_as_test(labels, groups)
    classes, labels, place = tuple(table.to_name(value) for value in used.tolist()), labels[order], rows[order]

    def read(wanted: np.ndarray) -> Tensor:
        found = place[wanted]
        return decode(
            zip((f"image {row} of {name}" for row in found), sources(found), strict=True), image_size, reading.white
        )

    stamp = xxhash.xxh3_128(repr((image_size, num_train, classes)).encode())
    stamp.update(labels.tobytes())
    stamp.update(_sizes(encoded, table.image)[place].tobytes())
    for source in sources(place[:: 1 + len(place) // 256]):
        stamp.update(source.getvalue() if isinstance(source, BytesIO) else Path(source).read_bytes())
    old = stamp.hexdigest()
    stamp.update(f"{reading.shown} {reading.white:g}".encode() if reading.shown else b"")
    return Images(
        classes, labels, num_train, read, stamp.hexdigest(), reading, tuple(notes),
        tuple(digests[row] for row in order) if digests else (), None if groups is None else groups[order],
        old_fingerprint=old,
        has_own_test=len(table.parts) > 1,
    )  # fmt: skip


def _unnamed(name: str, splits: "Mapping[str, Dataset]") -> list[str]:
    """A note on the images of a folder with metadata that are in no row."""
    import datasets

    files = data_files(Path(name)) if Path(name).is_dir() else []
    if not any(path.name in METADATA for path in files):
        return []
    known = set()
    columns = [(rows, image) for rows in splits.values() for image in _images(rows.features)[0]]
    for part, image in columns:
        found = part.select_columns(image).cast_column(image, datasets.Image(decode=False))[:][image]
        known |= {os.path.realpath(each["path"]) for each in found if each and each.get("path")}
    images = [path for path in files if is_image(path.name)]
    left = sorted(str(path) for path in images if os.path.realpath(path) not in known)
    if not left:
        return []
    return [f"left out {len(left):,} of {len(images):,} images that the metadata does not name, such as {left[0]}"]


def _remedy_for(folder: Path) -> str:
    """What to do about files of a local folder that `datasets` stumbles over."""
    import pyarrow.parquet as pq

    for path in sorted(folder.rglob("*")):
        if path.name.lower().endswith(ARCHIVES):
            return f"unpack {path}, and remove it"
        with suppress(OSError, ValueError):  # damaged, which the reason says
            if (
                path.is_file()
                and path.stat().st_size < 1000
                and path.read_bytes().startswith(b"version https://git-lfs")
            ):
                return f"{path} is a pointer of Git LFS in place of the file; fetch that with `git lfs pull`"
            if path.suffix == ".parquet" and not pq.read_metadata(path).num_rows:
                return f"remove {path}, which has no rows"
    return ""


@dataclass(frozen=True)
class Table:
    """The rows of train, then those of test where there is one."""

    parts: "list[Dataset]"
    image: str
    labels: list
    groups: np.ndarray | None
    to_name: Callable[[Any], str]
    notes: list[str]


def _joined(name: str, splits: "Mapping[str, Dataset]", reading: Reading) -> Table:
    first = next(iter(called(splits, TRAIN)), None)
    if first is None:
        raise ValueError(
            f"dataset={name!r} has the splits {', '.join(splits)}; one must be called train: rename the one that holds "
            f"the training images, or {REMEDY}"
        )
    train = splits[first]
    image = _pick(name, train.features, "image", *_images(train.features))
    if "label" in train.features and not (_is_plain(train.features["label"]) or reading.label_column):
        raise ValueError(
            f"dataset={name!r}: label is not one number or text an image; name the column that is with "
            f"--label-column; columns: {_listed(train.features)}"
        )
    label = reading.label_column or _pick(name, train.features, "label", *_label_columns(train.features))
    for flag, column in (("label_column", reading.label_column), ("group_by", reading.group_by)):
        if column and not (column in train.features and _is_plain(train.features[column])):
            raise ValueError(
                f"{flag}={column!r} is no column of dataset={name!r} with one number or text an image; columns: "
                f"{_listed(train.features)}"
            )
    notes, parts, values = [], [train], _labels(name, train, first, label)
    others = [column for column in _label_columns(train.features)[0] if column != label]
    if len(set(values)) == len(values) > (1 if others else 9):  # fewer may be classes of too few images
        which = f", such as {', '.join(others)}" if others else ""
        raise ValueError(
            f"dataset={name!r}: {label} has another value for each of the {len(values):,} images of {first}, so it is "
            f"no class; name the column that is with --label-column{which}; columns: {_listed(train.features)}"
        )
    unused = [split for split in splits if split != first]
    for held_out in called(splits, HELD_OUT):
        test = splits[held_out]
        unused.remove(held_out)
        if any(test.features.get(column) != train.features[column] for column in (image, label)) and len(test):
            raise ValueError(
                f"dataset={name!r}: {image} or {label} differs in type between {first} and {held_out}: {REMEDY}"
            )
        if len(test) and (of_test := _labels(name, test, held_out, label)):
            parts, values = [train, test], values + of_test
            break
        notes.append(f"left out the split {held_out} ({'no image has a label' if len(test) else 'it is empty'})")
    if unused:
        notes.append(f"left out the split{'s' * (len(unused) > 1)} {', '.join(unused)} (no split that is used)")
    if label != "label" or others:
        besides = f", not those of {', '.join(others)}; --label-column gives another" if others else ""
        notes.append(f"the classes are those of the column {label}{besides}")
    groups = None
    if any(reading.group_by not in part.features for part in parts if reading.group_by):
        raise ValueError(f"group_by={reading.group_by!r}: {held_out} of dataset={name!r} lacks the column: {REMEDY}")
    if reading.group_by:
        named = [each for part in parts for each in part.select_columns(reading.group_by)[:][reading.group_by]]
        if missing := sum(each is None or each != each for each in named):
            raise ValueError(
                f"group_by={reading.group_by!r}: {missing:,} of {len(named):,} images of dataset={name!r} have no "
                f"value in it (null or NaN); give each a group, or filter them out: {REMEDY}"
            )
        groups = np.unique(list(map(str, named)), return_inverse=True)[1]
    return Table(parts, image, values, groups, getattr(train.features[label], "int2str", str), notes)


def _load(name: str) -> "Mapping[str, Dataset]":
    import datasets
    from huggingface_hub import snapshot_download

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    repo, _, revision = name.partition("@")
    try:
        local = Path(name).is_dir()
        folder = name if local else snapshot_download(repo, repo_type="dataset", revision=revision or None)
        saved = any(Path(folder, file).exists() for file in ("dataset_dict.json", "state.json"))
        found = datasets.load_from_disk(folder) if saved else datasets.load_dataset(folder)
    except Exception as error:  # two libraries raise dozens of classes; each means that there is no such dataset
        cause: BaseException = error
        for _ in range(20):
            cause = cause.__cause__ or cause.__context__ or cause
        reason = " ".join(f"{error}{'' if cause is error else f' Its cause: {cause}'}".split())[:400]
        remedy = _remedy_for(Path(name)) or f"check the name and the network, or {REMEDY}"
        raise ValueError(
            f"dataset={name!r} is neither a known name nor a folder of images, and Hugging Face does not load it "
            f"({type(error).__name__}: {reason}); {remedy}"
        ) from error
    if not isinstance(found, dict):
        return {"train": found}
    if not (saved or called(found, HELD_OUT)) and (taken := _held_out_files(Path(folder))):
        raise ValueError(
            f"dataset={name!r}: {taken} is called like test images, and Hugging Face makes no split of it; rename the "
            "folders or files of the splits to train and test, or give what holds the training images alone"
        )
    return found


def _held_out_files(folder: Path) -> str:
    """The first folder or file of data that is called as held-out splits are, of a set whose card names no files."""
    card = folder / "README.md"
    if card.is_file() and "data_files" in card.read_text(encoding="utf-8", errors="replace"):
        return ""
    files = sorted(path.relative_to(folder) for path in data_files(folder))
    of_images = any(map(is_image, (path.name for path in files)))
    for path in files:
        parts = path.parts[:-1] if of_images else (*path.parts[:-1], path.name.split(".")[0].split("-")[0])
        for number, part in enumerate(parts, 1):
            if called([part], HELD_OUT):
                return os.path.join(*path.parts[:number])
    return ""


def data_files(folder: Path) -> list[Path]:
    """The files that `datasets` may read, at any depth."""
    return [
        path
        for path in folder.rglob("*")
        if path.name.lower().endswith((*IMAGE_SUFFIXES, *ARCHIVES, *TABLES))
        and not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
    ]


def _images(features: Mapping[str, Any]) -> tuple[list[str], Sequence[str]]:
    """The columns of images, and what they are usually called."""
    return [column for column, feature in features.items() if _is_image(feature)], IMAGE_COLUMNS


def _label_columns(features: Mapping[str, Any]) -> tuple[list[str], Sequence[str]]:
    """The columns that may be the classes, by type and by name, and what they are called where they surely are."""
    from datasets import ClassLabel

    columns = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    columns += [column for column in LABEL_COLUMNS if column not in columns and _is_plain(features.get(column))]
    return columns, ("label",)


def _pick(name: str, features: Mapping[str, Any], what: str, found: Sequence[str], usual: Sequence[str]) -> str:
    if len(found) == 1:
        return found[0]
    for column in usual:
        if column in found:
            return column
    remedy = "name it with --label-column" if what == "label" else REMEDY
    if what == "label" and len(features) == 1:
        remedy = "make one sub-folder of images a class, or name their classes in a metadata.csv of file_name and label"
    which = f" ({', '.join(found)})" if found else ""
    raise ValueError(
        f"dataset={name!r} has {len(found) or 'no'} {what} columns{which} among {_listed(features)}, and none called "
        f"{' or '.join(usual)}: {remedy}"
    )


def _listed(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())


def _is_image(feature: Any) -> bool:
    """Parquet files of other writers lack the type, and have its two fields."""
    return type(feature).__name__ == "Image" or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _is_plain(feature: Any) -> bool:
    return getattr(feature, "dtype", "").startswith(("int", "uint", "string", "large_string", "bool", "float"))


def _labels(name: str, split: "Dataset", split_name: str, column: str) -> list:
    """One a row; nothing where a whole test split is unlabelled."""
    values = split.select_columns(column)[:][column]
    missing = sum(value is None or value == -1 or value != value for value in values)
    if missing == len(values) and not called([split_name], TRAIN):
        return []
    if missing:
        raise ValueError(
            f"dataset={name!r}: {missing} of {len(values)} images of {split_name} have no label (null or -1); "
            f"filter them out: {REMEDY}"
        )
    if broken := [value for value in values if isinstance(value, float) and not value.is_integer()]:
        raise ValueError(f"dataset={name!r}: {column} has values such as {broken[0]}, which are no classes: {REMEDY}")
    return values


def _source(image: dict | None) -> str | BytesIO:
    image = image or {}
    return image["path"] if image.get("path") and image.get("bytes") is None else BytesIO(image.get("bytes") or b"")


def _sizes(encoded: "Dataset", column: str) -> np.ndarray:
    """int64 [N], bytes of each encoded image; of those in the table from its offsets alone."""
    import pyarrow.compute as pc

    images = encoded.with_format("arrow")[:][column]
    paths = pc.struct_field(images, "path")
    sizes = pc.binary_length(pc.struct_field(images, "bytes")).to_numpy(zero_copy_only=False).astype(float)
    for row in np.flatnonzero(np.isnan(sizes)):
        path = paths[row].as_py()
        sizes[row] = os.path.getsize(path) if path else -1
    return sizes.astype(np.int64)
