"""Hand a sweep's answer over: a model to load, to serve, and its features.

    python sweeps/hand_over.py                                        # of the newest sweep under out/
    python sweeps/hand_over.py --sweep out/layer-noise-1a2b3c4d --features parquet

Fits the answer again on all training images, whose features the store has, and writes model/ into the sweep's folder,
for `ddae.load`, and the same as an MLflow model on the sweep's run, for `mlflow models serve`. The test set is not
looked at. Repeated, it writes the same model, and logs it once.
"""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sweeps import cli

if TYPE_CHECKING:
    from ddae.winner import Winner
    from storage.tracking import ServedModel
    from sweeps.tuning.refit import Refit

PORT = 5001


@dataclass(frozen=True)
class HandOver:
    sweep: Path | None = None
    """Folder of a finished sweep."""
    out: Path = Path("out")
    """Where the newest finished sweep is taken from if --sweep is not given."""
    include_backbone: bool = False
    """Copy the network's files into the model, which then works on any machine; else it says where they are."""
    features: Literal["none", "parquet", "hf"] = "none"
    """Write the answer's features too: parquet files, or a dataset for datasets.load_from_disk. Those of the test
    images are among them once final_test.py has run."""
    register: str = ""
    """Make the model a version of this name in MLflow's registry."""


def main(config: HandOver) -> None:
    from storage.results import content_key
    from storage.tracking import Tracker, check_server, tracking_uri
    from sweeps.tuning.outcome import read_test
    from sweeps.tuning.refit import newest_sweep, read_winner, refit

    check_server(tracking_uri())
    folder = config.sweep or newest_sweep(config.out)
    winner, tested = read_winner(folder), read_test(folder)
    fitted = refit(folder, winner, with_test=tested is not None and config.features != "none")
    measured = {"val_accuracy": fitted.result.val_accuracy, "val_stderr": fitted.result.stderr}
    if tested and tested.cell == winner.name:
        measured |= {"test_accuracy": tested.test_accuracy, "test_stderr": tested.test_stderr}
    model, example = folder / "model", folder / "example.png"
    write_example(fitted, example)
    shutil.rmtree(model, ignore_errors=True)
    as_estimator(fitted).save(model, config.include_backbone, measured)
    tracker = Tracker(tracking_uri(), fitted.plan.name, folder.name, folder.name)
    record = json.loads((model / "winner.json").read_text())
    served = tracker.log_model(served_model(model, example), content_key(sweep=folder.name, **record), config.register)
    if config.features != "none":
        write_features(fitted, folder / "features", config.features)
    print(
        f"{winner.name} ({fitted.result.setting}): {100 * fitted.result.val_accuracy:.1f} % on val, fitted on "
        f"{record['num_images']:,} images\n\n"
        f'load it   import ddae\n          winner = ddae.load("{folder}")\n          winner.predict(["{example}"])\n'
        f"serve it  mlflow models serve -m {served} --env-manager local -p {PORT}\n"
        f"ask it    curl http://127.0.0.1:{PORT}/invocations -H 'Content-Type: application/json' -d "
        f"""'{{"dataframe_records": [{{"image": "'$(base64 < {example} | tr -d '\\n')'"}}]}}'"""
        + (f"\nfeatures  {folder / 'features'}" if config.features != "none" else "")
    )


def as_estimator(fitted: "Refit") -> "Winner":
    from ddae.winner import Winner

    plan, result = fitted.plan, fitted.result
    settings = replace(plan.settings, compile=False)
    cell = asdict(result.candidate)
    winner = Winner(
        plan.backbone, **cell, setting=result.setting, seed=plan.seed, noise_seed=plan.key.noise_seed, settings=settings
    )
    classes = fitted.extractor.dataset.images.classes
    return winner.take(fitted.head, result.num_images, range(len(classes)), classes)


def write_example(fitted: "Refit", path: Path) -> None:
    """The first val image, as the network sees it."""
    from PIL import Image

    dataset = fitted.extractor.dataset
    pixels = dataset.images.read(dataset.splits["val"][:1])[0]
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def served_model(model: Path, example: Path) -> "ServedModel":
    import ddae
    import storage
    import sweeps
    from storage.tracking import ServedModel
    from sweeps.tuning import served

    return ServedModel(
        "winner",
        model,
        served.__name__,
        [Path(package.__path__[0]) for package in (ddae, storage, sweeps)],
        [f"{name}=={version(name).partition('+')[0]}" for name in served.PACKAGES],
        served.INPUTS,
        served.OUTPUTS,
        {"image": example.read_bytes()},
    )


def write_features(fitted: "Refit", folder: Path, kind: str) -> None:
    """A row an image: its number in the dataset, label, class and feature; of train without the views."""
    from tempfile import TemporaryDirectory

    import datasets
    import numpy as np

    from storage.feature_store import write_parquet

    splits, classes = fitted.extractor.dataset.splits, fitted.extractor.dataset.images.classes
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with TemporaryDirectory() as scratch:
        files = {}
        for split, labels in fitted.plan.labels.items():
            rows = {"image": splits[split], "label": labels, "class": np.array(classes)[labels]}
            maps = fitted.features(split)[0][: len(labels)]
            files[split] = Path(folder if kind == "parquet" else scratch, f"{split}.parquet")
            write_parquet(maps.flatten(1).numpy(), files[split], rows)
        if kind == "hf":
            datasets.disable_progress_bars()
            tables = datasets.DatasetDict.from_parquet({s: str(f) for s, f in files.items()}, cache_dir=scratch)
            tables.cast_column("label", datasets.ClassLabel(names=list(classes))).save_to_disk(folder)


if __name__ == "__main__":
    cli.run(main, HandOver, __doc__)
