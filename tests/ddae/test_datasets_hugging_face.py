"""Datasets of Hugging Face: saved to disk, folders of Parquet, metadata beside images, and the hub's cache."""

import io
import os
import shutil
import subprocess
import sys
import zipfile

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ddae.datasets import GUESSED, Reading, load_dataset

NAMES = ["cat", "dog", "eel"]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def picture(label, is_test, number=0):
    return Image.new("RGB", (24, 16), (50 * label + 20, 200 * is_test, number))


def make(num, is_test=False, label=None, names=NAMES, name="label", image="image"):
    """num pictures of the classes in turn."""
    columns = {
        "id": list(range(num)),
        image: [picture(i % 3, is_test, i) for i in range(num)],
        name: [i % 3 if label is None else label for i in range(num)],
    }
    types = {"id": datasets.Value("int64"), image: datasets.Image(), name: datasets.ClassLabel(names=names)}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(types))


def save(folder, **splits):
    datasets.DatasetDict(splits).save_to_disk(folder)
    return str(folder)


def parquet(folder, **splits):
    (folder / "data").mkdir(parents=True)
    for split, rows in splits.items():
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return str(folder)


def check(name, num_train, num_test, classes=NAMES, reading=Reading()):  # noqa: B008
    """Every image has its own label, and the test images are those of the test split if there is one."""
    images = load_dataset(name, 16, reading=reading).images
    assert images.classes == tuple(classes)
    assert (images.num_train, len(images.labels)) == (num_train, num_train + num_test)
    pixels = images.read(np.arange(len(images.labels)))
    assert pixels.shape[1:] == (3, 16, 16)
    assert (pixels[:, 0, 8, 8] // 50).tolist() == images.labels.tolist()
    return pixels[:, 1, 8, 8] > 100


@pytest.mark.parametrize("write", [save, parquet])
@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_train_and_held_out(tmp_path, write, held_out):
    name = write(tmp_path / "set", train=make(30), **{held_out: make(9, is_test=True)})
    assert check(name, 30, 9).tolist() == [False] * 30 + [True] * 9


@pytest.mark.parametrize("write", [save, parquet])
def test_train_alone(tmp_path, write):
    check(write(tmp_path / "set", train=make(30)), 24, 6)


def test_one_dataset_saved_to_disk(tmp_path):
    make(30).shuffle(seed=0).select(range(24)).save_to_disk(tmp_path / "set")
    assert len(load_dataset(str(tmp_path / "set"), 16).images.labels) == 24


def test_unlabelled_test_images_are_passed_over(tmp_path):
    name = save(tmp_path / "set", train=make(30), test=make(9, label=-1), validation=make(6, is_test=True))
    assert check(name, 30, 6)[30:].all()
    check(save(tmp_path / "alone", train=make(30), test=make(9, label=-1)), 24, 6)


@pytest.mark.parametrize("split", ["train", "test"])
def test_some_unlabelled_images(tmp_path, split):
    splits = {"train": make(30), "test": make(9)}
    splits[split] = datasets.concatenate_datasets([splits[split], make(2, label=-1)])
    with pytest.raises(ValueError, match=rf"2 of (32|11) images of {split} have no label \(null or -1\)"):
        load_dataset(save(tmp_path / "set", **splits), 16)


def test_a_column_called_label_is_the_label(tmp_path):
    """Though another has the type of one."""
    rows = make(30).rename_column("label", "source").add_column("label", [i % 2 for i in range(30)])
    assert load_dataset(save(tmp_path / "set", train=rows), 16).images.classes == ("0", "1")
    rows = make(30).remove_columns("label").add_column("label", [i % 2 == 0 for i in range(30)])
    assert load_dataset(save(tmp_path / "bools", train=rows), 16).images.classes == ("False", "True")


def test_numbers_that_are_no_classes(tmp_path):
    rows = make(30).remove_columns("label").add_column("label", [i / 7 for i in range(30)])
    with pytest.raises(ValueError, match=r"label has values such as 0\.14.*, which are no classes"):
        load_dataset(save(tmp_path / "set", train=rows), 16)


@pytest.mark.parametrize("values", [[0, 1, 10], ["cat", "dog", "eel"], [0.0, 1.0, 2.0]])
def test_labels_without_names(tmp_path, values):
    rows = make(30).remove_columns("label").add_column("label", [values[i % 3] for i in range(30)])
    check(parquet(tmp_path / "set", train=rows), 24, 6, classes=list(map(str, values)))


def test_classes_without_images_are_left_out(tmp_path):
    check(save(tmp_path / "set", train=make(30, names=[*NAMES, "fox"])), 24, 6)


def test_parquet_of_another_writer(tmp_path):
    """Without HF's own schema metadata an image is a struct and a label an integer."""
    name = parquet(tmp_path / "set", train=make(30))
    file = tmp_path / "set" / "data" / "train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    check(name, 24, 6, classes="012")


def test_several_columns_of_a_type(tmp_path):
    """As CIFAR-100 has a coarse and a fine label."""
    rows = make(30, name="fine_label", image="img")
    more = make(30, name="coarse_label", image="mask").select_columns(["coarse_label", "mask"])
    rows = datasets.concatenate_datasets([rows, more], axis=1)
    name = save(tmp_path / "set", train=rows)
    check(name, 24, 6, reading=Reading(label_column="fine_label"))
    with pytest.raises(
        ValueError, match=r"has 2 label columns \(fine_label, coarse_label\) among id \(Value\), .* with --label-column"
    ):
        load_dataset(name, 16)
    with pytest.raises(ValueError, match=r"label_column='img' is no column .* columns: id \(Value\), img \(Image\)"):
        load_dataset(name, 16, reading=Reading(label_column="img"))


@pytest.mark.parametrize(("column", "what"), [("image", "image"), ("label", "label")])
def test_no_column_of_a_type(tmp_path, column, what):
    with pytest.raises(ValueError, match=rf"has no {what} columns among id \(Value\), .* none called {what}"):
        load_dataset(save(tmp_path / "set", train=make(30).remove_columns(column)), 16)


def test_no_train_split(tmp_path):
    with pytest.raises(ValueError, match="has the splits test, extra; one must be called train"):
        load_dataset(save(tmp_path / "set", test=make(30), extra=make(30)), 16)


def test_splits_that_name_their_classes_differently(tmp_path):
    name = save(tmp_path / "set", train=make(30), test=make(9, names=["dog", "cat", "eel"]))
    with pytest.raises(ValueError, match="image or label differs in type between train and test"):
        load_dataset(name, 16)


def test_a_class_that_is_only_in_test(tmp_path):
    train = make(30).filter(lambda row: row["label"] < 2)
    with pytest.raises(ValueError, match="has test images of 1 class without a training image, such as 'eel'"):
        load_dataset(save(tmp_path / "set", train=train, test=make(9)), 16)


@pytest.mark.parametrize("damage", [{"bytes": b"not an image", "path": None}, None])
def test_broken_image_is_named(tmp_path, damage):
    rows = make(30).cast_column("image", datasets.Image(decode=False))
    rows = rows.map(lambda row: {"image": damage} if row["id"] == 7 else row)
    name = save(tmp_path / "set", train=rows.cast_column("image", datasets.Image()))
    with pytest.raises(ValueError, match=r"image 7 of .*set cannot be read as an image.*--skip-unreadable"):
        load_dataset(name, 16)
    images = load_dataset(name, 16, reading=Reading(skip_unreadable=True)).images
    assert images.reading.left_out == ("7",) and len(images.labels) == 29
    assert (images.read(np.arange(29))[:, 0, 8, 8] // 50).tolist() == images.labels.tolist()
    with pytest.raises(ValueError, match=r"image 7 of .*set cannot be read as an image"):
        load_dataset(name, 16, reading=Reading(check=False)).images.read(np.arange(30))


def write_metadata(folder):
    (folder / "train").mkdir(parents=True)
    for i in range(30):
        picture(i % 3, False, i).save(folder / "train" / f"{i}.png")
    lines = [f"{i}.png,{NAMES[i % 3]}\n" for i in range(30)]
    (folder / "train" / "metadata.csv").write_text("file_name,label\n" + "".join(lines))
    return str(folder)


def test_metadata_beside_images(tmp_path):
    name = write_metadata(tmp_path / "set")
    check(name, 24, 6)
    before = load_dataset(name, 16).images.fingerprint
    picture(0, False, 99).resize((9, 9)).save(tmp_path / "set" / "train" / "3.png")
    assert load_dataset(name, 16).images.fingerprint != before


def test_images_without_labels(tmp_path):
    picture(0, False).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"its images lie in no class folders"):
        load_dataset(str(tmp_path), 16)


def test_an_archive(tmp_path):
    write_metadata(tmp_path / "whole")
    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set" / "pictures.zip", "w") as archive:
        for path in (tmp_path / "whole" / "train").glob("*.png"):
            archive.write(path, f"{NAMES[int(path.stem) % 3]}/{path.name}")
    with pytest.raises(ValueError, match=r"Its cause: .*; unpack .*pictures.zip, and remove it"):
        load_dataset(str(tmp_path / "set"), 16)


def test_a_split_without_rows(tmp_path):
    name = parquet(tmp_path / "set", train=make(30), test=make(9))
    file = tmp_path / "set" / "data" / "test-00000-of-00001.parquet"
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    with pytest.raises(ValueError, match=r"Its cause: .*; remove .*test-00000-of-00001.parquet, which has no rows"):
        load_dataset(name, 16)


@pytest.mark.parametrize("name", ["train", "training"])
def test_a_train_split_without_labels(tmp_path, name):
    rows = make(30, label=-1)
    with pytest.raises(ValueError, match=rf"30 of 30 images of {name} have no label"):
        load_dataset(save(tmp_path / "set", **{name: rows, "test": make(9)}), 16)


def test_folders_that_hugging_face_takes_for_splits():
    assert {word for words in datasets.data_files.SPLIT_KEYWORDS.values() for word in words} == GUESSED


def test_which_columns_and_splits_are_used_is_said(tmp_path, caplog):
    rows = make(30).rename_column("label", "source").add_column("label", [i % 3 for i in range(30)])
    name = save(tmp_path / "set", train=rows, validation=rows, test=rows.select(range(9)), extra=rows)
    load_dataset(name, 16)
    assert "the classes are those of the column label, not those of source" in caplog.text
    assert "left out the splits validation, extra (no split that is used)" in caplog.text


def test_a_label_of_several_numbers(tmp_path):
    rows = make(30).rename_column("label", "source").add_column("label", [[1, 0]] * 30)
    with pytest.raises(ValueError, match=r"label is not one number or text an image; .* --label-column"):
        load_dataset(save(tmp_path / "set", train=rows), 16)
    check(str(tmp_path / "set"), 24, 6, reading=Reading(label_column="source"))


def test_groups_of_a_column_stay_together(tmp_path):
    rows = make(90).add_column("patient", [i // 6 for i in range(90)])
    name = save(tmp_path / "set", train=rows)
    dataset = load_dataset(name, 16, reading=Reading(group_by="patient"))
    apart = [set(dataset.images.groups[each]) for each in dataset.splits.values()]
    assert sum(map(len, apart)) == 15 == len(set.union(*apart))
    assert dataset.images.fingerprint != load_dataset(name, 16).images.fingerprint
    with pytest.raises(ValueError, match=r"group_by='doctor' is no column of .*; columns: id \(Value\)"):
        load_dataset(name, 16, reading=Reading(group_by="doctor"))


def test_what_is_no_dataset(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"no images that are read; its files are 1 of \.bin") as error:
        load_dataset(str(tmp_path), 16)
    assert len(str(error.value).splitlines()) == 1


def test_another_process_and_place_find_the_same_fingerprint(tmp_path):
    names = [write(tmp_path / write.__name__, train=make(30), test=make(9)) for write in (save, parquet)]
    copies = [shutil.copytree(name, f"{name}-copied", copy_function=shutil.copyfile) for name in names]
    code = "import sys, ddae.datasets as d; print([d.load_dataset(n, 16).images.fingerprint for n in sys.argv[1:]])"
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *copies]
    other = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
    assert str([load_dataset(name, 16).images.fingerprint for name in names]) == other.strip()


def test_what_changes_the_fingerprint(tmp_path):
    def fingerprint(name, image_size=16, **splits):
        return load_dataset(save(tmp_path / name, **splits), image_size).images.fingerprint

    rows, test = make(30), make(9)
    relabelled = rows.remove_columns("label").add_column(
        "label", [*rows["label"][:-1], 0], feature=rows.features["label"]
    )
    repainted = rows.cast_column("image", datasets.Image(decode=False)).map(
        lambda row: {"image": {"bytes": encode(picture(0, False, 200)), "path": None}} if row["id"] == 7 else row
    )
    found = [
        fingerprint("a", train=rows, test=test),
        fingerprint("b", image_size=32, train=rows, test=test),
        fingerprint("c", train=relabelled, test=test),
        fingerprint("d", train=repainted.cast_column("image", datasets.Image()), test=test),
        fingerprint("e", train=rows.select(range(29)), test=test),
        fingerprint("f", train=rows),
    ]
    assert len(set(found)) == len(found)


def encode(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("write", [parquet, lambda folder, **_: write_metadata(folder)])
def test_the_hub(tmp_path, write):
    """From a cache as the hub's client writes it: links to blobs, in one folder a commit."""
    repo, commit = tmp_path / "cache" / "hub" / "datasets--owner--name", "c0ffee" + "0" * 34
    write(tmp_path / "set", train=make(30))
    for number, file in enumerate(path for path in (tmp_path / "set").rglob("*") if path.is_file()):
        (repo / "blobs").mkdir(parents=True, exist_ok=True)
        link = repo / "snapshots" / commit / file.relative_to(tmp_path / "set")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(shutil.copy(file, repo / "blobs" / str(number)))
    for ref in ("main", "v1"):
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / ref).write_text(commit)
    for name in ("owner/name", "owner/name@v1", f"owner/name@{commit}"):
        check(name, 24, 6)
    with pytest.raises(ValueError, match=r"dataset='owner/name@v2' .*LocalEntryNotFoundError"):
        load_dataset("owner/name@v2", 16)


def test_the_hub_out_of_reach():
    with pytest.raises(
        ValueError, match=r"dataset='nobody/nothing' is neither .*Hugging Face does not load it"
    ) as error:
        load_dataset("nobody/nothing", 16)
    assert len(str(error.value).splitlines()) == 1


def test_groups_of_a_column_that_test_lacks(tmp_path):
    rows = make(30).add_column("patient", [i // 6 for i in range(30)])
    name = save(tmp_path / "set", train=rows, test=make(9))
    with pytest.raises(ValueError, match=r"group_by='patient': test of dataset=.* lacks the column"):
        load_dataset(name, 16, reading=Reading(group_by="patient"))


@pytest.mark.parametrize("names", [("trainset", "testset"), ("Train", "Test"), ("trn", "tst")])
def test_splits_that_hugging_face_does_not_know_are_not_trained_on(tmp_path, names):
    """Neither those of Parquet nor those of images with metadata."""
    for kind in ("files", "folders", "images"):
        root = tmp_path / kind
        for i, part in enumerate(names):
            if kind == "images":
                write_metadata(tmp_path / f"one{i}")
                shutil.move(tmp_path / f"one{i}" / "train", root / part)
            else:
                rows = make(30, is_test=part == names[1])
                rows.to_parquet(root / (f"{part}.parquet" if kind == "files" else f"{part}/rows.parquet"))
        with pytest.raises(ValueError, match=rf"{names[1]}.* is called like test images, and Hugging Face makes no"):
            load_dataset(str(root), 16)


@pytest.mark.parametrize("place", ["", "train"])
def test_images_that_the_metadata_does_not_name_are_counted(tmp_path, caplog, place):
    name = write_metadata(tmp_path / "set")
    assert load_dataset(name, 16).notes == load_dataset(name, 16).notes and "does not name" not in caplog.text
    file = tmp_path / "set" / "train" / "metadata.csv"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:16]))
    if not place:
        name += "/train"
    assert len(load_dataset(name, 16).images.labels) == 15
    assert "left out 15 of 30 images that the metadata does not name, such as" in caplog.text


@pytest.mark.parametrize("num_others", [0, 1])
def test_a_label_of_one_image_each_is_no_class(tmp_path, num_others):
    rows = make(30).rename_column("label", "class").add_column("label", [f"picture {i}" for i in range(30)])
    rows = rows if num_others else rows.remove_columns("class")
    match = r"label has another value for each of the 30 images of train.* with --label-column"
    with pytest.raises(ValueError, match=match + (", such as class; columns: id" if num_others else "; columns: id")):
        load_dataset(save(tmp_path / "set", train=rows), 16)
    if num_others:
        check(str(tmp_path / "set"), 24, 6, reading=Reading(label_column="class"))


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_groups_without_a_name(tmp_path, missing):
    """They are not one group."""
    rows = make(30).add_column("patient", [float(i // 6) if i < 20 else missing for i in range(30)])
    with pytest.raises(ValueError, match=r"group_by='patient': 10 of 30 images of .* have no value in it"):
        load_dataset(save(tmp_path / "set", train=rows), 16, reading=Reading(group_by="patient"))
