"""Every dataset that has a name, on a tiny copy in its own on-disk format."""

import gzip
import pickle
import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from ddae.datasets import DATASETS, load_dataset
from ddae.datasets.named import IMAGENET_50

WNIDS = sorted(["n01440764", *IMAGENET_50, "n15075141"])
FILES = {
    "tiny-imagenet": WNIDS[:3],
    "imagenet": WNIDS,
    "imagenet-50": IMAGENET_50,
    "aircraft": ["707-320", "A300B4", "Boeing 717"],
    "cars": ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012"],
    "cub": ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"],
    "dogs": ["n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02085936-Maltese_dog"],
    "flowers": ["pink primrose", "hard-leaved pocket orchid", "blackberry lily"],
    "nabirds": ["Oak Titmouse", "Common Eider (Adult male)", "Western Grebe"],
}
"""The classes of the sets that lie in files, in their order."""
NAMES = sorted({name for names in FILES.values() for name in names})


def draw(path, name, is_test):
    """A picture whose colour says which class it is of, and of which official split."""
    path.parent.mkdir(parents=True, exist_ok=True)
    high, low = divmod(NAMES.index(name), 10)
    Image.new("RGB", (24, 16), (20 * high + 10, 20 * low + 10, 200 * is_test)).save(path, "JPEG", quality=100)


def seen(images):
    """What draw drew: names and whether of the official test split."""
    red, green, blue = images[:, :, 8, 8].T.int()
    return [NAMES[place] for place in red // 20 * 10 + green // 20], blue > 100


def write_idx(path, array):
    header = struct.pack(f">{1 + array.ndim}I", 2048 + array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def write_fashion_mnist(root, rng):
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split, num in (("train", 60), ("t10k", 20)):
        write_idx(raw / f"{split}-images-idx3-ubyte.gz", rng.integers(0, 256, (num, 28, 28)))
        write_idx(raw / f"{split}-labels-idx1-ubyte.gz", np.arange(num) % 10)


def write_cifar10(root, rng):
    cifar = root / "cifar-10-batches-py"
    cifar.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(20)]}
        (cifar / name).write_bytes(pickle.dumps(batch))
    (cifar / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


def write_tiny_imagenet(root, rng):
    folder, lines = root / "tiny-imagenet-200", []
    for number, name in enumerate(FILES["tiny-imagenet"] * 4):
        draw(folder / "train" / name / "images" / f"{name}_{number}.JPEG", name, False)
        (folder / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_{number}.JPEG\t0\t10\t63\t58\n")
        draw(folder / "val" / "images" / f"val_{number}.JPEG", name, True)
        lines.append(f"val_{number}.JPEG\t{name}\t0\t32\t44\t62\n")
    draw(folder / "test" / "images" / "test_0.JPEG", name, True)
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(reversed(FILES["tiny-imagenet"])))
    (folder / "words.txt").write_text("n01440764\ttench, Tinca tinca\n")


def write_imagenet(root, rng):
    for name in WNIDS:
        for number in range(3):
            draw(root / "imagenet" / "train" / name / f"{name}_{number}.JPEG", name, False)
        draw(root / "imagenet" / "val" / name / f"ILSVRC2012_val_{WNIDS.index(name):08}.JPEG", name, True)
    draw(root / "imagenet" / "test" / "ILSVRC2012_test_00000001.JPEG", name, True)


def write_aircraft(root, rng):
    data = root / "fgvc-aircraft-2013b" / "data"
    lines = {"train": [], "val": [], "test": []}
    for number, name in enumerate(FILES["aircraft"] * 8):
        split = ("train", "val", "test", "test")[number // 3 % 4]
        draw(data / "images" / f"{number:07}.jpg", name, split == "test")
        lines[split].append(f"{number:07} {name}\n")
    lines["trainval"] = sorted(lines["train"] + lines["val"])
    for split, found in lines.items():
        (data / f"images_variant_{split}.txt").write_text("".join(found))
    (data / "variants.txt").write_text("\n".join(FILES["aircraft"]) + "\n")


def write_cars(root, rng):
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    for split, path in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = np.zeros((1, 12), dtype=[(field, object) for field in fields])
        for number in range(12):
            label = number % 3
            draw(folder / f"cars_{split}" / f"{number + 1:05}.jpg", FILES["cars"][label], split == "test")
            rows[0, number] = (1, 1, 20, 12, np.uint8(label + 1), f"{number + 1:05}.jpg")
        savemat(folder / path, {"annotations": rows})
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array([FILES["cars"]], dtype=object)})


def write_birds(folder, names, ids, image_id, extra=""):
    """ids: name -> number of the class; extra: lines of classes that have no image."""
    tables = {"images": [], "image_class_labels": [], "train_test_split": []}
    for number, name in enumerate(names * 6):
        is_test, file = number % 2, f"{ids[name]:04}/{number}.jpg"
        draw(folder / "images" / file, name, is_test)
        tables["images"].append(f"{image_id(number)} {file}\n")
        tables["image_class_labels"].append(f"{image_id(number)} {ids[name]}\n")
        tables["train_test_split"].append(f"{image_id(number)} {1 - is_test}\n")
    for table, lines in tables.items():
        (folder / f"{table}.txt").write_text("".join(lines))
    (folder / "classes.txt").write_text(extra + "".join(f"{ids[name]} {name}\n" for name in names))


def write_cub(root, rng):
    names = FILES["cub"]
    write_birds(root / "CUB_200_2011", names, {name: place for place, name in enumerate(names, 1)}, lambda n: n + 1)


def write_nabirds(root, rng):
    names = FILES["nabirds"]
    numbers = dict(zip(names, (817, 295, 1010), strict=True))
    extra = "0 Birds\n1 Ducks, Geese, and Swans\n"
    write_birds(root / "nabirds", names, numbers, lambda n: f"0000139e-21dc-4d0c-bfe1-{n:012}", extra)


def write_dogs(root, rng):
    folder = root / "stanford_dogs"
    for split in ("train", "test"):
        names = FILES["dogs"] * 4
        files = [f"{name}/{name[:9]}_{split}{number}.jpg" for number, name in enumerate(names)]
        for name, file in zip(names, files, strict=True):
            draw(folder / "Images" / file, name, split == "test")
        cells = np.array(files, dtype=object)[:, None]
        labels = np.array([[FILES["dogs"].index(name) + 1] for name in names], dtype=float)
        savemat(folder / f"{split}_list.mat", {"file_list": cells, "annotation_list": cells, "labels": labels})


def write_flowers(root, rng):
    folder = root / "flowers-102"
    numbers = dict(zip(FILES["flowers"], (1, 2, 102), strict=True))
    splits = {"trnid": [], "valid": [], "tstid": []}
    names = FILES["flowers"] * 8
    for image, name in enumerate(names, 1):
        split = ("trnid", "valid", "tstid", "tstid")[(image - 1) // 3 % 4]
        draw(folder / "jpg" / f"image_{image:05}.jpg", name, split == "tstid")
        splits[split].append(image)
    savemat(folder / "setid.mat", {split: np.array([ids], dtype=np.uint16) for split, ids in splits.items()})
    savemat(folder / "imagelabels.mat", {"labels": np.array([[numbers[name] for name in names]], dtype=np.uint8)})


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for write in [value for name, value in globals().items() if name.startswith("write_")]:
        if write not in (write_idx, write_birds):
            write(root, rng)
    return root


@pytest.fixture
def no_checksums(monkeypatch):
    """torchvision compares the files of CIFAR-10 and Flowers with the checksums of the real ones."""
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *_: True)


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_splits_fairly(name, data_root, no_checksums):
    dataset = load_dataset(name, 32, str(data_root))
    splits = dataset.splits
    rows = np.concatenate(list(splits.values()))
    assert len(np.unique(rows)) == len(rows) == len(dataset.images.labels)
    assert max(splits["train"].max(), splits["val"].max()) < dataset.images.num_train <= splits["test"].min()
    for split in splits:
        assert set(dataset.labels(split)) == set(range(dataset.num_classes))
    images = dataset.images.read(splits["val"][:3])
    assert images.dtype == torch.uint8 and images.shape[:2] == (3, 3)
    again = load_dataset(name, 32, str(data_root))
    assert all(np.array_equal(splits[split], again.splits[split]) for split in splits)
    assert dataset.images.fingerprint == again.images.fingerprint


@pytest.mark.parametrize("name", FILES)
def test_every_image_has_its_own_label_and_official_split(name, data_root, no_checksums):
    images = load_dataset(name, 16, str(data_root)).images
    assert images.classes == tuple(FILES[name])
    pixels = images.read(np.arange(len(images.labels)))
    assert pixels.shape[1:] == (3, 16, 16)
    names, is_test = seen(pixels)
    assert [images.classes[label] for label in images.labels] == names
    assert is_test.tolist() == [row >= images.num_train for row in range(len(names))]


@pytest.mark.parametrize("name", FILES)
def test_missing_data_says_where_to_get_it(name, tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(ValueError, match=r"is missing; fetch .*http|cannot be downloaded .*no network") as error:
        load_dataset(name, 16, str(tmp_path / "data"))
    assert len(str(error.value).splitlines()) == 1


def test_half_an_archive(data_root, tmp_path):
    shutil.copytree(data_root / "CUB_200_2011", tmp_path / "CUB_200_2011")
    (tmp_path / "CUB_200_2011" / "train_test_split.txt").unlink()
    with pytest.raises(ValueError, match=r"dataset='cub' is not whole in --data-root=.*train_test_split.txt"):
        load_dataset("cub", 16, str(tmp_path))
    shutil.rmtree(tmp_path / "CUB_200_2011" / "images" / "0001")
    shutil.copy(data_root / "CUB_200_2011" / "train_test_split.txt", tmp_path / "CUB_200_2011")
    with pytest.raises(ValueError, match=r"dataset='cub' is not whole .*0001"):
        load_dataset("cub", 16, str(tmp_path))


def test_imagenet_with_an_unsorted_val(data_root, tmp_path):
    shutil.copytree(data_root / "imagenet" / "train", tmp_path / "imagenet" / "train")
    draw(tmp_path / "imagenet" / "val" / "ILSVRC2012_val_00000001.JPEG", WNIDS[0], True)
    with pytest.raises(
        ValueError, match=r"train and val must have the same class folders.*52 are in one only: n01440764"
    ):
        load_dataset("imagenet", 16, str(tmp_path))


def test_another_place_of_the_same_files_has_the_same_fingerprint(data_root, tmp_path):
    shutil.copytree(data_root / "nabirds", tmp_path / "nabirds", copy_function=shutil.copyfile)
    here, there = (load_dataset("nabirds", 16, str(root)).images for root in (data_root, tmp_path))
    assert here.fingerprint == there.fingerprint
    assert here.fingerprint != load_dataset("nabirds", 32, str(tmp_path)).images.fingerprint
    Image.new("RGB", (9, 9)).save(tmp_path / "nabirds" / "images" / "0817" / "0.jpg")
    assert here.fingerprint != load_dataset("nabirds", 16, str(tmp_path)).images.fingerprint


def test_broken_idx_file_is_named(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b but no more")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz cannot be read"):
        load_dataset("fashion-mnist", 32, str(tmp_path))
