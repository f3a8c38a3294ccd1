"""Test a sweep's answer on the test set, once.

    python sweeps/final_test.py                              # the newest sweep under out/
    python sweeps/final_test.py --sweep out/layer-noise-1a2b3c4d

The sweep chose on val, so its val accuracy is a little too good; this number is not. It is recorded beside the
sweep and in MLflow, and given again, not measured again, when the command is repeated: a test set that is looked at
twice is a second val set.
"""

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ddae.probe import Candidate
from sweeps import cli
from sweeps.layer_noise import LayerNoise


@dataclass(frozen=True)
class FinalTest:
    sweep: Path | None = None
    """Folder of a finished sweep."""
    out: Path = Path("out")
    """Where the newest finished sweep is taken from if --sweep is not given."""


def main(config: FinalTest) -> None:
    folder = config.sweep or newest_sweep(config.out)
    record = folder / "final_test.json"
    if not (folder / "results.json").exists():
        raise ValueError(f"--sweep {folder} holds no finished sweep; give a folder that holds results.json")
    try:
        winner = Candidate(**json.loads((folder / "results.json").read_text())["winner"]["candidate"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'results.json'} is damaged; run its sweep again, which takes seconds") from error
    if not record.exists():
        measure(folder, winner, record)
    result = json.loads(record.read_text())
    if result["cell"] != winner.name:
        raise ValueError(
            f"the test set has been looked at for {result['cell']} ({100 * result['test_accuracy']:.1f} %), and the "
            f"sweep has since chosen {winner.name}; delete {record} if you mean to look again"
        )
    print(
        f"{result['cell']} ({result['setting']}), {result['num_train']:,} training images\n"
        f"test accuracy  {100 * result['test_accuracy']:.1f} +- {100 * result['test_stderr']:.1f} % "
        f"on {result['num_test']:,} images, measured once on {result['date']}\n"
        f"val accuracy   {100 * result['val_accuracy']:.1f} % when it was chosen"
    )


def measure(folder: Path, cell: Candidate, record: Path) -> None:
    """Fit the cell again on all training images and score it on the test images."""
    import torch

    from ddae.probe import fit_probe, standard_error
    from ddae.report import with_test
    from storage.feature_store import published
    from storage.tracking import Tracker, check_server, tracking_uri
    from sweeps.tuning.evaluation import read_features
    from sweeps.tuning.extractor import Extractor
    from sweeps.tuning.plan import sweep_folder
    from sweeps.tuning.reporting import test_text
    from sweeps.tuning.space import Need, Places

    check_server(tracking_uri())
    flags = cli.parse(LayerNoise, ["--config", str(folder / "config.yaml")], None)
    plan, _, dataset = flags.plan()
    if sweep_folder(flags.out, plan, flags.search, flags.round_size).name != folder.name:
        raise ValueError(f"{flags.backbone} or {flags.dataset} has changed since {folder} was made; sweep again")
    plan = replace(plan, labels={**plan.labels, "test": dataset.labels("test")})
    extractor = Extractor(plan, torch.get_num_threads())
    places: Places = {cell.timestep: (cell.block,)}
    labels = plan.labels
    for need in plan.trial_needs(cell, len(labels["train"]), places):
        extractor.ensure(need)
    extractor.ensure(Need(cell.timestep, "test", len(labels["test"]), (cell.block,)))
    train, val, test = (read_features(plan, cell, split, len(labels[split])) for split in ("train", "val", "test"))
    head, result = fit_probe(cell, train, val, plan.num_classes, plan.seed)
    predicted = head(test[0])[head.settings.index(result.setting)].argmax(-1)
    accuracy = float((predicted == test[1]).float().mean())
    final = {
        "cell": cell.name,
        "setting": result.setting,
        "num_train": len(labels["train"]),
        "num_test": len(test[1]),
        "test_accuracy": accuracy,
        "test_stderr": standard_error(accuracy, len(test[1])),
        "val_accuracy": result.val_accuracy,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    page = folder / "report.html"
    if page.exists():
        html = with_test(page.read_text(encoding="utf-8"), test_text(final, folder, cell.name))
        with published(page) as part:
            part.write_text(html, encoding="utf-8")
    tracker = Tracker(tracking_uri(), plan.name, folder.name, folder.name)
    measured = {"test_accuracy": accuracy, "test_stderr": standard_error(accuracy, len(test[1]))}
    tracker.finish(measured, [page] if page.exists() else [])
    with published(record) as part:
        part.write_text(json.dumps(final, indent=1))


def newest_sweep(out: Path) -> Path:
    finished = sorted(out.glob("layer-noise-*/results.json"), key=lambda path: path.stat().st_mtime)
    if not finished:
        raise ValueError(f"no finished sweep in --out {out}; run `python sweeps/layer_noise.py` first")
    return finished[-1].parent


if __name__ == "__main__":
    cli.run(main, FinalTest, __doc__)
