import shutil

import numpy as np
import pytest
from PIL import Image

from ddae.datasets import load_dataset


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(10):
            pixels = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return tmp_path


def split_in_two(folder, held_out="test"):
    """Five images of each class become the held-out ones."""
    for part in ("train", held_out):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            for file in sorted((folder / name).glob("*.png"))[:5]:
                file.rename(folder / part / name / file.name)


def read_all(folder):
    images = load_dataset(str(folder), 16).images
    return images.read(np.arange(len(images.labels)))


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
    split_in_two(folder, held_out)
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


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "CMYK"])
def test_other_colour_modes_become_rgb(folder, mode):
    Image.new(mode, (5, 9)).save(folder / "cat" / "0.png", "JPEG" if mode == "CMYK" else "PNG")
    assert read_all(folder).shape == (20, 3, 16, 16)


def test_a_decompression_bomb_is_named(folder, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"cat/.*png cannot be read as an image .*decompression bomb"):
        read_all(folder)


@pytest.mark.parametrize(("part", "only"), [("train", "dog"), ("test", "cat")])
def test_train_and_test_of_other_classes(folder, part, only):
    split_in_two(folder)
    (folder / part / only).rename(folder / part / "horse")
    with pytest.raises(ValueError, match=rf"same class folders.*2 are in one only: {only}, horse"):
        load_dataset(str(folder), 16)
    shutil.rmtree(folder / part / "horse")
    with pytest.raises(ValueError, match=rf"same class folders.*1 are in one only: {only}"):
        load_dataset(str(folder), 16)


def test_unsorted_test_images_are_passed_over(folder):
    split_in_two(folder, "val")
    (folder / "test").mkdir()
    shutil.copy(folder / "val" / "cat" / "9.png", folder / "test")
    assert load_dataset(str(folder), 16).images.num_train == 10


def test_a_class_of_folders(folder):
    (folder / "horse" / "photos").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"horse has folders instead of images"):
        load_dataset(str(folder), 16)


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
    with pytest.raises(ValueError, match=r"cat/3.png cannot be read as an image"):
        read_all(folder)


@pytest.mark.parametrize("seed", range(5))
def test_a_prefix_is_a_fair_sample_of_every_split(seed):
    """Of 200 rows about 20 are of each of ten classes; 4 and 40 are four deviations off and more."""
    dataset = load_dataset("fashion-mnist-8k", 32, seed=seed)
    for split in ("train", "val", "test"):
        counts = np.bincount(dataset.labels(split)[:200], minlength=10)
        assert counts.min() > 4 and counts.max() < 40


def test_splits_in_any_spelling_and_what_is_left_out(tmp_path, caplog):
    for split, num in (("Train", 6), ("Testing", 3)):
        for name in ("_background", "cat"):
            (folder := tmp_path / split / name).mkdir(parents=True)
            for i in range(num):
                Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / f"{i}.png")
    (tmp_path / "Train" / "empty").mkdir()
    (tmp_path / "Train" / "cat" / "notes.txt").touch()
    (tmp_path / "val").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "flat.png")
    dataset = load_dataset(str(tmp_path), 8)
    assert dataset.images.classes == ("_background", "cat")
    assert {split: len(rows) for split, rows in dataset.splits.items()} == {"train": 10, "val": 2, "test": 6}
    said = "left out val (its images lie in no class folders); Train/empty (no images in it); 1 file that by its name "
    assert said in caplog.text and "Train/cat/notes.txt" in caplog.text


def test_a_class_may_be_called_like_a_split(tmp_path):
    for name in ("training", "resting"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / name / f"{i}.png")
    assert load_dataset(str(tmp_path), 8).images.classes == ("resting", "training")


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("trainset", "testset"),
        ("TrainingData", "TestData"),
        ("trn", "tst"),
        ("Training_Set", "test-set"),
        ("train", "tests"),
        ("train", "holdout"),
        ("train", "Held Out"),
        ("train2017", "val2017"),
    ],
)
def test_splits_of_any_usual_spelling(folder, train, held_out):
    split_in_two(folder, held_out)
    for name in ("cat", "dog"):
        (folder / name).rmdir()
    (folder / "train").rename(folder / train)
    dataset = load_dataset(str(folder), 16)
    assert dataset.images.num_train == 10 == len(dataset.splits["test"])
    assert dataset.images.classes == ("cat", "dog") and dataset.images.has_own_test


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("fold1", "fold2"),
        ("site1", "site2"),
        ("data/trainset", "data/testset"),
        ("data/train", "data/fold2"),
        ("known/images", "unknown/images"),
    ],
)
def test_folders_of_class_folders_that_are_no_known_splits(folder, tmp_path_factory, one, other):
    """Hugging Face would take them all for train, or guess."""
    split_in_two(folder)
    root = tmp_path_factory.mktemp("nested")
    for part, place in (("train", one), ("test", other)):
        shutil.copytree(folder / part, root / place, dirs_exist_ok=True)
    for file in ("annotations.json", "sample.csv"):
        (root / file).touch()
    with pytest.raises(ValueError, match=r"which is train cannot be told; rename the splits to train/ and") as error:
        load_dataset(str(root), 16)
    assert one in str(error.value) and other in str(error.value) and len(str(error.value).splitlines()) == 1


def test_splits_in_one_folder_as_hugging_face_knows_them(folder, tmp_path_factory):
    split_in_two(folder)
    root = tmp_path_factory.mktemp("nested")
    for part in ("train", "test"):
        shutil.move(folder / part, root / "data" / part)
    assert load_dataset(str(root), 16).images.num_train == 10
    (root / "data" / "train" / "cat").rename(root / "data" / "train" / "dev")
    with pytest.raises(ValueError, match="which is train cannot be told"):
        load_dataset(str(root), 16)


def test_no_train_among_the_folders(folder):
    split_in_two(folder)
    for name in ("cat", "dog"):
        (folder / name).rmdir()
    (folder / "train").rename(folder / "val")
    with pytest.raises(ValueError, match=r"has the splits .*; one must be called train: rename the one that holds the"):
        load_dataset(str(folder), 16)


def test_one_folder_of_class_folders(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("nested")
    shutil.move(folder, root / "photos")
    with pytest.raises(ValueError, match=r"class folders of dataset=.* are in photos; give that as --dataset"):
        load_dataset(str(root), 16)


def test_splits_whose_class_folders_lie_deeper(folder, tmp_path_factory):
    """Hugging Face reads them if their names are its own."""
    split_in_two(folder)
    root = tmp_path_factory.mktemp("deep")
    shutil.copytree(folder / "train", root / "train" / "images")
    shutil.copytree(folder / "test", root / "holdout" / "images")
    with pytest.raises(ValueError, match="holdout is called like test images, and Hugging Face makes no split of it"):
        load_dataset(str(root), 16)
    (root / "holdout").rename(root / "test")
    assert load_dataset(str(root), 16).images.num_train == 10


def test_images_without_class_folders(folder, tmp_path_factory):
    for place in ("", "train"):
        root = tmp_path_factory.mktemp("flat")
        shutil.copytree(folder / "cat", root / place, dirs_exist_ok=True)
        with pytest.raises(ValueError, match=r"lie in no class folders; make one sub-folder a class.* metadata.csv"):
            load_dataset(str(root), 16)


def test_a_class_called_train(folder):
    shutil.copytree(folder / "cat", folder / "train")
    with pytest.raises(ValueError, match=r"images in train/ lie in no class .*; if train is a class as cat, dog are, "):
        load_dataset(str(folder), 16)


def test_images_below_the_class_folders(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("deep")
    for name in ("cat", "dog"):
        shutil.copytree(folder / name, root / "train" / name / "photos")
    with pytest.raises(ValueError, match=r"no label columns among image .*: make one sub-folder of images a class"):
        load_dataset(str(root), 16)
