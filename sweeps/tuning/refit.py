"""The winner of a finished sweep, fitted again."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ddae.heads import StackedHead
from ddae.probe import Candidate, ProbeResult, fit_probe
from sweeps import cli
from sweeps.layer_noise import LayerNoise
from sweeps.tuning.evaluation import Features, read_features
from sweeps.tuning.extractor import Extractor
from sweeps.tuning.plan import Plan, sweep_folder
from sweeps.tuning.space import Need, Places


@dataclass(frozen=True)
class Refit:
    plan: Plan
    extractor: Extractor
    head: StackedHead
    """Of the one setting that is best on val."""
    result: ProbeResult

    def features(self, split: str) -> Features:
        """Of the cell, on all images of the split; of train every view, the images as they are first."""
        return read_features(self.plan, self.result.candidate, split, len(self.plan.labels[split]))


def newest_sweep(out: Path) -> Path:
    finished = sorted(out.glob("layer-noise-*/results.json"), key=lambda path: path.stat().st_mtime)
    if not finished:
        raise ValueError(f"no finished sweep in --out {out}; run `python sweeps/layer_noise.py` first")
    return finished[-1].parent


def read_winner(folder: Path) -> Candidate:
    """The answer of the sweep in a folder."""
    results = folder / "results.json"
    if not results.exists():
        raise ValueError(f"--sweep {folder} holds no finished sweep; give a folder that holds results.json")
    try:
        return Candidate(**json.loads(results.read_text())["winner"]["candidate"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{results} is damaged; run its sweep again, which takes seconds") from error


def refit(folder: Path, cell: Candidate, with_test: bool) -> Refit:
    """Fit the cell on all training images, with the setting that is best on val; the features are those of the store.

    with_test: the test images' features are made as well.
    """
    flags = cli.parse(LayerNoise, ["--config", str(folder / "config.yaml")], None)
    plan, _, dataset = flags.plan()
    if sweep_folder(flags.out, plan, flags.search, flags.round_size).name != folder.name:
        raise ValueError(f"{flags.backbone} or {flags.dataset} has changed since {folder} was made; sweep again")
    if with_test:
        plan = replace(plan, labels={**plan.labels, "test": dataset.labels("test")})
    extractor = Extractor(plan, torch.get_num_threads())
    places: Places = {cell.timestep: (cell.block,)}
    for need in plan.trial_needs(cell, len(plan.labels["train"]), places):
        extractor.ensure(need)
    if with_test:
        extractor.ensure(Need(cell.timestep, "test", len(plan.labels["test"]), (cell.block,)))
    train, val = (read_features(plan, cell, split, len(plan.labels[split])) for split in ("train", "val"))
    head, result = fit_probe(cell, train, val, plan.num_classes, plan.seed)
    return Refit(plan, extractor, head.only(result.setting), result)
