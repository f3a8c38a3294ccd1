"""Where a local store knows a dataset from: a copy of its folder, and what version 0.2 has stored."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sweeps.layer_noise import LayerNoise
from sweeps.probing.extractor import Extractor
from sweeps.probing.source import Need, load_model, open_source


@pytest.fixture
def pets(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / "pets" / name / f"{i}.png")
    return tmp_path / "pets"


@pytest.fixture
def source_of(tiny_model, tmp_path):
    backbone = load_model(LayerNoise(tiny_model))

    def source_of(folder, store=str(tmp_path / "store"), **flags):
        return open_source(LayerNoise(tiny_model, str(folder), store=store, **flags), backbone, 4)[0]

    return source_of


def as_of_0_2(source, folder):
    """The source as version 0.2 would have it: known by the times of the files."""
    from ddae.datasets import load_dataset

    return replace(source, key=replace(source.key, images=load_dataset(str(folder), 16).images.old_fingerprint))


def test_a_copy_under_another_name_has_the_same_features(source_of, pets):
    first = source_of(pets)
    (Path(first.store) / first.folder()).mkdir(parents=True)
    copy = shutil.copytree(pets, pets.parent / "copy", copy_function=shutil.copyfile)
    assert source_of(copy).folder() == first.folder()
    Image.new("RGB", (9, 9)).save(copy / "cat" / "0.png")
    assert source_of(copy).folder() != first.folder()


def test_what_0_2_stored_is_read(source_of, pets):
    old = as_of_0_2(source_of(pets), pets)
    assert source_of(pets).folder() != old.folder()
    (Path(old.store) / old.folder()).mkdir(parents=True)
    again = source_of(pets)
    assert again.folder() == old.folder() and again.key == old.key
    extractor = Extractor(again)  # a worker knows the images by their bytes
    assert extractor.extract(Need(5, "train", 4, ("mid",)), 0).passes > 0


def test_what_0_2_stored_at_an_address_is_read(source_of, pets, tmp_path):
    address = f"file://{tmp_path / 'address'}"
    old = as_of_0_2(source_of(pets, address), pets)
    (tmp_path / "address" / old.folder()).mkdir(parents=True)
    assert source_of(pets, address).folder() != old.folder()
    (tmp_path / "address" / old.folder() / "_key.json").write_text("{}")
    assert source_of(pets, address).folder() == old.folder()


def test_what_0_2_saw_otherwise_is_extracted_again(source_of, pets, caplog):
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(pets / "cat" / "0.png")
    old = as_of_0_2(source_of(pets), pets)
    (Path(old.store) / old.folder()).mkdir(parents=True)
    assert source_of(pets).folder() != old.folder()
    assert "as version 0.2 saw it (now otherwise: alpha); they are extracted again" in caplog.text


def test_other_files_of_the_times_of_others_are_not_taken_for_them(source_of, pets):
    old = as_of_0_2(source_of(pets), pets)
    (Path(old.store) / old.folder()).mkdir(parents=True)
    for file in pets.rglob("*.png"):
        os.utime(file, (1, 1))
    assert source_of(pets).folder() != old.folder()


def test_a_worker_reads_as_its_driver(source_of, pets):
    """Without opening every image again: what is left out, which value is white, which groups stay together."""
    (pets / "cat" / "0.png").write_bytes(b"")
    for i in range(5):
        Image.fromarray(np.full((9, 9), 100 * i + 1, np.uint16)).save(pets / "dog" / f"{i}.png")
    source = source_of(pets, skip_unreadable=True, group_by="/([0-9])")
    assert not source.reading.check and source.reading.white == 511
    extractor = Extractor(source)
    assert len(extractor.dataset.images.labels) == 19
    assert extractor.extract(Need(5, "train", 4, ("mid",)), 0).num_images == 4


def test_another_set_than_the_drivers_is_refused(source_of, pets):
    source = source_of(pets)
    Image.new("RGB", (9, 9)).save(pets / "cat" / "0.png")
    with pytest.raises(ValueError, match="is not the one the sweep was started with"):
        Extractor(source)


def test_colours_that_a_network_of_one_channel_does_not_see_are_said(source_of, pets, caplog):
    source_of(pets)
    assert caplog.text.count("the colours of 12 of 12 training images that were looked at are not seen") == 1
