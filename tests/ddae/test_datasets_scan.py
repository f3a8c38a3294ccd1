"""What opening every image first shows, and what is remembered of it."""

import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from ddae.datasets import Reading, load_dataset, scan

SKIP = Reading(skip_unreadable=True)


@pytest.fixture(autouse=True)
def own_memory(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("ddae.datasets.scan.RACY_SECONDS", -1)


@pytest.fixture
def opened(monkeypatch):
    """The sizes of the files that were opened."""
    seen = []
    inspect = scan.inspect
    monkeypatch.setattr("ddae.datasets.scan.inspect", lambda content: seen.append(len(content)) or inspect(content))
    return seen


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"p{i % 5}-{i}.png")
    return tmp_path / "set"


def fingerprint(folder, reading=Reading()):  # noqa: B008
    return load_dataset(str(folder), 8, reading=reading).images.fingerprint


def test_a_copy_is_the_same_dataset(folder, tmp_path, opened):
    before = fingerprint(folder)
    assert len(opened) == 20
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert fingerprint(copy) == before
    for file in folder.rglob("*.png"):
        os.utime(file, (1, 1))
    assert fingerprint(folder) == before == fingerprint(folder, Reading(check=False))


def test_files_are_opened_once(folder, opened):
    before = fingerprint(folder)
    assert fingerprint(folder) == before and len(opened) == 20
    for file in folder.rglob("*.png"):
        os.utime(file, (1, 1))
    assert fingerprint(folder) == before and len(opened) == 20
    Image.new("RGB", (9, 9)).save(folder / "cat" / "p0-0.png")
    assert fingerprint(folder) != before and len(opened) == 21


def test_other_bytes_of_the_same_size_and_time(folder):
    before, file = fingerprint(folder), folder / "cat" / "p0-0.png"
    status, content = file.stat(), bytearray(file.read_bytes())
    content[-13] ^= 1  # of the last checksum
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint(folder) != before


DAMAGED = "{", '{"stamps": 3}', '{"stamps": {}, "facts": {"a": [1, 2, 3, 4, 5, 6, 7, 8]}}', ""


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_memory_that_is_damaged_or_may_not_be_written(folder, tmp_path, monkeypatch, damage):
    before = fingerprint(folder)
    [memory] = (tmp_path / "cache").rglob("*.json")
    if not damage:
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    else:
        memory.write_text(damage)
    assert fingerprint(folder) == before


BAD = {
    "no image": lambda file: file.write_bytes(b"not an image"),
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-60]),
    "a link to nothing": lambda file: (file.unlink(), file.symlink_to("/nowhere")),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_line_and_can_be_left_out_or_repaired(folder, tmp_path, caplog, kind):
    whole, file = fingerprint(folder), folder / "dog" / "p2-7.png"
    shutil.copy(file, tmp_path / "kept.png")
    BAD[kind](file)
    with pytest.raises(ValueError, match=r"dog/p2-7.png cannot be read as an image .*--skip-unreadable") as error:
        load_dataset(str(folder), 8)
    assert len(str(error.value).splitlines()) == 1 and "BytesIO" not in str(error.value)
    left = load_dataset(str(folder), 8, reading=SKIP).images
    assert len(left.labels) == 19 and "left out 1 of 20 images: " in caplog.text
    worker = load_dataset(str(folder), 8, reading=Reading(check=False, left_out=left.reading.left_out)).images
    assert worker.fingerprint == left.fingerprint
    file.unlink()
    assert fingerprint(folder) == left.fingerprint
    shutil.copy(tmp_path / "kept.png", file)
    assert fingerprint(folder) == whole == fingerprint(folder, SKIP)


def test_a_long_look_is_said(folder, monkeypatch, caplog):
    monkeypatch.setattr("ddae.datasets.scan.LONG", 19)
    fingerprint(folder)
    assert "20 images are opened, this once; --no-check-data leaves that out" in caplog.text
    caplog.clear()
    fingerprint(folder)
    assert "are opened" not in caplog.text


def test_many_bad_files_are_one_line(folder):
    for file in folder.rglob("p[0-3]*.png"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"; and 13 more; repair or remove the files, or leave them out") as error:
        load_dataset(str(folder), 8)
    assert len(str(error.value).splitlines()) == 1


def test_a_class_of_bad_files_alone_is_named(folder, caplog):
    shutil.copytree(folder / "cat", folder / "eel")
    for file in (folder / "eel").iterdir():
        file.write_bytes(b"")
    assert load_dataset(str(folder), 8, reading=SKIP).images.classes == ("cat", "dog")
    assert "left out classes of which no image can be read: eel" in caplog.text


def test_of_very_many_images_some_are_opened(folder, monkeypatch, opened):
    """And a copy is another set."""
    for name, number in (("scan.MANY", 20), ("images.MANY", 20), ("scan.SAMPLE", 5)):
        monkeypatch.setattr(f"ddae.datasets.{name}", number)
    before = fingerprint(folder)
    assert 0 < len(opened) <= 5
    for file in folder.rglob("*.png"):
        os.utime(file, (1, 1))
    assert fingerprint(folder) != before
    for file in folder.rglob("*.png"):
        Image.new("I;16", (8, 8), 900).save(file)
    with pytest.raises(ValueError, match=r"of 20 images not all are opened, and some have more than 8 bits.*--white"):
        fingerprint(folder)


def test_groups_stay_together(folder):
    reading = Reading(group_by="(p[0-9])-")
    dataset = load_dataset(str(folder), 8, reading=reading)
    apart = [set(dataset.images.groups[rows]) for rows in dataset.splits.values()]
    assert sum(map(len, apart)) == 5 == len(set.union(*apart))
    assert fingerprint(folder, reading) != fingerprint(folder)


def test_groups_beside_official_test_images_decide_val(folder):
    for name in ("cat", "dog"):
        (folder / "test" / name).mkdir(parents=True)
        (folder / "train").mkdir(exist_ok=True)
        for file in sorted((folder / name).glob("*9.png")):
            file.rename(folder / "test" / name / file.name)
        (folder / name).rename(folder / "train" / name)
    one, other = (load_dataset(str(folder), 8, reading=Reading(group_by=by)) for by in ("(p[0-9])-", "-([0-9])"))
    assert one.images.fingerprint != other.images.fingerprint
    for dataset in (one, other):
        train, val = (set(dataset.images.groups[dataset.splits[split]]) for split in ("train", "val"))
        assert train and val and not train & val
        assert sorted(dataset.splits["test"]) == [18, 19]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("p[0-9]", "must be a regular expression with one group"),
        ("(p[0-9]", "must be a regular expression with one group"),
        ("(p[0-3])-", "is not found in cat/p4-4.png"),
        ("(png)", "group_by leaves 1 group where two are needed"),
        ("^([a-z]+)/", "leaves 1 class without a training image"),
    ],
)
def test_groups_that_cannot_be(folder, pattern, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_dataset(str(folder), 8, reading=Reading(group_by=pattern))


def test_groups_of_what_has_no_files():
    with pytest.raises(ValueError, match="has no files or columns to group by"):
        load_dataset("digits", 8, reading=Reading(group_by="(a)"))


@pytest.mark.parametrize("white_is_zero", [False, True])
def test_what_0_2_saw_alike_keeps_its_features(folder, white_is_zero):
    """Of 16 bits that are used it took the upper 8; where 0 is white it did not see that."""
    tags = {262: 0} if white_is_zero else {}
    for i, file in enumerate(sorted(folder.rglob("*.png"))):
        Image.fromarray(np.full((8, 8), 3000 * i, np.uint16)).save(file, "TIFF", tiffinfo=tags)
    assert load_dataset(str(folder), 8).images.reading.shown == ("inverted" if white_is_zero else "")


NO_IMAGES = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n", "git lfs pull"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(99), "it is HEIC"),
    "web page": (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
    "empty": (b"", "it is empty"),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_is_no_image_is_called_what_it_is(kind, folder):
    content, said = NO_IMAGES[kind]
    (folder / "cat" / "p0-0.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"p0-0\.png cannot be read as an image \(.*{said}"):
        load_dataset(str(folder), 8)


@pytest.mark.parametrize("suffix", [".heic", ".npy", ".dcm", ""])
def test_a_folder_of_files_that_are_not_read(suffix, folder):
    for file in folder.rglob("*.png"):
        file.rename(file.with_suffix(suffix))
    with pytest.raises(ValueError, match=f"no images that are read; its files are 20 of {suffix or 'no suffix'}"):
        load_dataset(str(folder), 8)


@pytest.mark.parametrize(
    ("name", "said"), [("set.zip", "is a file; unpack it"), ("a.parquet", "is a file; give the folder")]
)
def test_a_file_is_no_dataset(name, said, tmp_path):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(ValueError, match=said):
        load_dataset(str(tmp_path / name), 8)


def test_a_class_whose_link_leads_nowhere_is_named(folder, caplog):
    (folder / "bird").symlink_to(folder / "gone")
    load_dataset(str(folder), 8)
    assert "bird (a link that leads nowhere)" in caplog.text


def test_a_folder_that_was_moved(folder):
    gone = folder.rename(folder.with_name("moved here")).with_name("set")
    with pytest.raises(ValueError, match=f"if it was moved, put a link to it there: ln -s THERE {gone}"):
        load_dataset(str(gone), 8)


def test_a_class_whose_name_is_no_text_is_written_out(folder):
    os.rename(folder / "dog", os.fsencode(folder) + b"/\xe9t\xe9")
    assert load_dataset(str(folder), 8).images.classes == ("cat", r"\xe9t\xe9")
