"""Hands over the answer of a finished sweep, of any Task that ends in a classifier: a model, and its features."""

import json
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

import ddae
import storage
import sweeps
from storage.feature_store import write_parquet
from storage.ledger import content_key
from storage.tracking import NotLogged, Tracker
from sweeps import served
from sweeps.classifiers import Classifier, newest, room_of
from sweeps.cli import check_writable
from sweeps.findings import logged
from sweeps.findings.folder import named, read_test

__all__ = ["hand_over", "named", "newest"]

PORT = 5001
TEST_METRICS = "test_accuracy", "test_stderr", "test_balanced_accuracy", "test_balanced_stderr"


def hand_over(folder: Path, include_backbone: bool, kind: str, register: str) -> tuple[str, str]:
    """Write model/ and example.png into the sweep's folder, and log the model on the sweep's run, once. Returns how it
    is used, for people, and why it could not be logged, if so.

    kind: of the features that are written too: none, parquet or hf; those of test are among them once test has been
    measured. register: a name in MLflow's registry, if any.
    """
    check_writable(folder)
    logged.check(folder)
    tested = read_test(folder)
    wanted = ("test",) if tested is not None and kind != "none" else ()
    room = room_of(folder)
    fitted: Classifier = room.reopen(folder, wanted)
    measured = dict(fitted.result.metrics)
    if tested and tested.cell == room.answer_name(folder):
        measured |= {
            name: value for name, value in asdict(tested).items() if name in TEST_METRICS and value is not None
        }
    model, example = folder / "model", folder / "example.png"
    write_example(fitted, example)
    shutil.rmtree(model, ignore_errors=True)
    fitted.estimator().save(model, include_backbone, measured)
    features = folder / "features"
    if kind != "none":
        write_features(fitted, features, kind, ("train", "val", *wanted))
    chosen = fitted.task.objectives[0].text(fitted.result)
    lines = [
        f"{fitted.name} ({fitted.result.params.get('setting', '')}): {chosen} on val, "
        f"fitted on {fitted.num_train:,} images\n",
        f"load it   import ddae\n          winner = ddae.load({as_text(folder)})",
        f"          winner.predict([{as_text(example)}])",
    ]
    trouble = ""
    try:
        address = log_model(fitted, folder, register)
    except NotLogged as error:
        trouble = f"the model stands in {model}, but {error}"
    else:
        lines += [
            f"serve it  mlflow models serve -m {address} --env-manager local -p {PORT}",
            f"ask it    curl http://127.0.0.1:{PORT}/invocations -H 'Content-Type: application/json' -d "
            f"""'{{"dataframe_records": [{{"image": "'$(base64 < {quote(str(example))} | tr -d '\\n')'"}}]}}'""",
        ]
    return "\n".join([*lines, *([f"features  {features}"] if kind != "none" else [])]), trouble


def as_text(path: Path) -> str:
    """A path as Python has it in its source."""
    return json.dumps(str(path), ensure_ascii=False)


def log_model(fitted: Classifier, folder: Path, register: str) -> str:
    """The address of the model in a sweep's folder, logged on the sweep's run."""
    record = json.loads((folder / "model" / "winner.json").read_text())
    name = logged.name_of(folder)
    tracker = Tracker(logged.uri_of(folder), fitted.experiment, name, name)
    return tracker.log_model(
        "winner",
        content_key(sweep=name, **record),
        register,
        (served.INPUTS, served.OUTPUTS),
        {"image": (folder / "example.png").read_bytes()},
        data_path=str(folder / "model"),
        loader_module=served.__name__,
        code_paths=[package.__path__[0] for package in (ddae, storage, sweeps)],
        pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in served.PACKAGES],
    )


def write_example(fitted: Classifier, path: Path) -> None:
    """Write the first val image, as the network sees it."""
    pixels = fitted.dataset.images.read(fitted.dataset.splits["val"][:1])[0]
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def write_features(fitted: Classifier, folder: Path, kind: str, splits: tuple[str, ...]) -> None:
    """Write a row an image: its number in the dataset, label, class and feature; of train without the views."""
    classes = fitted.dataset.images.classes
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with TemporaryDirectory() as scratch:
        files = {}
        for split in splits:
            labels = fitted.dataset.labels(split)
            rows = {"image": fitted.dataset.splits[split], "label": labels, "class": np.array(classes)[labels]}
            files[split] = Path(folder if kind == "parquet" else scratch, f"{split}.parquet")
            write_parquet(fitted.features(split), files[split], rows)
        if kind == "hf":
            import datasets

            datasets.disable_progress_bars()
            tables = datasets.DatasetDict.from_parquet({s: str(f) for s, f in files.items()}, cache_dir=scratch)
            tables.cast_column("label", datasets.ClassLabel(names=list(classes))).save_to_disk(folder)
