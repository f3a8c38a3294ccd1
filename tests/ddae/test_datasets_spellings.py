"""Folders whose names say split and class at once: test images never become train."""

import numpy as np
import pytest
from PIL import Image

from ddae.datasets import load_dataset


def write(root, *names):
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for n in range(10):
            Image.fromarray(np.full((8, 8), 10 * n + number, np.uint8)).save(root / name / f"{n}.png")
    return str(root)


@pytest.mark.parametrize(
    ("names", "of"),
    [
        (("trainA", "trainB", "testA", "testB"), "a"),
        (("traina", "trainb", "testa", "testb"), "a"),
        (("TRAINA", "TRAINB", "TESTA", "TESTB"), "a"),
        (("train_cats", "train_dogs", "test_cats", "test_dogs"), "cats"),
        (("cats-Training", "dogs-Training", "cats-Validation", "dogs-Validation"), "cats"),
        (("catsTrain", "dogsTrain", "catsVal", "dogsVal"), "cats"),
        (("TrainBigCats", "TrainDogs", "TestBigCats"), "big_cats"),
        (("dev.cats", "test.cats"), "cats"),
        (("train 猫", "train 犬", "eval 猫", "eval 犬"), "犬|猫"),
        (("2017_train_cats", "2017_train_dogs", "2017_test_cats"), "2017_cats"),
        (("holdoutset-x", "trn-x", "train-y", "photos"), "x"),
        (("cats", "dogs", "cats_test", "dogs_test"), "cats"),
        (("big cats", "dogs", "val-big-cats", "val-dogs"), "big_cats"),
    ],
)
def test_a_split_and_a_class_in_one_name_are_refused_with_what_to_do(names, of, tmp_path):
    with pytest.raises(ValueError, match=rf"like two splits of one class; move .* to train/({of})/ and test/({of})/, "):
        load_dataset(write(tmp_path, *names), 8)


@pytest.mark.parametrize(
    "names",
    [
        ("training shoes", "test tube", "boot"),
        ("trains", "tests"),
        ("trainers", "testers", "boots"),
        ("train_cats", "train_dogs"),
        ("test_cats", "test_dogs", "test_birds"),
        ("train station", "training ground", "test site"),
        ("contest", "constrain", "interval", "oval", "medieval", "device"),
        ("value", "valley", "testament", "devil"),
        ("tube", "test tube"),
        ("track", "train track", "boot"),
        ("training", "resting", "boot"),
        ("--", "++", "1", "2"),
        ("A", "B"),
    ],
)
def test_classes_whose_names_hold_such_words_are_classes(names, tmp_path):
    images = load_dataset(write(tmp_path, *names), 8).images
    assert images.classes == tuple(sorted(names)) and not images.has_own_test and not images.notes


@pytest.mark.parametrize(
    "names",
    [("Train", "Test"), ("training", "testing"), ("Train 1", "Train 2", "Test 1"), ("TRN", "Val", "cat", "dog")],
)
def test_splits_whose_images_lie_in_no_class_folders_are_no_classes(names, tmp_path):
    with pytest.raises(ValueError, match="like two splits of one class; make one sub-folder a class in each, "):
        load_dataset(write(tmp_path, *names), 8)


def test_what_is_advised_is_read(tmp_path):
    names = [f"{split}/{of}" for split in ("train", "test") for of in "AB"]
    images = load_dataset(write(tmp_path, *names), 8).images
    assert images.classes == ("A", "B") and images.has_own_test and images.num_train == 20
