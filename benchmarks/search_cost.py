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
training images. Stop it and start it again as you like.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import record
import torch
import tyro
from matplotlib.figure import Figure
from rich.progress import track

from ddae import label_free, ridge
from ddae.heads import find_head, linear, mlp
from ddae.pooling import pool
from ddae.probe import tied_with_best, to_maps
from storage.feature_store import FeatureStore
from storage.ledger import Ledger, content_key
from sweeps.flags import ModelAndData
from sweeps.layer_noise import LayerNoise
from sweeps.probing.cost import label_free_needs
from sweeps.probing.extractor import correct_at, opened
from sweeps.probing.findings import warm_start
from sweeps.probing.screening import Screening, ScreeningRules, choose_rungs
from sweeps.probing.source import Need
from sweeps.probing.space import Cell, Sites
from sweeps.probing.sweep import set_up
from sweeps.probing.task import ProbeTask
from sweeps.search.halving import HalvingSearch
from sweeps.search.task import REDUCTION, Result, pack, unpack


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
    passes: float
    share_of_grid: float
    head_seconds: float
    num_full: int


class Lab:
    """All fits and screenings of one task, made once and kept."""

    def __init__(self, task: ProbeTask):
        self.task = task
        self.num_train, self.num_val = task.num_train, task.num_val
        self.kept = Ledger(f"{task.source.store}/search_cost")
        self.head_seconds = 0.0

    @cached_property
    def labels(self) -> dict[str, torch.Tensor]:
        return {split: torch.from_numpy(labels) for split, labels in self.task.labels.items()}

    def order(self, seed: int, num_images: int) -> torch.Tensor:
        """The training images that a rung of this seed has."""
        if num_images == self.num_train:
            return torch.arange(num_images)
        return torch.from_numpy(np.random.default_rng(seed).permutation(self.num_train)[:num_images])

    def halves(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Val images that the methods see, and that they do not."""
        order = np.random.default_rng(seed).permutation(self.num_val)
        return order[: self.num_val // 2], order[self.num_val // 2 :]

    def right(self, cell: Cell, num_images: int, seed: int, epochs: float = 1.0) -> np.ndarray:
        """bool [settings, num_val + num_test] of the cell's head. epochs: share of its usual training."""
        seed, version = 0 if num_images == self.num_train else seed, find_head(cell.head)[0].version
        return self._once(
            lambda: self._fit(cell, self.order(seed, num_images), epochs),
            cell=cell.name, num_images=num_images, seed=seed, epochs=epochs, version=version, splits=("val", "test"),
        )  # fmt: skip

    def screen(self, need: Need, seed: int) -> np.ndarray:
        """For a need of one block: which images leave-one-out ridge classifies correctly."""
        poolings = self.task.screening_poolings(need.blocks[0])
        decides = {"need": asdict(need), "seed": seed, "poolings": poolings, "version": ridge.VERSION}
        return self._once(lambda: self._screen(need, self.order(seed, need.num_images), poolings)[None], **decides)[0]

    def _screen(self, need: Need, rows: torch.Tensor, poolings: tuple[int, ...]) -> np.ndarray:
        maps = read_maps(self.task, replace(need, num_images=int(rows.max()) + 1))[rows]
        return correct_at(maps, self.labels["train"][rows], poolings, self.task.num_classes)

    def _fit(self, cell: Cell, rows: torch.Tensor, epochs: float) -> np.ndarray:
        features, labels = self._features(cell, "train")[rows], self.labels["train"][rows]
        head, sizes = find_head(cell.head)
        with fewer_epochs(epochs):
            fitted = head.fit(features, labels, self.task.num_classes, 0, *sizes)
        right = [fitted(self._features(cell, split)).argmax(-1) == self.labels[split] for split in ("val", "test")]
        return torch.cat(right, 1).numpy()

    def _features(self, cell: Cell, split: str) -> torch.Tensor:
        return self.task.read(cell, split, len(self.task.labels[split]))[0][cell.pooling]

    def _once(self, make: Callable[[], np.ndarray], **decides) -> np.ndarray:
        key = content_key(features=self.task.source.key.asdict(), **decides)
        found = self.kept.get(key)
        if found is None:
            started = time.perf_counter()
            right = make()
            found = {"seconds": time.perf_counter() - started, "shape": right.shape, "right": pack(right.ravel())}
            self.kept.put(key, found)
        self.head_seconds += found["seconds"]
        return unpack(found["right"]).reshape(found["shape"])


def read_maps(task: ProbeTask, need: Need) -> torch.Tensor:
    """float32 [num_images, C, g, g] of a need of one block."""
    [block] = need.blocks
    shards = FeatureStore(task.source.store).read(task.source.column(need, block), need.num_images)
    return to_maps(shards, task.space.block(block).channels)


@contextmanager
def fewer_epochs(share: float) -> Iterator[None]:
    """Heads that are trained step by step take this share of their steps."""
    steps, recipe = linear.NUM_STEPS, mlp.RECIPE
    linear.NUM_STEPS = round(steps * share)
    epochs, least = max(1, round(recipe.num_epochs * share)), round(recipe.min_steps * share)
    mlp.RECIPE = replace(recipe, num_epochs=epochs, min_steps=least)
    try:
        yield
    finally:
        linear.NUM_STEPS, mlp.RECIPE = steps, recipe


class Play:
    """One method with one seed: what it saw, and what that cost."""

    def __init__(self, task: ProbeTask, seed: int):
        self.lab, self.task, self.seed = Lab(task), task, seed
        self.seen, unseen = self.lab.halves(seed)
        test = np.arange(self.lab.num_val, self.lab.num_val + len(task.labels["test"]))
        self.judges = dict(zip(JUDGES, (unseen, test), strict=True))
        self.needs: list[Need] = []
        self.full: dict[Cell, float] = {}
        """Cells fitted on all images, and their accuracy on the seen half."""

    def fit(self, cell: Cell, num_images: int, sites: Sites, epochs: float = 1.0) -> float:
        """Accuracy on the seen half, of the setting that is best there. sites: where cells are tried."""
        accuracy = self.lab.right(cell, num_images, self.seed, epochs)[:, self.seen].mean(1).max()
        self.needs += replace(self.task, sites=sites).needs(cell, num_images)
        if num_images == self.lab.num_train and epochs == 1:
            self.full[cell] = float(accuracy)
        return float(accuracy)

    def chosen(self, cell: Cell) -> np.ndarray:
        """bool [num_val + num_test] of the setting that is best on the seen half."""
        right = self.lab.right(cell, self.lab.num_train, self.seed)
        return right[right[:, self.seen].mean(1).argmax()]

    def regret(self, cell: Cell, best_of_grid: Cell) -> dict[str, float]:
        """Points lost, by each of the judges."""
        lost = self.chosen(best_of_grid).astype(float) - self.chosen(cell)
        return {name: 100 * float(lost[judge].mean()) for name, judge in self.judges.items()}

    def screen(self, rules: ScreeningRules, label_free: bool = True) -> Screening:
        screening = Screening(rules, self.task.space, (), self.task.space.sites)
        for num_images in rules.rounds:
            needs = [Need(t, "train", num_images, (b,)) for t, blocks in screening.sites.items() for b in blocks]
            self.needs += needs
            screening = screening.after({need: self.lab.screen(need, self.seed) for need in needs})
        if label_free:
            self.needs += label_free_needs(self.task, draw=1)
        return screening

    def trials(self, sampler: str, rungs: tuple[int, ...], num_trials: int, screening: Screening | None = None) -> None:
        """The project's search."""
        sites = screening.sites if screening else self.task.space.sites
        first = warm_start(self.task, screening) if screening else []
        task = replace(self.task, sites=sites, rungs=rungs)
        search = HalvingSearch(task, num_trials, sampler, self.seed, LayerNoise.round_size, first=first)
        while fit := search.ask():
            search.tell(fit, Result({"val_accuracy": self.fit(*fit, sites)}, {}, 0, 0))


def best(play: Play) -> Cell:
    return max(play.full, key=lambda cell: play.full[cell])


def cheapest(play: Play) -> Cell:
    """Of the cells that are statistically tied with the best."""
    cells = list(play.full)
    ties = tied_with_best(np.stack([play.chosen(cell)[play.seen] for cell in cells]))
    return min((cell for cell, tie in zip(cells, ties, strict=True) if tie), key=play.task.space.cost)


def shrunk(play: Play) -> Cell:
    """The best after half of what an additive model of block, timestep, pooling and head does not explain is taken for
    noise."""
    cells = list(play.full)
    accuracy = np.array([play.full[cell] for cell in cells])
    columns = [[getattr(cell, axis) for cell in cells] for axis in ("block", "timestep", "pooling", "head")]
    design = np.array([[value == each for value in axis] for axis in columns for each in dict.fromkeys(axis)], float).T
    explained = design @ np.linalg.lstsq(design, accuracy, rcond=None)[0]
    return cells[int((explained + accuracy).argmax())]


RULES: dict[str, Callable[[Play], Cell]] = {"best": best, "cheapest": cheapest, "shrunk": shrunk}
"""How the answer is chosen among the cells that were fitted on all images: the default, --prefer cheapest, and one that
is only measured."""


def ours(play: Play, sampler: str = "optuna", label_free: bool = True, **rules: float) -> None:
    """As sweeps/layer_noise.py goes. rules: its --keep and --finalists."""
    task = play.task
    rounds = choose_rungs(task.num_train, task.num_classes)[:-1] or task.rungs
    play.trials(sampler, task.rungs, NUM_TRIALS, play.screen(ScreeningRules(rounds, **rules), label_free))  # type: ignore[arg-type]


def whole_space(play: Play, sampler: str, num_trials: int, stop: bool = True) -> None:
    """Trials anywhere, without screening: rungs of a sixteenth, a quarter and all of the images, or all at once."""
    num_train = play.lab.num_train
    rungs = (num_train // REDUCTION**2, num_train // REDUCTION, num_train) if stop else (num_train,)
    play.trials(sampler, rungs, num_trials)


def halving_by_epochs(play: Play) -> None:
    """Every cell for a sixteenth of the epochs, the better quarter for a quarter of them, and so on."""
    cells, sites = list(play.task.space.cells), play.task.space.sites
    for epochs in (1 / 16, 1 / 4, 1.0):
        accuracy = {cell: play.fit(cell, play.lab.num_train, sites, epochs) for cell in cells}
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
            scores.append(label_free.measure(*(pool(read_maps(task, need), 1).flatten(1)[rows] for need in draws)))
    ranking = label_free.rank(scores).numpy().reshape(len(space.blocks), -1)
    play.needs += [replace(need, draw=draw) for need in needs for draw in (0, 1)]
    for block, timestep in space.ranked(ranking)[:num_sites]:
        for cell in space.cells_at({timestep: (block,)}):
            play.fit(cell, play.lab.num_train, {timestep: (block,)})


SECOND_DRAW = 512
"""Training images that have a second noise draw here."""

JUDGES = "unseen val", "test"
COSTS = "passes", "share_of_grid", "head_seconds"
NUM_TRIALS = 40
METHODS: dict[str, Callable[[Play], None]] = {
    "screening, optuna + ASHA (default)": ours,
    "  --finalists 1": partial(ours, finalists=1),
    "  --keep 0.25 --finalists 1": partial(ours, keep=0.25, finalists=1),
    "  --keep 0.25 --finalists 2": partial(ours, keep=0.25),
    "  --search random": partial(ours, sampler="random"),
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
        jobs = [workers.submit(play, task, name, *best) for name in names for best in enumerate(grid)]
        return task, wait("methods", jobs)


def main(config: SearchCost) -> None:
    task, played = play_all(config)
    space = task.space
    rows = {name: summary([one for one in played if one.method == name]) for name in config.methods or METHODS}
    print(
        f"{len(space.cells):,} cells, {task.num_train:,} + {task.num_val:,} images, {config.seeds} seeds; "
        f"the grid costs {task.grid_passes / task.num_train:.2f} passes over the training images\n"
        f"{'':<34} passes  of grid  heads (s)  regret (points) on unseen val, on test: the best; the cheapest; shrunk"
    )
    for name, row in rows.items():
        regrets = ["{:5.2f} +- {:4.2f}".format(*row["regret"][rule][judge]) for rule in RULES for judge in JUDGES]
        costs = "{:6.2f}  {:7.3f}  {:9.0f}".format(*(row[each] for each in COSTS))
        print(f"{name:<34} {costs}  {'  '.join(regrets)}")
    results = {"cells": len(space.cells), "methods": rows, "played": [asdict(one) for one in played]}
    record.write(config.name, results)
    draw(rows, task.grid_passes / task.num_train, record.RESULTS / f"{config.name}.png")


CURVES = {
    "screening, then trials": list(METHODS)[:4],
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
    for (label, names), marker in zip(CURVES.items(), "osv^DP", strict=True):
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
    return max(task.space.cells, key=lambda cell: grid.fit(cell, task.num_train, task.space.sites))


def play(task: ProbeTask, method: str, seed: int, best_of_grid: Cell) -> Played:
    one = Play(task, seed)
    METHODS[method](one)
    passes, head_seconds = task.space.forward_passes(one.needs), one.lab.head_seconds
    answers = {name: rule(one) for name, rule in RULES.items()}
    return Played(
        method, seed, {name: cell.name for name, cell in answers.items()},
        {name: one.regret(cell, best_of_grid) for name, cell in answers.items()},
        passes / task.num_train, passes / task.grid_passes, head_seconds, len(one.full),
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
