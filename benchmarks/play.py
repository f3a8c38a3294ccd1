"""A search played on fits and screenings that are made once and kept, with the project's own screening, search and
choice of the answer."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property

import numpy as np
import torch

from ddae import ridge
from ddae.heads import find_head, linear, mlp
from ddae.probe import standard_error, to_maps
from storage.feature_store import FeatureStore
from storage.ledger import Ledger, content_key
from sweeps.findings.answer import choose
from sweeps.probing.cost import label_free_needs
from sweeps.probing.extractor import correct_at
from sweeps.probing.findings import first_cells
from sweeps.probing.screening import Screening, ScreeningRules, best_timesteps
from sweeps.probing.source import Need
from sweeps.probing.space import Cell, Sites
from sweeps.probing.task import ProbeTask
from sweeps.search.halving import HalvingSearch
from sweeps.search.task import Result, Trial, pack, unpack

JUDGES = "unseen val", "test"
SECOND_DRAW = 512
"""Training images that have a second noise draw here."""


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
        return self.task.features(cell, split, len(self.task.labels[split]))[0][cell.pooling]

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
        self.sites = task.space.sites
        """Where cells are tried."""
        self.full: dict[Cell, Trial] = {}
        """Cells that were fitted on the most images that the method has, in the order of proposal."""

    def fit(self, cell: Cell, num_images: int, sites: Sites, epochs: float = 1.0) -> Result:
        """On the seen half, or as much of it as a bounded search has, of the setting that is best there. sites: where
        cells are tried."""
        seen = self.seen[: len(self.task.val_labels(num_images))]
        right = self.lab.right(cell, num_images, self.seed, epochs)[:, seen]
        correct = right[right.mean(1).argmax()]
        self.needs += replace(self.task, sites=sites).needs(cell, num_images)
        accuracy = float(correct.mean())
        metrics = {"val_accuracy": accuracy, "val_stderr": standard_error(accuracy, len(correct))}
        result = Result(metrics, {}, 0, 0, pack(correct))
        if num_images == self.task.rungs[-1] and epochs == 1:
            self.full[cell] = Trial(cell, {num_images: result}, "finished")
        return result

    def answer(self, prefer: str = "best") -> Cell:
        """As the project chooses it."""
        return choose(self.task, list(self.full.values()), self.task.space.cost, prefer=prefer).cell

    def final_needs(self, cell: Cell) -> list[Need]:
        """What a bounded search's answer needs on all images."""
        final = replace(self.task, sites=self.sites).on_all_images(cell).needs(cell, self.lab.num_train)
        return final if self.task.is_bounded else []

    def chosen(self, cell: Cell) -> np.ndarray:
        """bool [num_val + num_test] of the cell on all training images, in the setting that is best on the seen
        half."""
        right = self.lab.right(cell, self.lab.num_train, self.seed)
        return right[right[:, self.seen].mean(1).argmax()]

    def regret(self, cell: Cell, best_of_grid: Cell) -> dict[str, float]:
        """Points lost, by each of the judges."""
        lost = self.chosen(best_of_grid).astype(float) - self.chosen(cell)
        return {name: 100 * float(lost[judge].mean()) for name, judge in self.judges.items()}

    def screen(self, rules: ScreeningRules, label_free: bool = True, ranking: np.ndarray | None = None) -> Screening:
        """ranking: [blocks, timesteps], makes the first cut, if there is one."""
        space = self.task.space
        sites = space.sites if ranking is None else best_timesteps(space, rules, ranking)
        screening = Screening(rules, space, (), sites)
        for num_images in rules.rounds:
            needs = [Need(t, "train", num_images, (b,)) for t, blocks in screening.sites.items() for b in blocks]
            self.needs += needs
            screening = screening.after({need: self.lab.screen(need, self.seed) for need in needs})
        if label_free:
            self.needs += label_free_needs(self.task, draw=1)
        return screening

    def trials(
        self,
        sampler: str,
        rungs: tuple[int, ...],
        num_trials: int,
        screening: Screening | None = None,
        round_size: int = 4,
        won: Sequence[Cell] = (),
    ) -> None:
        """The project's search. won: cells that won elsewhere, to be tried first."""
        self.sites = sites = screening.sites if screening else self.task.space.sites
        first = first_cells(self.task, screening, won) if screening else []
        task = replace(self.task, sites=sites, rungs=rungs)
        search = HalvingSearch(task, num_trials, sampler, self.seed, round_size, first=first)
        while fit := search.ask():
            search.tell(fit, self.fit(*fit, sites))
        self.full = {trial.cell: self.full[trial.cell] for trial in search.trials if trial.cell in self.full}
