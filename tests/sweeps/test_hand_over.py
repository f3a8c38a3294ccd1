"""The answer of a real sweep as people get it: loaded, served over HTTP, and as a table of features."""

import base64
import io
import json
import re
import shlex
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset as load_table
from datasets import load_from_disk
from PIL import Image

import ddae
from ddae.datasets import load_dataset
from storage.tracking import Tracker
from tests.commands import PATIENCE_SECONDS
from tests.servers import answers, free_port, serving


def run(fork, command, *args, cwd):
    out, err = (process := fork(command, *args, cwd=cwd)).communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def place(fork, tiny_model, tmp_path_factory):
    """Where a sweep has ended."""
    place = tmp_path_factory.mktemp("sweep")
    small = ["--timesteps", "0", "100", "--blocks", "mid", "up.1.0", "--poolings", "2", "--heads", "linear", "ridge"]
    run(fork, "layer_noise", "--backbone", tiny_model, "--dataset", "digits", *small, "--search", "grid", cwd=place)
    return place


@pytest.fixture(scope="module")
def printed(place, fork):
    return run(fork, "hand_over", "--features", "parquet", "--register", "digits", cwd=place)


@pytest.fixture(scope="module")
def folder(printed, place):
    [folder] = place.glob("out/layer-noise-*")
    return folder


@pytest.fixture(scope="module")
def winner(folder):
    return ddae.load(folder)


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("digits", 16)


def tracked(place):
    tracker = Tracker(f"sqlite:///{place}/mlflow.db", "digits", "unused", "unused")
    tracker.client.delete_run(tracker.parent_id)
    return tracker


def test_what_is_loaded_is_the_answer_of_the_sweep(winner, folder, dataset):
    """On the sweep's own noise its val accuracy to the image, on the images' own about the same."""
    answer = json.loads((folder / "results.json").read_text())["answer"]
    assert {name: getattr(winner, name) for name in answer["cell"]} == answer["cell"]
    assert winner.setting == answer["setting"]
    assert winner.measured_["val_accuracy"] == answer["val_accuracy"]
    rows, labels = dataset.splits["val"], dataset.labels("val")
    images = dataset.images.read(rows)
    maps = winner._maps(images, rows)
    assert (winner.head_(maps)[0].argmax(-1).numpy() == labels).mean() == pytest.approx(
        answer["val_accuracy"], abs=1e-6
    )
    assert winner.score(images, labels) == pytest.approx(answer["val_accuracy"], abs=4 * answer["val_stderr"])


def test_mlflow_has_the_model_once(printed, fork, place):
    tracker = tracked(place)
    [model] = tracker.client.search_logged_models([tracker.experiment_id])
    assert f"models:/{model.model_id} " in printed
    assert printed.startswith(run(fork, "hand_over", "--register", "digits", cwd=place).rstrip())
    assert [same.model_id for same in tracker.client.search_logged_models([tracker.experiment_id])] == [model.model_id]
    [version] = tracker.client.search_model_versions("name = 'digits'")
    parent = tracker.client.get_run(model.source_run_id)
    assert version.source == f"models:/{model.model_id}"
    assert parent.info.status == "FINISHED" and parent.info.run_name.startswith("layer-noise-")
    assert [output.model_id for output in parent.outputs.model_outputs] == [model.model_id]
    assert model.params["dataset"] == "digits"
    files = [path for path in Path(model.artifact_location.removeprefix("file://")).rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".bin")]
    [pinned] = [path for path in files if path.name == "requirements.txt"]
    assert "torch==" in pinned.read_text()


def test_features_come_back_as_tables(printed, winner, folder, dataset, fork, place):
    files = {split: str(folder / "features" / f"{split}.parquet") for split in ("train", "val")}
    check_features(load_table("parquet", data_files=files, cache_dir=str(place / "cache")), winner, dataset)
    assert len(list((folder / "features").iterdir())) == 2  # nothing of test, which nobody has looked at
    run(fork, "final_test", cwd=place)
    run(fork, "hand_over", "--features", "hf", cwd=place)
    tables = load_from_disk(str(folder / "features"))
    check_features(tables, winner, dataset)
    assert len(tables["test"]) == 359
    assert tables["val"].features["label"].names == list("0123456789")
    tested = json.loads((folder / "final_test.json").read_text())["test_accuracy"]
    assert ddae.load(folder).measured_["test_accuracy"] == tested


def check_features(tables, winner, dataset):
    for split in ("train", "val"):
        table, rows = tables[split].with_format("numpy"), dataset.splits[split]
        np.testing.assert_array_equal(table["image"][:], rows)
        np.testing.assert_array_equal(table["label"][:], dataset.labels(split))
        assert table["class"][:5].tolist() == list(map(str, dataset.labels(split)[:5]))
        features = winner.transform(dataset.images.read(rows[:20]), rows[:20])
        np.testing.assert_allclose(np.stack(table["features"][:20]), features, atol=2e-3)


@pytest.fixture(scope="module")
def address(printed, place):
    """Of the server that the printed command starts."""
    [command] = re.findall(r"serve it  (mlflow models serve .*) -p \d+", printed)
    address = f"http://127.0.0.1:{(port := free_port())}"
    with serving([*shlex.split(command), "-p", str(port)], partial(answers, f"{address}/ping"), place / "log", place):
        yield address


def post(address, content, kind="application/json"):
    """(status, answer)"""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def rows_of(*files):
    return {"dataframe_records": [{"image": base64.b64encode(file).decode()} for file in files]}


def png(image):
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).resize((16, 16)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
def test_the_server_answers_with_what_predict_says(address, winner, folder, dataset):
    files = [png(image) for image in dataset.images.read(dataset.splits["val"][:24])]
    files.append((folder / "example.png").read_bytes())
    expected, probabilities = winner.predict(files), winner.predict_proba(files).max(1)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda file: post(address, rows_of(file)), files))
    for (status, answer), label, probability in zip(answers, expected, probabilities, strict=True):
        assert status == 200
        [row] = answer["predictions"]
        assert (row["label"], row["class"]) == (label, str(label))
        assert row["probability"] == pytest.approx(probability, abs=1e-3)
    status, answer = post(address, rows_of(*files))
    assert [row["label"] for row in answer["predictions"]] == expected.tolist()


@pytest.mark.slow
def test_the_server_refuses_what_is_no_image(address, folder):
    good = (folder / "example.png").read_bytes()
    for content, message in (
        (rows_of(b"no image"), "image 0 cannot be read as an image"),
        (rows_of(good, good[:60]), "image 1 cannot be read as an image"),
        ({"dataframe_records": [{"image": "@@@"}]}, "image 0 cannot be read as an image"),
        ({"dataframe_records": [{"image": None}]}, "image"),
        ({"dataframe_records": [{"picture": ""}]}, "image"),
        ({"dataframe_records": []}, ""),
        ({"rows": []}, "dataframe_records"),
        (b"{", "valid JSON"),
    ):
        status, answer = post(address, content)
        assert 400 <= status < 500, content
        assert message in answer["message"]
    status, answer = post(address, f"image\n{folder / 'example.png'}\n".encode(), "text/csv")
    assert status == 400 and "cannot be read" not in answer["message"]  # no file of the server's
    assert post(address, rows_of(good))[0] == 200
