"""Images by name: train, val and test, where val is always carved from the official train split."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

ASSETS = Path(__file__).parent / "assets"
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
HELD_OUT = ("test", "val", "valid", "validation")
IDX_FOLDERS = ("{data_root}/FashionMNIST/raw", "/usr/share/datasets/fashion-mnist")


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
    """Hash of what decides the pixels."""


@dataclass(frozen=True)
class Dataset:
    """Disjoint row numbers of train, val and test. Each order is a fixed shuffle, so a prefix is a fair sample."""

    name: str
    images: Images
    splits: dict[str, np.ndarray]

    @property
    def num_classes(self) -> int:
        return len(self.images.classes)

    def labels(self, split: str) -> np.ndarray:
        """int64 [N], in the order of the split's rows."""
        return self.images.labels[self.splits[split]]


def load_dataset(
    name: str, image_size: int, data_root: str = "data", seed: int = 0, val_fraction: float = 0.2
) -> Dataset:
    """A dataset by its name in DATASETS, or any folder of images with one sub-folder a class.

    image_size: side in pixels to which files of a folder are resized and cropped; the named sets keep their own.
    seed: decides which training images are val, and the order of every split.
    Raises ValueError for an unknown name, an empty folder, fewer than two classes or an unreadable image.
    """
    if name in DATASETS:
        images = DATASETS[name](data_root)
    elif Path(name).is_dir():
        images = image_folder(Path(name), image_size)
    else:
        raise ValueError(
            f"dataset={name!r} is neither a known name nor a folder; known: {', '.join(DATASETS)}; "
            "or give a folder with one sub-folder of images a class"
        )
    if len(images.classes) < 2:
        raise ValueError(
            f"dataset={name!r} has {len(images.classes)} class ({', '.join(images.classes)}); "
            "a probe needs at least 2: give a folder with one sub-folder a class"
        )
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction={val_fraction} must lie between 0 and 1, both excluded; the default is 0.2")
    return Dataset(name, images, split_rows(images, seed, val_fraction))


def split_rows(images: Images, seed: int, val_fraction: float) -> dict[str, np.ndarray]:
    """Row numbers of train, val (the same fraction of every class of the official train split) and test."""
    rng = np.random.default_rng(seed)
    train, val = stratified(images.labels[: images.num_train], val_fraction, rng)
    test = rng.permutation(np.arange(images.num_train, len(images.labels)))
    splits = {"train": train, "val": val, "test": test}
    for split, rows in splits.items():
        if len(rows) == 0:
            raise ValueError(f"the {split} split is empty: {images.num_train} training images are too few")
    return splits


def stratified(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two shuffled, disjoint lists of row numbers, the second with `fraction` of every class (at least one row
    where the class has two or more)."""
    order = rng.permutation(len(labels))
    second = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        num_second = round(len(rows) * fraction)
        second[rows[: max(num_second, 1) if len(rows) > 1 else 0]] = True
    # Shuffled anew: the second list has taken the first rows of every class, so what is left begins with the classes
    # that filled their share first.
    return rng.permutation(np.flatnonzero(~second)), rng.permutation(np.flatnonzero(second))


def fashion_mnist_8k(data_root: str) -> Images:
    """6,000 training and 2,000 test images of Fashion-MNIST (MIT licence), shipped with the package."""
    return _idx_images(ASSETS / "fashion-mnist-8k")


def fashion_mnist(data_root: str) -> Images:
    """Fashion-MNIST, 60,000 + 10,000 (Xiao et al. 2017): the idx files where they lie, else torchvision's download."""
    folders = [Path(folder.format(data_root=data_root)) for folder in IDX_FOLDERS]
    for folder in folders:
        if (folder / "train-images-idx3-ubyte.gz").exists():
            return _idx_images(folder)
    from torchvision.datasets import FashionMNIST

    _download(lambda: FashionMNIST(data_root, download=True), "fashion-mnist")
    return _idx_images(folders[0])


def cifar10(data_root: str) -> Images:
    """CIFAR-10, 50,000 + 10,000 (Krizhevsky 2009), through torchvision."""
    from torchvision.datasets import CIFAR10

    train, test = _download(lambda: [CIFAR10(data_root, train=t, download=True) for t in (True, False)], "cifar10")
    pixels = torch.from_numpy(np.concatenate([train.data, test.data])).permute(0, 3, 1, 2)
    labels = np.array(train.targets + test.targets, dtype=np.int64)
    return _in_memory(pixels, labels, tuple(train.classes), num_train=len(train))


def digits(data_root: str) -> Images:
    """scikit-learn's 1,797 8x8 digits; a fixed fifth of every class is the test split."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.from_numpy(np.round(data.images * (255 / 16)).astype(np.uint8))[:, None]
    train, test = stratified(data.target, 0.2, np.random.default_rng(0))
    rows = np.concatenate([train, test])
    labels = data.target[rows].astype(np.int64)
    return _in_memory(pixels[rows], labels, tuple(map(str, range(10))), num_train=len(train))


DATASETS: dict[str, Callable[[str], Images]] = {
    "fashion-mnist-8k": fashion_mnist_8k,
    "fashion-mnist": fashion_mnist,
    "digits": digits,
    "cifar10": cifar10,
}


def image_folder(root: Path, image_size: int) -> Images:
    """Images in root/<class>/, or in root/train/<class>/ with root/test/<class>/ (or val, valid, validation) beside it.

    Without a held-out folder a fixed fifth of every class is the test split. Files are read when they are needed,
    turned to RGB, resized (shorter side) and centre-cropped to image_size.
    """
    train_root = root / "train" if (root / "train").is_dir() else root
    held_out = next((root / name for name in HELD_OUT if (root / name).is_dir()), None) if train_root != root else None
    classes = tuple(
        sorted(p.name for p in train_root.iterdir() if p.is_dir() and p.name[0] not in "._" and any(_images_in(p)))
    )
    train_files, train_labels = _list_files(train_root, classes)
    if not train_files:
        raise ValueError(
            f"no images in {train_root}; expected one sub-folder a class with files ending in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    if held_out is None:
        train, test = stratified(train_labels, 0.2, np.random.default_rng(0))
        rows = np.concatenate([train, test])
        files, labels, num_train = [train_files[i] for i in rows], train_labels[rows], len(train)
    else:
        test_files, test_labels = _list_files(held_out, classes)
        files, labels = train_files + test_files, np.concatenate([train_labels, test_labels])
        num_train = len(train_files)
    stamp = xxhash.xxh3_128(f"{image_size}".encode())
    for file in files:
        stat = file.stat()
        stamp.update(f"{file.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}".encode())

    def read(rows: np.ndarray) -> Tensor:
        return torch.stack([_read_image(files[row], image_size) for row in rows])

    return Images(classes, labels, num_train, read, stamp.hexdigest())


def _images_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) if folder.is_dir() else []


def _list_files(root: Path, classes: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    files, labels = [], []
    for label, name in enumerate(classes):
        found = _images_in(root / name)
        files += found
        labels += [label] * len(found)
    return files, np.array(labels, dtype=np.int64)


def _read_image(path: Path, size: int) -> Tensor:
    """uint8 [3, size, size]."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); repair or remove the file") from error
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def _idx_images(folder: Path) -> Images:
    """The four idx files of Fashion-MNIST, padded with zeros from 28x28 to 32x32."""
    pixels, labels = [], []
    for split in ("train", "t10k"):
        pixels.append(_read_idx(folder / f"{split}-images-idx3-ubyte.gz", header=16).reshape(-1, 28, 28))
        labels.append(_read_idx(folder / f"{split}-labels-idx1-ubyte.gz", header=8))
    padded = np.pad(np.concatenate(pixels), ((0, 0), (2, 2), (2, 2)))
    classes = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    tensor = torch.from_numpy(padded)[:, None]
    return _in_memory(tensor, np.concatenate(labels).astype(np.int64), classes, num_train=len(pixels[0]))


def _read_idx(path: Path, header: int) -> np.ndarray:
    try:
        with gzip.open(path) as file:
            return np.frombuffer(file.read(), dtype=np.uint8, offset=header)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a gzipped idx file ({error}); fetch it again") from error


def _in_memory(pixels: Tensor, labels: np.ndarray, classes: tuple[str, ...], num_train: int) -> Images:
    """pixels: uint8 [N, 1 or 3, H, W]."""
    fingerprint = xxhash.xxh3_128(pixels.contiguous().numpy().data).hexdigest()

    def read(rows: np.ndarray) -> Tensor:
        return pixels[torch.from_numpy(np.asarray(rows))].expand(-1, 3, -1, -1)

    return Images(classes, labels, num_train, read, fingerprint)


def _download(fetch: Callable, name: str):
    """fetch(), with a network or disk failure turned into one line."""
    try:
        return fetch()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"dataset={name!r} is not on this machine and cannot be downloaded ({error}); connect to the network, "
            "or put torchvision's files under --data-root"
        ) from error
