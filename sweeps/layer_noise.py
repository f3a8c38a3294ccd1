"""Find the best frozen feature of a diffusion model: block x timestep x pooling x head.

    python sweeps/layer_noise.py                                             # the model and images that ship with it
    python sweeps/layer_noise.py --backbone google/ddpm-cifar10-32 --dataset cifar10
    python sweeps/layer_noise.py --backbone ./my-model --dataset ./my-images --dry-run

A few hundred noised images pass the network once at every timestep; all blocks are kept, pooled, as Arrow shards, and
ridge regression looks at each. The better half of the timesteps is looked at on four times as many images, down to
the blocks that cannot be told from the best, and so on. At what is left Optuna proposes cells, and ASHA drops the worse
ones on a quarter of the images. Val is carved from train; the test set is left to final_test.py.

Stop it at any time: the same command goes on, computes nothing twice and logs nothing twice.

Environment: RAY_ADDRESS (a cluster; else this machine), MLFLOW_TRACKING_URI (else sqlite:///mlflow.db), HF_HOME,
CUDA_VISIBLE_DEVICES; of a store at an address AWS_ENDPOINT_URL and the like, and XDG_CACHE_HOME.
"""

import csv
import json
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml
from filelock import FileLock, Timeout

from sweeps import cli

if TYPE_CHECKING:
    from ddae.backbones import Backbone
    from ddae.datasets import Dataset
    from storage.tracking import Tracker
    from sweeps.tuning.outcome import FinishedTrial, LabelFree
    from sweeps.tuning.plan import Plan
    from sweeps.tuning.race import Race
    from sweeps.tuning.run import Sweep


@dataclass(frozen=True)
class LayerNoise(cli.ModelAndData):
    poolings: tuple[int, ...] = (1, 2, 4)
    """Average-pool each map to p x p numbers a channel."""
    heads: tuple[str, ...] = ("linear", "mlp")
    """linear (logistic regression), logistic, ridge, knn, ddae, bn-linear, mlp, cnn, attention; with sizes as in the
    papers: mlp-1024, mlp-2048-2048, cnn-256-256, attention-3."""
    search: Literal["optuna", "random", "grid"] = "optuna"
    """optuna and random stop the worse cells early (ASHA); grid fits every cell on all images."""
    num_trials: int = 40
    """Cells that optuna or random try."""
    round_size: int = 4
    """Cells that optuna proposes at once, to be fitted side by side; raise it where there are more CPUs. What is tried
    depends on it, and not on the CPUs."""
    keep: float = 0.5
    """Share of the timesteps that stay in the race after each look; --keep 0.25 --finalists 1 is the thriftiest."""
    finalists: int = 2
    """So many timesteps stay to the end, but for those where every block is clearly worse."""
    start: Literal["ridge", "label-free"] = "ridge"
    """What makes the first cut of the timesteps: ridge on the labels of a few images, or the label-free ranking, which
    leaves out the first look."""
    views: int = 1
    """Views of every training image that heads are fitted on: 1 is the image as it is, more are flipped and cropped."""
    seed: int = 0
    """Of the search and the heads."""
    list_blocks: bool = False
    """Print the model's blocks, and stop."""

    def plan(self) -> tuple["Plan", "Backbone", "Dataset"]:
        """Raises ValueError for what cannot be searched."""
        from sweeps.tuning.plan import make_plan

        race = self.search == "grid", self.keep, self.finalists
        return make_plan(self, self.poolings, self.heads, self.seed, *race, self.views, self.start)


def main(config: LayerNoise) -> None:
    started = time.time()
    from storage.tracking import Tracker, check_server, tracking_uri
    from sweeps.tuning.estimate import block_table, estimate
    from sweeps.tuning.outcome import warm_start
    from sweeps.tuning.plan import load_model, sweep_folder
    from sweeps.tuning.race import best_timesteps
    from sweeps.tuning.run import AXES, COLUMNS, Search, Sweep, check_cluster, ray_cluster

    search = Search(config.search, config.num_trials, config.seed, config.round_size)
    if config.list_blocks:
        print(block_table(load_model(config)))
        return
    plan, backbone, dataset = config.plan()
    if config.dry_run:
        print(estimate(plan, backbone, dataset, *plan.least_and_most()))
        return
    check_server(tracking_uri())
    check_cluster()
    folder = sweep_folder(config.out, plan, config.search, config.round_size)
    if (report := finished_report(folder, config)) is not None:
        print(report)
        return
    cli.check_writable(folder, plan.store)
    with only_process(folder), Tracker(tracking_uri(), plan.name, folder.name, folder.name) as tracker:
        (folder / "config.yaml").write_text(yaml.safe_dump(as_flags(config)))
        tracker.log_params({**as_flags(config), "backbone_sha256": plan.key.backbone, "store_folder": plan.folder()})
        tracker.show("val_accuracy", COLUMNS, AXES)
        loaded = time.time()
        with ray_cluster(), Sweep(plan) as sweep:
            sweep.busy.append((started, loaded))
            label_free = sweep.label_free() if config.start == "label-free" else None
            race = sweep.look(best_timesteps(plan, label_free.ranking) if label_free else None)
            label_free = label_free or sweep.label_free()
            trials = sweep.search(search, race, warm_start(plan, race), tracker)
            print(conclude(config, sweep, label_free, race, trials, folder, tracker, started))


def conclude(
    config: LayerNoise,
    sweep: "Sweep",
    label_free: "LabelFree",
    race: "Race",
    trials: list["FinishedTrial"],
    folder: Path,
    tracker: "Tracker",
    started: float,
) -> str:
    """Choose, draw, write and log; returns the report. results.json is written last: a sweep that has it is done."""
    import numpy as np

    from ddae.report import render
    from storage.tracking import hidden
    from sweeps.tuning import outcome, reporting, sections
    from sweeps.tuning.study import write_study

    plan = sweep.plan
    answer = outcome.choose(plan, trials)
    baseline = sweep.baseline(answer.winner.candidate.head)
    portrait = sweep.portrait(answer.winner)
    with sweep.at_work():
        found = sections.Findings(plan, answer, trials, race, label_free, portrait)
        drawn = sections.draw(found, folder / "figures")
    looked = race.accuracy(plan)
    cost = sweep.cost(race, trials, started)
    facts = outcome.answer_facts(plan, answer, trials, baseline, race, label_free, cost)
    text = outcome.answer_text(plan, answer, facts) + where_to_look(folder, tracker)
    (folder / "report.txt").write_text(text)
    test = reporting.test_text(outcome.read_test(folder), folder, answer.winner.candidate.name)
    page = reporting.page(found, drawn, facts, config.backbone, hidden(command(config)), test)
    (folder / "report.html").write_text(render(page), encoding="utf-8")
    write_trials(folder / "trials.csv", trials)
    write_study(folder / "optuna.log", plan, trials)
    results = {
        "flags": as_flags(config),
        "winner": outcome.to_json(answer.winner),
        "best": outcome.to_json(answer.best),
        "tied": [outcome.to_json(result) for result in answer.tied],
        "raw_pixels": outcome.to_json(baseline),
        "cost": asdict(cost),
        "blocks": [block.name for block in plan.space.blocks],
        "ridge_accuracy": np.where(np.isnan(looked), np.array(None), looked).tolist(),
        "timesteps_at": {num_images: list(look) for num_images, look in zip(plan.looks, race.looks, strict=True)},
        "left": race.ranked(),
        "label_free": {name: table.tolist() for name, table in label_free.scores.items()},
        "label_free_ranking": label_free.ranking.tolist(),
        "label_free_trust": {name: asdict(one) for name, one in label_free.trust(looked).items()},
    }
    scratch = folder / "results.part"
    scratch.write_text(json.dumps(results, indent=1))
    tracker.finish(
        {
            "val_accuracy": answer.winner.val_accuracy,
            "val_stderr": answer.winner.stderr,
            "raw_pixels_val_accuracy": baseline.val_accuracy,
            "forward_passes": cost.passes,
            "share_of_grid": cost.passes / cost.grid_passes,
            "wall_seconds": cost.wall_seconds,
        },
        [
            *sorted((folder / "figures").glob("*.png")),
            *(folder / name for name in ("report.html", "report.txt", "trials.csv", "config.yaml")),
        ],
        "\n\n".join(" ".join(line.split()) for line in text.splitlines() if line.startswith(("answer", "cost"))),
    )
    scratch.replace(folder / "results.json")
    return text


def where_to_look(folder: Path, tracker: "Tracker") -> str:
    return "\n".join(
        [
            "",
            f"report         {folder / 'report.html'}",
            f"trials         {tracker.where}",
            f"test it, once  python sweeps/final_test.py --sweep {folder}",
            f"use it         python sweeps/hand_over.py --sweep {folder}",
        ]
    )


def write_trials(path: Path, trials: list["FinishedTrial"]) -> None:
    """One row a trial, best first."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["block", "timestep", "pooling", "head", "num_images", "val_accuracy", "stderr", "setting", "stopped_early"]
        )
        for trial in sorted(trials, key=lambda t: (-t.rungs[-1].num_images, -t.rungs[-1].val_accuracy)):
            cell, last = trial.candidate, trial.rungs[-1]
            writer.writerow(
                [
                    *astuple(cell),
                    last.num_images,
                    f"{last.val_accuracy:.4f}",
                    f"{last.stderr:.4f}",
                    last.setting,
                    trial.stopped_early,
                ]
            )


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Two drivers of one sweep would take each other's trials for interrupted ones."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"another process is running this sweep ({folder}); wait for it, or stop it") from error
    try:
        yield
    finally:
        lock.release()


def finished_report(folder: Path, config: LayerNoise) -> str | None:
    """The report of the same command, where it has ended before."""
    results = folder / "results.json"
    if not results.exists():
        return None
    before = json.loads(results.read_text())["flags"]
    return (folder / "report.txt").read_text() if before["num_trials"] == config.num_trials else None


def command(config: LayerNoise) -> str:
    """That makes the same sweep: the flags that are not as by default."""
    given, default = as_flags(config), as_flags(LayerNoise())
    args = [arg for name, value in given.items() if value != default[name] for arg in cli.as_args(name, value)]
    return shlex.join(["python", "sweeps/layer_noise.py", *args])


def as_flags(config: LayerNoise) -> dict:
    """The dataclass as plain YAML and JSON know it."""
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in flags.items()}


if __name__ == "__main__":
    cli.run(main, LayerNoise, __doc__)
