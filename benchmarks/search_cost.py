"""Regret and cost of ways to search, against the exhaustive grid on the same features.

    python benchmarks/search_cost.py                     # the shipped model and images, 546 cells: about 20 minutes
    python benchmarks/search_cost.py --name search_cost_fashion_mnist --dataset fashion-mnist --poolings 1 2 \\
        --methods "screening, optuna + ASHA (default)" "label-free first"       # 48,000 + 12,000 images, about an hour

Every cell is fitted on all images once. A method is then played with the project's own screening and search, one trial
at a time, on fits that are made when it asks for them. A seed shuffles the training images, so that every prefix
differs, splits val into a half that the methods see and one that they do not, and seeds the sampler.

Regret: accuracy of the grid's best cell minus that of the method's answer, in points, on images that chose nothing:
the unseen half of val, and test. Both are chosen on the seen half; the answer is the best cell or, as --prefer cheapest
has it, the cheapest of those that are statistically tied with it. Passes: full forward passes (by FLOPs) over the
training images, of the search, and of the pass for the answer on all images. Stop it and start it again as you like.
"""

from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import record
import torch
import tyro
from matplotlib.figure import Figure
from play import JUDGES, SECOND_DRAW, Lab, Play, read_maps
from rich.progress import track

from ddae import label_free
from ddae.pooling import pool
from sweeps.flags import ModelAndData
from sweeps.layer_noise import LayerNoise
from sweeps.probing.cost import label_free_needs
from sweeps.probing.extractor import opened
from sweeps.probing.plan import bounded, rules_for, set_up
from sweeps.probing.source import Need
from sweeps.probing.space import Cell
from sweeps.probing.task import ProbeTask
from sweeps.search.task import REDUCTION


@dataclass(frozen=True)
class SearchCost(ModelAndData):
    poolings: tuple[int, ...] = (1, 2, 4)
    heads: tuple[str, ...] = ("linear", "mlp")
    methods: tuple[str, ...] = ()
    """Some of METHODS; all if not given."""
    seeds: int = 5
    processes: int = 2
    name: str = "search_cost"
    """Of the file in results/."""


@dataclass(frozen=True)
class Played:
    """What one method did with one seed."""

    method: str
    seed: int
    answers: dict[str, str]
    """The cell that each of RULES hands over."""
    regret: dict[str, dict[str, float]]
    """Of each of RULES, on the unseen half of val and on test."""
    search_passes: float
    final_passes: float
    """For the best on all images, where the search has fewer."""
    passes: float
    """All of these."""
    share_of_grid: float
    head_seconds: float
    num_full: int


def shrunk(play: Play) -> Cell:
    """The best after half of what an additive model of block, timestep, pooling and head does not explain is taken for
    noise."""
    cells = list(play.full)
    accuracy = np.array([trial.last.metrics["val_accuracy"] for trial in play.full.values()])
    columns = [[getattr(cell, axis) for cell in cells] for axis in ("block", "timestep", "pooling", "head")]
    design = np.array([[value == each for value in axis] for axis in columns for each in dict.fromkeys(axis)], float).T
    explained = design @ np.linalg.lstsq(design, accuracy, rcond=None)[0]
    return cells[int((explained + accuracy).argmax())]


RULES: dict[str, Callable[[Play], Cell]] = {
    "best": Play.answer,
    "cheapest": partial(Play.answer, prefer="cheapest"),
    "shrunk": shrunk,
}
"""How the answer is chosen among the cells that were fitted on all images: the default, --prefer cheapest, and one that
is only measured."""


def ours(
    play: Play, search_images: str = "auto", search: str = "optuna", label_free: bool = True, **rules: float
) -> None:
    """As sweeps/layer_noise.py goes. rules: its --keep and --finalists."""
    play.task = bounded(play.task, search_images)  # type: ignore[arg-type]
    screening = play.screen(rules_for(LayerNoise(**rules), play.task), label_free)  # type: ignore[arg-type]
    play.trials(search, play.task.rungs, NUM_TRIALS, screening)


def whole_space(play: Play, sampler: str, num_trials: int, stop: bool = True) -> None:
    """Trials anywhere, without screening: rungs of a sixteenth, a quarter and all of the images, or all at once."""
    num_train = play.lab.num_train
    rungs = (num_train // REDUCTION**2, num_train // REDUCTION, num_train) if stop else (num_train,)
    play.trials(sampler, rungs, num_trials)


def halving_by_epochs(play: Play) -> None:
    """Every cell for a sixteenth of the epochs, the better quarter for a quarter of them, and so on."""
    cells, sites = list(play.task.space.cells), play.task.space.sites
    for epochs in (1 / 16, 1 / 4, 1.0):
        accuracy = {cell: play.fit(cell, play.lab.num_train, sites, epochs).metrics["val_accuracy"] for cell in cells}
        cells = sorted(cells, key=lambda cell: -accuracy[cell])[: -(-len(cells) // REDUCTION)]


def label_free_first(play: Play, num_sites: int = 5) -> None:
    """Every pooling and head at the first sites of the label-free ranking."""
    task, space = play.task, play.task.space
    needs = label_free_needs(task, draw=1)
    rows = np.random.default_rng(play.seed).permutation(SECOND_DRAW)[: needs[0].num_images]
    scores = []
    for block in space.block_names:
        for timestep, following in zip(space.timesteps, space.timesteps[1:] + space.timesteps[-1:], strict=True):
            columns = (timestep, 0), (timestep, 1), (following, 1)
            draws = [Need(at, "train", SECOND_DRAW, (block,), draw) for at, draw in columns]
            features = (pool(read_maps(task, need), 1).flatten(1)[rows] for need in draws)
            scores.append(label_free.measure(label_free.Features(*features)))
    ranking = label_free.rank(scores).numpy().reshape(len(space.blocks), -1)
    play.needs += [replace(need, draw=draw) for need in needs for draw in (0, 1)]
    for block, timestep in space.ranked(ranking)[:num_sites]:
        for cell in space.cells_at({timestep: (block,)}):
            play.fit(cell, play.lab.num_train, {timestep: (block,)})


COSTS = "search_passes", "final_passes", "passes", "share_of_grid", "head_seconds"
NUM_TRIALS = 40
METHODS: dict[str, Callable[[Play], None]] = {
    "screening, optuna + ASHA (default)": ours,
    "  --search-images all (0.1)": partial(ours, search_images="all"),
    "  --finalists 1": partial(ours, finalists=1),
    "  --keep 0.25 --finalists 1": partial(ours, keep=0.25, finalists=1),
    "  --keep 0.25 --finalists 2": partial(ours, keep=0.25),
    "  --search random": partial(ours, search="random"),
    "  default, no label-free ranking": partial(ours, label_free=False),
    "optuna + ASHA, 20 trials": partial(whole_space, sampler="optuna", num_trials=20),
    "optuna + ASHA, 40 trials": partial(whole_space, sampler="optuna", num_trials=40),
    "random + ASHA, 20 trials": partial(whole_space, sampler="random", num_trials=20),
    "random + ASHA, 40 trials": partial(whole_space, sampler="random", num_trials=40),
    "optuna without ASHA, 20 trials": partial(whole_space, sampler="optuna", num_trials=20, stop=False),
    "label-free first": label_free_first,
    "halving by epochs": halving_by_epochs,
}


def play_all(config: SearchCost) -> tuple[ProbeTask, list[Played]]:
    """Every method with every seed."""
    task, _, dataset = set_up(config, config.poolings, config.heads)
    task = replace(task, labels={**task.labels, "test": dataset.labels("test")})
    space = task.space
    with ProcessPoolExecutor(config.processes, get_context("spawn"), torch.set_num_threads, (1,)) as workers:
        wait("extraction", [workers.submit(extract, task, *site) for site in space.sites.items()])
        wait("grid", [workers.submit(fit_on_all, task, cell) for cell in space.cells])
        grid = wait("grid's choice", [workers.submit(choose_from_grid, task, seed) for seed in range(config.seeds)])
        names = config.methods or tuple(METHODS)
        jobs = [workers.submit(play_one, task, name, *best) for name in names for best in enumerate(grid)]
        return task, wait("methods", jobs)


def main(config: SearchCost) -> None:
    task, played = play_all(config)
    space = task.space
    rows = {name: summary([one for one in played if one.method == name]) for name in config.methods or METHODS}
    print(
        f"{len(space.cells):,} cells, {task.num_train:,} + {task.num_val:,} images, {config.seeds} seeds; "
        f"the grid costs {task.grid_passes / task.num_train:.2f} passes over the training images\n"
        f"{'':<34} search + final = passes  of grid  heads (s)  "
        "regret (points) on unseen val, on test: the best; the cheapest; shrunk"
    )
    for name, row in rows.items():
        regrets = ["{:5.2f} +- {:4.2f}".format(*row["regret"][rule][judge]) for rule in RULES for judge in JUDGES]
        costs = "{:6.2f}   {:5.2f}   {:6.2f}  {:7.3f}  {:9.0f}".format(*(row[each] for each in COSTS))
        print(f"{name:<34} {costs}  {'  '.join(regrets)}")
    results = {"cells": len(space.cells), "methods": rows, "played": [asdict(one) for one in played]}
    record.write(config.name, results)
    draw(rows, task.grid_passes / task.num_train, record.RESULTS / f"{config.name}.png")


CURVES = {
    "screening, then trials": [name for name in list(METHODS)[:5] if "all" not in name],
    "the same, all images in the search": list(METHODS)[1:2],
    "Optuna + ASHA": ["optuna + ASHA, 20 trials", "optuna + ASHA, 40 trials"],
    "random + ASHA": ["random + ASHA, 20 trials", "random + ASHA, 40 trials"],
    "Optuna without ASHA": ["optuna without ASHA, 20 trials"],
    "label-free first": ["label-free first"],
    "halving by epochs": ["halving by epochs"],
}
"""What belongs together in the picture."""


def draw(rows: dict[str, dict[str, Any]], grid_passes: float, path: Path) -> None:
    """Regret against cost, one curve a way to search."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (label, names), marker in zip(CURVES.items(), "oxsv^DP", strict=True):
        points = sorted((rows[name] for name in names if name in rows), key=lambda row: row["passes"])
        if points:
            y, error = zip(*(row["regret"]["best"]["unseen val"] for row in points), strict=True)
            axes.errorbar(
                [row["passes"] for row in points], y, error, marker=marker, capsize=2, linewidth=1, label=label
            )
    axes.plot(grid_passes, 0, "*", color="black", ms=12, label="the grid")
    axes.axhspan(-0.3, 0.3, color="0.92", zorder=0)
    axes.set(xlabel="full forward passes over the training images", ylabel="regret (points)", xlim=(0, None))
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def wait(title: str, jobs: list[Future]) -> list:
    return [job.result() for job in track(jobs, title)]


def extract(task: ProbeTask, timestep: int, blocks: tuple[str, ...]) -> None:
    extractor = opened(task.source)
    extractor.ensure(Need(timestep, "train", task.num_train, blocks))
    extractor.ensure(Need(timestep, "val", task.num_val, blocks))
    extractor.ensure(Need(timestep, "test", len(task.labels["test"]), blocks))
    extractor.ensure(Need(timestep, "train", SECOND_DRAW, blocks, draw=1))


def fit_on_all(task: ProbeTask, cell: Cell) -> None:
    Lab(task).right(cell, task.num_train, 0)


def choose_from_grid(task: ProbeTask, seed: int) -> Cell:
    """The exhaustive grid's best on the seen half."""
    grid = Play(task, seed)
    for cell in task.space.cells:
        grid.fit(cell, task.num_train, task.space.sites)
    return grid.answer()


def play_one(task: ProbeTask, method: str, seed: int, best_of_grid: Cell) -> Played:
    one = Play(task, seed)
    METHODS[method](one)
    head_seconds = one.lab.head_seconds
    searched, passes = (task.space.forward_passes(one.needs + more) for more in ([], one.final_needs(one.answer())))
    answers = {name: rule(one) for name, rule in RULES.items()}
    return Played(
        method, seed, {name: cell.name for name, cell in answers.items()},
        {name: one.regret(cell, best_of_grid) for name, cell in answers.items()},
        searched / task.num_train, (passes - searched) / task.num_train, passes / task.num_train,
        passes / task.grid_passes, head_seconds, len(one.full),
    )  # fmt: skip


def summary(played: list[Played]) -> dict[str, Any]:
    """Of all seeds: medians of the costs, mean and standard error of the regrets."""
    regrets = {
        rule: {judge: mean_and_error([one.regret[rule][judge] for one in played]) for judge in JUDGES} for rule in RULES
    }
    return {**{cost: median(getattr(one, cost) for one in played) for cost in COSTS}, "regret": regrets}


def mean_and_error(values: list[float]) -> tuple[float, float]:
    return mean(values), stdev(values) / len(values) ** 0.5


if __name__ == "__main__":
    main(tyro.cli(SearchCost, description=__doc__))
