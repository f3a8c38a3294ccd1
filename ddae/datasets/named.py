"""The datasets that have a name. Where a set has train, val and test, train and val together are train, because val is
always carved anew; where the labels of test are not published, the official val is test."""

import gzip
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from ddae.datasets.images import Images, class_folders, class_images, fifth_as_test, image_files, in_memory
from ddae.datasets.scan import Reading

ASSETS = Path(__file__).parents[1] / "assets"
IDX_FOLDERS = ("{data_root}/FashionMNIST/raw", "/usr/share/datasets/fashion-mnist")
IMAGENET_50 = """
n01601694 n01669191 n01755581 n01770393 n01855672 n02018207 n02058221 n02096177 n02097130 n02099267
n02100877 n02104365 n02106030 n02114855 n02125311 n02133161 n02484975 n02489166 n02747177 n02906734
n03124170 n03272010 n03337140 n03483316 n03498962 n03710721 n03717622 n03733281 n03759954 n03775071
n03814639 n03837869 n03838899 n03854065 n03954731 n03983396 n04026417 n04200800 n04209239 n04311004
n04380533 n04428191 n04443257 n04509417 n04525305 n04554684 n04606251 n07583066 n07711569 n07753592
""".split()  # noqa: SIM905
"""The classes of SCAN (Van Gansbeke et al. 2020): data/imagenet_subsets/imagenet_50.txt of its repository."""


def fashion_mnist_8k(data_root: str, image_size: int, reading: Reading) -> Images:
    """6,000 training and 2,000 test images of Fashion-MNIST (MIT licence), shipped with the package."""
    return _idx_images(ASSETS / "fashion-mnist-8k")


def fashion_mnist(data_root: str, image_size: int, reading: Reading) -> Images:
    """Fashion-MNIST, 60,000 + 10,000 (Xiao et al. 2017): the idx files where they lie, else torchvision's download."""
    folders = [Path(folder.format(data_root=data_root)) for folder in IDX_FOLDERS]
    for folder in folders:
        if (folder / "train-images-idx3-ubyte.gz").exists():
            return _idx_images(folder)
    from torchvision.datasets import FashionMNIST

    FashionMNIST(data_root, download=True)
    return _idx_images(folders[0])


def digits(data_root: str, image_size: int, reading: Reading) -> Images:
    """scikit-learn's 1,797 8x8 digits; a fixed fifth of every class is the test split."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.from_numpy(np.round(data.images * (255 / 16)).astype(np.uint8))[:, None]
    rows, num_train = fifth_as_test(data.target)
    return in_memory(
        pixels[rows], data.target[rows].astype(np.int64), tuple(map(str, range(10))), num_train, has_own_test=False
    )


def cifar10(data_root: str, image_size: int, reading: Reading) -> Images:
    """CIFAR-10, 50,000 + 10,000 (Krizhevsky 2009), through torchvision."""
    from torchvision.datasets import CIFAR10

    train, test = (CIFAR10(data_root, train=part, download=True) for part in (True, False))
    pixels = torch.from_numpy(np.concatenate([train.data, test.data])).permute(0, 3, 1, 2)
    labels = np.array(train.targets + test.targets, dtype=np.int64)
    return in_memory(pixels, labels, tuple(train.classes), num_train=len(train))


def tiny_imagenet(data_root: str, image_size: int, reading: Reading) -> Images:
    """Tiny-ImageNet, 100,000 + 10,000 of 200 classes (Le & Yang 2015); the official val is test."""
    folder = _unpacked(data_root, "tiny-imagenet-200", "http://cs231n.stanford.edu/tiny-imagenet-200.zip")
    classes = sorted((folder / "wnids.txt").read_text().split())
    index = {wnid: label for label, wnid in enumerate(classes)}
    train = [
        (f"train/{wnid}/images/{file}", index[wnid], True)
        for wnid in classes
        for file in class_folders(folder / "train" / wnid, ["images"])["images"]
    ]
    lines = (folder / "val" / "val_annotations.txt").read_text().splitlines()
    val = [(f"val/images/{file}", index[wnid], False) for file, wnid, *_ in map(str.split, lines)]
    return image_files(folder, train + val, classes, image_size, reading)


def imagenet(data_root: str, image_size: int, reading: Reading, only: list[str] | None = None) -> Images:
    """ImageNet-1k, 1,281,167 + 50,000 (Russakovsky et al. 2015), in imagenet/{train,val}/<wnid>/; val is test."""
    source = "https://image-net.org/challenges/LSVRC/2012 as train/<wnid>/ and val/<wnid>/"
    folder = _unpacked(data_root, "imagenet", source)
    return class_images(folder, image_size, "train", "val", reading, only, published=True)


def imagenet_50(data_root: str, image_size: int, reading: Reading) -> Images:
    """64,274 + 2,500 images of ImageNet's folder, of the 50 classes of SCAN."""
    return imagenet(data_root, image_size, reading, IMAGENET_50)


def aircraft(data_root: str, image_size: int, reading: Reading) -> Images:
    """FGVC-Aircraft, 6,667 + 3,333 of 100 variants (Maji et al. 2013), through torchvision."""
    from torchvision.datasets import FGVCAircraft

    train, test = (FGVCAircraft(data_root, split, download=True) for split in ("trainval", "test"))
    pairs = [zip(part._image_files, part._labels, strict=True) for part in (train, test)]
    return _from_torchvision(data_root, image_size, reading, train.classes, *pairs)


def cars(data_root: str, image_size: int, reading: Reading) -> Images:
    """Stanford Cars, 8,144 + 8,041 of 196 classes (Krause et al. 2013); torchvision reads, but no longer fetches it."""
    from torchvision.datasets import StanfordCars

    _unpacked(data_root, "stanford_cars", "what https://github.com/pytorch/vision/issues/7545 names")
    train, test = (StanfordCars(data_root, split) for split in ("train", "test"))
    return _from_torchvision(data_root, image_size, reading, train.classes, train._samples, test._samples)


def cub(data_root: str, image_size: int, reading: Reading) -> Images:
    """CUB-200-2011, 5,994 + 5,794 (Wah et al. 2011)."""
    source = "https://www.vision.caltech.edu/datasets/cub_200_2011"
    return _birds(_unpacked(data_root, "CUB_200_2011", source), image_size, reading)


def dogs(data_root: str, image_size: int, reading: Reading) -> Images:
    """Stanford Dogs, 12,000 + 8,580 of 120 breeds (Khosla et al. 2011): Images/ and the lists, train_list.mat and
    test_list.mat, in stanford_dogs/."""
    from scipy.io import loadmat

    source = "http://vision.stanford.edu/aditya86/ImageNetDogs (images.tar, lists.tar)"
    folder = _unpacked(data_root, "stanford_dogs", source)
    lists = [loadmat(folder / f"{part}_list.mat", squeeze_me=True) for part in ("train", "test")]
    files = [
        (f"Images/{file}", int(label) - 1, part is lists[0])
        for part in lists
        for file, label in zip(part["file_list"], part["labels"], strict=True)
    ]
    names = {label: file.split("/")[1] for file, label, _ in files}
    return image_files(folder, files, [names.get(label, "") for label in range(max(names) + 1)], image_size, reading)


def flowers(data_root: str, image_size: int, reading: Reading) -> Images:
    """Oxford Flowers-102, 2,040 + 6,149 (Nilsback & Zisserman 2008), through torchvision."""
    from torchvision.datasets import Flowers102

    parts = [Flowers102(data_root, split, download=True) for split in ("train", "val", "test")]
    train, val, test = (list(zip(part._image_files, part._labels, strict=True)) for part in parts)
    return _from_torchvision(data_root, image_size, reading, Flowers102.classes, train + val, test)


def nabirds(data_root: str, image_size: int, reading: Reading) -> Images:
    """NABirds, 23,929 + 24,633 of 555 classes (Van Horn et al. 2015)."""
    return _birds(_unpacked(data_root, "nabirds", "https://dl.allaboutbirds.org/nabirds"), image_size, reading)


DATASETS: dict[str, Callable[[str, int, Reading], Images]] = {
    "fashion-mnist-8k": fashion_mnist_8k,
    "fashion-mnist": fashion_mnist,
    "digits": digits,
    "cifar10": cifar10,
    "tiny-imagenet": tiny_imagenet,
    "imagenet": imagenet,
    "imagenet-50": imagenet_50,
    "aircraft": aircraft,
    "cars": cars,
    "cub": cub,
    "dogs": dogs,
    "flowers": flowers,
    "nabirds": nabirds,
}
"""name -> (data_root, image_size, reading) -> Images."""


def folders_of(name: str, data_root: str) -> list[Path]:
    """Where the files of a named set lie or may lie, but for those that a package brings."""
    own = {"fashion-mnist-8k": (str(ASSETS / name),), "digits": (), "fashion-mnist": IDX_FOLDERS}
    return [Path(folder.format(data_root=data_root)) for folder in own.get(name, ("{data_root}",))]


def _unpacked(data_root: str, folder: str, source: str) -> Path:
    path = Path(data_root, folder)
    if not path.is_dir():
        raise ValueError(f"{path} is missing; fetch {source} and unpack it as that folder, or give another --data-root")
    return path


def _from_torchvision(
    data_root: str, image_size: int, reading: Reading, classes: list[str], train: Iterable, test: Iterable
) -> Images:
    """train, test: (path, label) pairs."""
    files = [(os.path.relpath(path, data_root), int(y), pairs is train) for pairs in (train, test) for path, y in pairs]
    return image_files(Path(data_root), files, classes, image_size, reading)


def _birds(folder: Path, image_size: int, reading: Reading) -> Images:
    """The layout that CUB and NABirds share: four tables of `id value` lines beside images/."""
    tables = ("classes", "images", "image_class_labels", "train_test_split")
    names, paths, labels, is_train = (_read_table(folder / f"{table}.txt") for table in tables)
    index = {name: label for label, name in enumerate(names)}
    files = [(f"images/{path}", index[labels[image]], is_train[image] == "1") for image, path in paths.items()]
    return image_files(folder, files, list(names.values()), image_size, reading)


def _read_table(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return dict(line.strip().partition(" ")[::2] for line in lines)


def _idx_images(folder: Path) -> Images:
    """The four idx files of Fashion-MNIST, padded with zeros from 28x28 to 32x32."""
    pixels, labels = [], []
    for split in ("train", "t10k"):
        pixels.append(_read_idx(folder / f"{split}-images-idx3-ubyte.gz", header=16).reshape(-1, 28, 28))
        labels.append(_read_idx(folder / f"{split}-labels-idx1-ubyte.gz", header=8))
    padded = np.pad(np.concatenate(pixels), ((0, 0), (2, 2), (2, 2)))
    classes = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    tensor = torch.from_numpy(padded)[:, None]
    return in_memory(tensor, np.concatenate(labels).astype(np.int64), classes, num_train=len(pixels[0]))


def _read_idx(path: Path, header: int) -> np.ndarray:
    try:
        with gzip.open(path) as file:
            return np.frombuffer(file.read(), dtype=np.uint8, offset=header)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a gzipped idx file ({error}); fetch it again") from error
