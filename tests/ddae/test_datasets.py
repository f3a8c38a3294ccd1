import gzip
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from ddae.datasets import DATASETS, load_dataset


def write_idx(path, array):
    header = struct.pack(f">{1 + array.ndim}I", 2048 + array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """Tiny copies of the downloadable datasets in torchvision's own on-disk formats."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split, num in (("train", 60), ("t10k", 20)):
        write_idx(raw / f"{split}-images-idx3-ubyte.gz", rng.integers(0, 256, (num, 28, 28)))
        write_idx(raw / f"{split}-labels-idx1-ubyte.gz", np.arange(num) % 10)
    cifar = root / "cifar-10-batches-py"
    cifar.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(20)]}
        (cifar / name).write_bytes(pickle.dumps(batch))
    (cifar / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return str(root)


@pytest.fixture
def no_checksums(monkeypatch):
    """torchvision compares CIFAR's files with the checksums of the real ones."""
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(10):
            pixels = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_splits_fairly(name, data_root, no_checksums):
    dataset = load_dataset(name, 32, data_root)
    splits = dataset.splits
    rows = np.concatenate(list(splits.values()))
    assert len(np.unique(rows)) == len(rows) == len(dataset.images.labels)
    assert max(splits["train"].max(), splits["val"].max()) < dataset.images.num_train <= splits["test"].min()
    for split in splits:
        assert set(dataset.labels(split)) == set(range(dataset.num_classes))
    images = dataset.images.read(splits["val"][:3])
    assert images.dtype == torch.uint8 and images.shape[:2] == (3, 3)
    again = load_dataset(name, 32, data_root)
    assert all(np.array_equal(splits[split], again.splits[split]) for split in splits)
    assert dataset.images.fingerprint == again.images.fingerprint


def test_another_seed_keeps_the_test_set_and_moves_val():
    first, second = (load_dataset("digits", 8, seed=seed).splits for seed in (0, 1))
    assert set(first["test"]) == set(second["test"])
    assert set(first["val"]) != set(second["val"])


def test_folder_of_images(folder):
    dataset = load_dataset(str(folder), image_size=16)
    assert dataset.images.classes == ("cat", "dog")
    assert {split: len(rows) for split, rows in dataset.splits.items()} == {"train": 12, "val": 4, "test": 4}
    assert dataset.images.read(dataset.splits["train"]).shape == (12, 3, 16, 16)


def test_folder_with_its_own_test_split(folder):
    for part in ("train", "test"):
        (folder / part).mkdir()
    for name in ("cat", "dog"):
        (folder / "test" / name).mkdir()
        for i in (0, 1):
            (folder / name / f"{i}.png").rename(folder / "test" / name / f"{i}.png")
        (folder / name).rename(folder / "train" / name)
    dataset = load_dataset(str(folder), image_size=16)
    assert len(dataset.splits["test"]) == 4
    assert dataset.images.num_train == 16


@pytest.mark.parametrize("held_out", ["val", "valid", "validation"])
def test_other_names_of_the_held_out_split(folder, held_out):
    for part in ("train", held_out):
        (folder / part).mkdir()
        for name in ("cat", "dog"):
            (folder / part / name).mkdir()
            for file in sorted((folder / name).glob("*.png"))[:5]:
                file.rename(folder / part / name / file.name)
    dataset = load_dataset(str(folder), image_size=16)
    assert dataset.images.classes == ("cat", "dog")
    assert dataset.images.num_train == 10 == len(dataset.splits["test"])


def test_a_folder_without_images_is_no_class(folder):
    (folder / "empty").mkdir()
    assert load_dataset(str(folder), 16).images.classes == ("cat", "dog")


def test_a_changed_file_changes_the_fingerprint(folder):
    before = load_dataset(str(folder), 16).images.fingerprint
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "cat" / "0.png")
    assert load_dataset(str(folder), 16).images.fingerprint != before


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1"])
def test_other_colour_modes_become_rgb(folder, mode):
    Image.new(mode, (5, 9)).save(folder / "cat" / "0.png")
    dataset = load_dataset(str(folder), 16)
    assert dataset.images.read(np.arange(len(dataset.images.labels))).shape == (20, 3, 16, 16)


def test_unknown_name():
    with pytest.raises(ValueError, match=r"dataset='cifar-11' is neither .*known: fashion-mnist-8k"):
        load_dataset("cifar-11", 32)


def test_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="no images in"):
        load_dataset(str(tmp_path), 32)


def test_one_class(folder):
    for file in (folder / "dog").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"has 1 class \(cat\); a probe needs at least 2"):
        load_dataset(str(folder), 32)


def test_broken_image_is_named(folder):
    (folder / "cat" / "3.png").write_bytes(b"not an image")
    dataset = load_dataset(str(folder), 32)
    with pytest.raises(ValueError, match=r"cat/3.png cannot be read as an image"):
        dataset.images.read(np.arange(len(dataset.images.labels)))


def test_broken_idx_file_is_named(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b but no more")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz cannot be read"):
        load_dataset("fashion-mnist", 32, str(tmp_path))


@pytest.mark.parametrize("seed", range(5))
def test_a_prefix_is_a_fair_sample_of_every_split(seed):
    """Of 200 rows about 20 are of each of ten classes; 4 and 40 are four deviations off and more."""
    dataset = load_dataset("fashion-mnist-8k", 32, seed=seed)
    for split in ("train", "val", "test"):
        counts = np.bincount(dataset.labels(split)[:200], minlength=10)
        assert counts.min() > 4 and counts.max() < 40
