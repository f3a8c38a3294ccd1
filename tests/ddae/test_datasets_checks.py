"""What is said of a dataset before anything is computed of it."""

import logging

import numpy as np
import pytest
from PIL import Image

from ddae.datasets import Reading, load_dataset
from tests.pictures import png_of_16_bits


def draw(folder, pictures, suffix="png"):
    """folder/<class>/<number>.png. pictures: class -> arrays"""
    for name, arrays in pictures.items():
        (folder / name).mkdir(parents=True)
        for i, pixels in enumerate(arrays):
            Image.fromarray(np.asarray(pixels, np.uint8)).save(folder / name / f"{i:03}.{suffix}")
    return str(folder)


def noise(num, seed=0, low=0, high=256):
    return list(np.random.default_rng(seed).integers(low, high, (num, 8, 8, 3)))


def notes_of(name, size=8):
    return load_dataset(name, size).notes


def test_classes_and_splits_come_first(tmp_path):
    name = draw(tmp_path / "set", {"cat": noise(20, 0), "dog": noise(20, 1)})
    [summary] = notes_of(name)
    assert summary == (
        "2 classes (cat, dog); 26 train, 6 val and 8 test images; there are no official test images, so a fifth of "
        "every class is test"
    )
    draw(tmp_path / "two" / "Training", {"cat": noise(20, 0), "dog": noise(20, 1)})
    name = draw(tmp_path / "two" / "TEST", {"cat": noise(5, 2), "dog": noise(5, 3)})
    assert notes_of(str(tmp_path / "two")) == ("2 classes (cat, dog); 32 train, 8 val and 10 test images",)


def test_of_many_classes_some_are_named(tmp_path):
    name = draw(tmp_path / "set", {f"c{i:02}": noise(5, i) for i in range(20)})
    assert notes_of(name)[0].startswith("20 classes (c00, c01, ") and " c11 and 8 more); 60 train" in notes_of(name)[0]


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_the_same_pixels_in_train_and_test_are_counted(tmp_path, suffix):
    """Whatever their format and names."""
    held_out = {"cat": noise(5, 2), "dog": noise(5, 3)}
    train = {"cat": [*noise(20, 0), *held_out["cat"][:3]], "dog": [*noise(20, 1), held_out["dog"][0]]}
    draw(tmp_path / "train", train)
    draw(tmp_path / "test", held_out, suffix)
    dataset = load_dataset(str(tmp_path), 8)
    [note] = [each for each in dataset.notes if "pixel by pixel" in each]
    assert note.startswith("4 of 10 test images are in train or val too, pixel by pixel, which rewards memory")
    rows = dataset.splits["test"][dataset.twins["test"]]
    assert sorted(dataset.images.labels[rows]) == [0, 0, 0, 1] and not dataset.twins["val"].any()


def test_the_same_pixels_in_train_and_val_are_counted(tmp_path, caplog):
    pictures = {name: [each for each in noise(30, seed) for _ in range(3)] for seed, name in enumerate(("cat", "dog"))}
    dataset = load_dataset(draw(tmp_path / "set", pictures), 8)
    images = dataset.images.read(np.arange(180)).numpy()
    train = {images[row].tobytes() for row in dataset.splits["train"]}
    assert dataset.twins["val"].tolist() == [images[row].tobytes() in train for row in dataset.splits["val"]]
    assert f"{dataset.twins['val'].sum()} of {len(dataset.splits['val'])} val images are in train too" in caplog.text


def test_one_picture_of_several_labels(tmp_path):
    shared = noise(20, 5)
    name = draw(tmp_path / "set", {"cat": shared, "dog": shared})
    assert any("20 of the pictures have several labels" in note for note in notes_of(name))


def test_pictures_of_memory_are_compared_too():
    dataset = load_dataset("digits", 8)
    assert len(dataset.twins["val"]) == len(dataset.splits["val"]) and len(dataset.images.digests) == 1797


ALIKE = {
    "one picture": ({n: [noise(1)[0]] * 20 for n in "ab"}, "the images are all alike to the network"),
    "black": ({n: np.zeros((20, 8, 8, 3)) for n in "ab"}, "the images are all alike to the network"),
    "almost one picture": (
        {n: [noise(1)[0] // 2 + i % 2 for i in range(20)] for n in "ab"},
        "all alike to the network",
    ),
    "18 greys": ({n: noise(20, i, 0, 18) for i, n in enumerate("ab")}, "nearly constant to the network"),
    "bright": ({n: noise(20, i, 230, 250) for i, n in enumerate("ab")}, "nearly constant to the network"),
    "one colour each": ({n: [np.full((8, 8, 3), 12 * i) for i in range(20)] for n in "ab"}, "have one colour all over"),
    "details that go": ({n: np.indices((20, 64, 64, 3)).sum(0) % 2 * 255 for n in "ab"}, "all alike to the network"),
}


@pytest.mark.parametrize("case", ALIKE)
def test_images_that_show_the_network_nothing(tmp_path, case):
    pictures, expected = ALIKE[case]
    assert any(expected in note for note in notes_of(draw(tmp_path / "set", pictures)))


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_that_a_network_of_one_channel_does_not_see_are_said(tmp_path, channels):
    grey = [np.repeat(each[..., :1], 3, -1) for each in noise(20, 0)]
    name = draw(tmp_path / "grey", {"cat": grey[:10], "dog": grey[10:]})
    assert len(load_dataset(name, 8, num_channels=channels).notes) == 1
    red = [np.minimum(each, (255, 0, 0)) for each in grey]
    name = draw(tmp_path / "red", {"cat": red, "dog": noise(20, 1)})
    said = [note for note in load_dataset(name, 8, num_channels=channels).notes if "the colours of" in note]
    expected = "the colours of 26 of 26 training images that were looked at are not seen: this network has one channel"
    assert [note.startswith(expected) for note in said] == [True] * (channels == 1)


def test_one_grey_of_several_colours_is_all_alike_to_one_channel(tmp_path):
    name = draw(tmp_path / "set", {n: [np.full((8, 8, 3), c)] * 20 for n, c in (("a", (90, 0, 0)), ("b", (0, 0, 90)))})
    assert not any("all alike" in note for note in load_dataset(name, 8).notes)
    assert any("all alike to the network" in note for note in load_dataset(name, 8, num_channels=1).notes)


def test_uneven_classes_are_said(tmp_path):
    name = draw(tmp_path / "set", {"cat": noise(90, 0), "dog": noise(10, 1)})
    [note] = [each for each in notes_of(name) if "uneven" in each]
    assert "of 10 to 90 images: always saying cat is right on 90.0%" in note


def test_classes_that_a_split_lacks_are_said(tmp_path):
    name = draw(tmp_path / "set", {"cat": noise(20, 0), "dog": noise(20, 1), "eel": noise(1, 2)})
    assert {"val has no image of 1 class (eel)", "test has no image of 1 class (eel)"} < set(notes_of(name))


def test_official_test_images_are_no_class_and_never_trained_on(tmp_path, caplog):
    """Whether they are sorted or not."""
    draw(tmp_path, {"cat": noise(20, 0), "dog": noise(20, 1), "Test": noise(10, 2)})
    assert load_dataset(str(tmp_path), 8).images.classes == ("cat", "dog")
    assert "left out Test (called like a split, and there is no train; rename it if it is a class)" in caplog.text
    (tmp_path / "train").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / name).rename(tmp_path / "train" / name)
    assert load_dataset(str(tmp_path), 8).images.num_train == 32
    assert "left out Test (its images lie in no class folders)" in caplog.text


def test_two_folders_are_classes_whatever_they_are_called(tmp_path):
    name = draw(tmp_path / "set", {"dev": noise(20, 0), "ops": noise(20, 1)})
    assert load_dataset(name, 8).images.classes == ("dev", "ops")


def test_files_beside_the_classes_are_said(tmp_path, caplog):
    name = draw(tmp_path / "set", {"cat": noise(20, 0), "dog": noise(20, 1)})
    (tmp_path / "set" / "labels.csv").touch()
    load_dataset(name, 8)
    assert "left out 1 file beside the class folders, such as ./labels.csv" in caplog.text


def test_groups_that_the_official_splits_share_are_said(tmp_path):
    draw(tmp_path / "train", {"cat": noise(20, 0), "dog": noise(20, 1)})
    draw(tmp_path / "test", {"cat": noise(5, 2), "dog": noise(5, 3)})
    notes = load_dataset(str(tmp_path), 8, reading=Reading(group_by="0([0-9]+).png")).notes
    assert "5 groups are in train and in test, as the set itself splits them" in notes


def test_flags_that_do_not_suit_the_set(tmp_path):
    name = draw(tmp_path / "set", {"cat": noise(20, 0), "dog": noise(20, 1)})
    for each in (name, "digits"):
        with pytest.raises(ValueError, match="label_column='x' is for Hugging Face sets"):
            load_dataset(each, 8, reading=Reading(label_column="x"))
    notes = load_dataset(name, 8, reading=Reading(white=4095)).notes
    assert "no image has more than 8 bits a channel, so white=4095 is not used" in notes


@pytest.mark.parametrize("name", ["fashion-mnist-8k", "digits"])
def test_nothing_is_said_of_what_is_in_order(name, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset(name, 16)
    assert len(dataset.notes) == 1 and caplog.text == ""


@pytest.mark.parametrize("train", ["", "train"])
def test_images_that_lie_deeper_or_hidden_are_said(tmp_path, caplog, train):
    root = tmp_path / "set" / train
    draw(root, {"cat": noise(20, 0), "dog": noise(20, 1), ".eel": noise(3, 2), "__MACOSX": []})
    draw(root / "cat", {"more": noise(4, 3)})
    draw(root / "cat" / "more", {"deep": noise(5, 4)})
    (root / ".git" / "objects").mkdir(parents=True)
    (root / "dog" / "notes.txt").touch()
    dataset = load_dataset(str(tmp_path / "set"), 8)
    assert dataset.images.classes == ("cat", "dog") and len(dataset.images.labels) == 40
    [left] = [note for note in dataset.notes if note.startswith("left out")]
    place = train or "."
    assert f"9 images in sub-folders of class folders, such as {place}/cat/more" in left
    assert f"{place}/.eel (its name begins with a dot; rename it if it is a class)" in left
    assert f"{place}/__MACOSX (unpacking leaves it)" in left
    assert f"1 file that by its name is no image, such as {place}/dog/notes.txt" in left
    assert ".git" not in left


@pytest.mark.parametrize("channels", [1, 3])
def test_copies_of_8_bits_in_16_are_counted(tmp_path, channels):
    """As the network sees them."""
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 256, (10, 8, 8), dtype=np.uint8) for name in "ab"}
    draw(tmp_path / "train", pictures)
    for name, arrays in pictures.items():
        (tmp_path / "test" / name).mkdir(parents=True)
        for i, pixels in enumerate(arrays[:2]):
            save_16_bits(tmp_path / "test" / name / str(i), pixels.astype(np.uint16) * 257, channels)
    dataset = load_dataset(str(tmp_path), 8)
    assert dataset.images.reading.white == 65535 and dataset.twins["test"].all()
    seen = [dataset.images.read(dataset.splits[part]).numpy() for part in ("train", "val", "test")]
    assert {each.tobytes() for each in seen[2]} <= {each.tobytes() for each in np.concatenate(seen[:2])}


def save_16_bits(file, pixels, channels):
    if channels == 1:
        Image.fromarray(pixels).save(f"{file}.tif")
    else:
        file.with_suffix(".png").write_bytes(png_of_16_bits(np.repeat(pixels[..., None], 3, -1)))


@pytest.mark.parametrize(
    "names", [("Cat", "cat"), ("big cat", "big  cat"), ("caf\u00e9", "cafe\u0301"), ("stra\u00dfe", "STRASSE")]
)
def test_classes_whose_names_a_person_takes_for_one_are_said(names, tmp_path):
    name = draw(tmp_path / "set", {names[0]: noise(20, 0), names[1]: noise(20, 1), "dog": noise(20, 2)})
    [said] = [note for note in notes_of(name) if "make them one" in note]
    assert all(repr(each) in said for each in names) and "dog" not in said


def test_classes_whose_names_differ_are_not(tmp_path):
    name = draw(tmp_path / "set", {"cat 1": noise(20, 0), "cat 11": noise(20, 1), "cat": noise(20, 2)})
    assert not [note for note in notes_of(name) if "make them one" in note]


def test_a_group_for_each_image_keeps_nothing_together_and_is_said(tmp_path):
    name = draw(tmp_path / "set", {"cat": noise(20, 0), "dog": noise(20, 1)})
    said = "each of the 40 images is a group of its own, so --group-by keeps nothing together"
    assert said in load_dataset(name, 8, reading=Reading(group_by="(.*)")).notes
    assert said not in load_dataset(name, 8, reading=Reading(group_by="([0-9])[.]png")).notes


@pytest.mark.parametrize("pattern", ["(c|d)(.*)", "((c)|d)", "[cd]"])
def test_a_pattern_of_no_group_or_of_several_is_refused(pattern, tmp_path):
    name = draw(tmp_path / "set", {"cat": noise(20, 0), "dog": noise(20, 1)})
    with pytest.raises(
        ValueError, match=r"with one group in brackets \(it has [02]; brackets that are none begin with"
    ):
        load_dataset(name, 8, reading=Reading(group_by=pattern))


def test_an_empty_name_is_not_the_working_folder(tmp_path, monkeypatch):
    draw(tmp_path, {"cat": noise(20, 0), "dog": noise(20, 1)})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="dataset='' is empty"):
        load_dataset("", 8)
    assert load_dataset(".", 8).images.classes == ("cat", "dog")
