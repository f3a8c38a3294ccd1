"""Any image dataset that Hugging Face `datasets` reads: a folder, or a repository of the hub."""

import os
import sys
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from torch import Tensor

from ddae.datasets.images import HELD_OUT, Images, decode, fifth_as_test

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "class", "fine_label")
REMEDY = "mend it with datasets, save_to_disk it and name that folder"


def hugging_face(name: str, image_size: int) -> Images:
    """name: a hub id `owner/name[@revision]`, a folder of save_to_disk, or one that datasets.load_dataset reads.

    Test is the first of the splits in HELD_OUT that has labels, else a fixed fifth of every class.
    The fingerprint rests on all labels, the sizes of all encoded images and the bytes of at most 256 of them: the same
    on every machine, which HF's own is not.
    """
    import datasets

    splits = _load(name)
    if "train" not in splits:
        raise ValueError(f"dataset={name!r} has the splits {', '.join(splits)}; one must be called train: {REMEDY}")
    train = splits["train"]
    image, label = _columns(name, train.features)
    parts, values = [train], _labels(name, train, "train", label)
    for held_out in (split for split in HELD_OUT if split in splits):
        test = splits[held_out]
        if any(test.features.get(column) != train.features[column] for column in (image, label)):
            raise ValueError(
                f"dataset={name!r}: {image} or {label} differs in type between train and {held_out}: {REMEDY}"
            )
        if found := _labels(name, test, held_out, label):
            parts, values = [train, test], values + found
            break
    used, labels = np.unique(values, return_inverse=True)
    order, num_train = (np.arange(len(values)), len(train)) if len(parts) > 1 else fifth_as_test(labels)
    to_name = getattr(train.features[label], "int2str", str)
    classes, labels = tuple(to_name(value) for value in used.tolist()), labels[order]
    encoded = datasets.concatenate_datasets([part.select_columns(image) for part in parts])
    encoded = encoded.cast_column(image, datasets.Image(decode=False))

    def sources(rows: np.ndarray) -> list[tuple[str, str | BytesIO]]:
        images = encoded[order[rows].tolist()][image]
        return [(f"image {order[row]} of {name}", _source(each)) for row, each in zip(rows, images, strict=True)]

    def read(rows: np.ndarray) -> Tensor:
        return decode(sources(rows), image_size)

    stamp = xxhash.xxh3_128(repr((image_size, num_train, classes)).encode())
    stamp.update(labels.tobytes())
    stamp.update(_sizes(encoded, image)[order].tobytes())
    for _, source in sources(np.arange(len(order))[:: 1 + len(order) // 256]):
        stamp.update(source.getvalue() if isinstance(source, BytesIO) else Path(source).read_bytes())
    return Images(classes, labels, num_train, read, stamp.hexdigest())


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
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"dataset={name!r} is neither a known name nor a folder of images, and Hugging Face does not load it "
            f"({type(error).__name__}: {reason}); check the name and the network, or {REMEDY}"
        ) from error
    return found if isinstance(found, dict) else {"train": found}


def _columns(name: str, features: Mapping[str, Any]) -> tuple[str, str]:
    """The columns of the images and of the labels: by type, and by name where several may be meant."""
    from datasets import ClassLabel

    images = [column for column, feature in features.items() if _is_image(feature)]
    labels = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    labels += [column for column in LABEL_COLUMNS if column not in labels and _is_plain(features.get(column))]
    return _pick(name, features, "image", images, IMAGE_COLUMNS), _pick(name, features, "label", labels, LABEL_COLUMNS)


def _pick(name: str, features: Mapping[str, Any], what: str, found: Sequence[str], usual: Sequence[str]) -> str:
    if len(found) == 1:
        return found[0]
    for column in usual:
        if column in found:
            return column
    columns = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
    raise ValueError(
        f"dataset={name!r} has {len(found) or 'no'} {what} columns among {columns}, and none called "
        f"{' or '.join(usual)}: {REMEDY}"
    )


def _is_image(feature: Any) -> bool:
    """Parquet files of other writers lack the type, and have its two fields."""
    return type(feature).__name__ == "Image" or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _is_plain(feature: Any) -> bool:
    return getattr(feature, "dtype", "").startswith(("int", "uint", "string", "large_string", "bool", "float"))


def _labels(name: str, split: "Dataset", split_name: str, column: str) -> list:
    """One a row; nothing where a whole test split is unlabelled."""
    values = split.select_columns(column)[:][column]
    missing = sum(value is None or value == -1 or value != value for value in values)
    if missing == len(values) and split_name != "train":
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
