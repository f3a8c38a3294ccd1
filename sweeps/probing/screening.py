"""Which sites are worth trials: screened by ridge regression on few images, or ranked without labels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ddae.label_free import LABELLED, SCORES, Confidence, Trust, confidence, standardised_sum, trust
from ddae.probe import clearly_worse
from sweeps.probing.source import Need
from sweeps.probing.space import Sites, Space
from sweeps.search.task import REDUCTION

NUM_LABEL_FREE = 32
"""How many images a search's label-free scores see; 256 rank the sites no better (docs/log.md)."""
MIN_IMAGES, MIN_IMAGES_A_CLASS = 64, 7
"""How many images the first round sees at least; fewer do not tell timesteps apart."""
SEARCH_IMAGES, SEARCH_IMAGES_A_CLASS = 1000, 50
"""How many training images a search has at least, before the answer is fitted on all of them."""
SEARCH_VAL = 10_000
"""How many val images it has at most: two cells that disagree on a tenth of them are told apart to 0.3 points."""
NUM_RESAMPLES = 100
"""Bootstraps of the images under which the label-free ranking is made again."""
Answers = Mapping[int, Mapping[str, np.ndarray]]
"""timestep -> block -> [num_images]: which images leave-one-out ridge classifies correctly, as ProbeTask.counted counts
them."""


@dataclass(frozen=True)
class ScreeningRules:
    """How many images each round sees, and how many timesteps stay after it. Raises ValueError for senseless rules."""

    rounds: tuple[int, ...]
    """Numbers of training images, growing."""
    keep: float = 0.5
    """Share of the timesteps that stay after a round."""
    finalists: int = 2
    """So many timesteps stay at least, but for those where every block is clearly worse."""
    start: Literal["ridge", "label-free", "atlas"] = "ridge"
    """What makes the first cut of the timesteps: ridge in the first round, or before it the label-free ranking, or what
    other sweeps have found, which cuts as deep as two rounds."""
    exhaustive: bool = False
    """For the grid: every site stays."""

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep} must lie above 0 and not above 1; 0.5 halves the timesteps each round")
        if self.finalists < 1:
            raise ValueError(f"finalists={self.finalists} must be 1 or more; the default is 2")
        if self.exhaustive and self.start != "ridge":
            flag = "--warm-start" if self.start == "atlas" else "--start"
            raise ValueError(f"start={self.start!r} cuts timesteps, and the grid keeps all of them; leave {flag} out")

    @property
    def first_cut(self) -> int:
        """The number of the cut that the first round makes; 0 is the first cut of all."""
        return {"ridge": 0, "label-free": 1, "atlas": 2}[self.start]

    def num_kept(self, cut: int, num_timesteps: int) -> int:
        """How many of the space's timesteps may stay after a cut."""
        if self.exhaustive:
            return num_timesteps
        return min(num_timesteps, max(self.finalists, math.ceil(num_timesteps * self.keep ** (cut + 1))))


@dataclass(frozen=True)
class Screening:
    """Every round, on growing numbers of images at ever fewer sites, and the sites that are left."""

    rules: ScreeningRules
    space: Space
    rounds: tuple[Answers, ...]
    sites: Sites

    def after(self, answers: Mapping[Need, np.ndarray]) -> "Screening":
        """The screening after one more round, of answers to needs of one block each."""
        found: dict[int, dict[str, np.ndarray]] = {}
        for need, correct in answers.items():
            found.setdefault(need.timestep, {})[need.blocks[0]] = correct
        found = dict(sorted(found.items()))  # a tie goes by the number, not by what was ready first
        sites = self.sites
        if not self.rules.exhaustive:
            cut = self.rules.first_cut + len(self.rounds)
            sites = survivors(found, self.rules.num_kept(cut, len(self.space.timesteps)))
        return Screening(self.rules, self.space, (*self.rounds, found), sites)

    @property
    def accuracy(self) -> np.ndarray:
        """The metric that chooses, of leave-one-out ridge in the first round, [blocks, timesteps]; NaN where it
        was not measured."""
        first = {(block, t): right.mean() for t, blocks in self.rounds[0].items() for block, right in blocks.items()}
        return self.space.table(first)

    @property
    def stderr(self) -> float:
        """The standard error of these, of the site in the middle."""
        answers = [right for blocks in self.rounds[0].values() for right in blocks.values()]
        return float(np.median([right.std() / len(right) ** 0.5 for right in answers]))

    @property
    def ranked(self) -> list[tuple[str, int]]:
        """The (block, timestep) that are left, best in the last round first."""
        last = self.rounds[-1]
        left = [(block, timestep) for timestep, blocks in self.sites.items() for block in blocks]
        return sorted(left, key=lambda site: -last[site[1]][site[0]].mean())

    @property
    def needs(self) -> list[Need]:
        """The features that the rounds have read."""
        return [
            Need(timestep, "train", num_images, tuple(blocks))
            for num_images, answers in zip(self.rules.rounds, self.rounds, strict=True)
            for timestep, blocks in answers.items()
        ]


class Scored(NamedTuple):
    """The label-free scores of a site."""

    values: dict[str, float]
    resampled: dict[str, np.ndarray]
    """[resamples], of the scores that the ranking sums."""


@dataclass(frozen=True)
class LabelFree:
    """Scores that saw no label, or few; arrays are [blocks, timesteps]."""

    ranking: np.ndarray
    """Higher is better."""
    scores: dict[str, np.ndarray]
    rankings: np.ndarray
    """The same of resampled images, [resamples, blocks, timesteps]."""

    @staticmethod
    def of(space: Space, scores: Sequence[Mapping[str, Scored]]) -> "LabelFree":
        """scores: by block, one mapping a timestep of the space, in its order."""
        cells = [at_timestep[name] for name in space.block_names for at_timestep in scores]
        shape = len(space.blocks), len(space.timesteps)
        tables = {name: np.array([cell.values[name] for cell in cells]) for name in cells[0].values}
        again = {name: np.stack([cell.resampled[name] for cell in cells], axis=1) for name in cells[0].resampled}
        return LabelFree(
            standardised_sum(tables).reshape(shape),
            {name: table.reshape(shape) for name, table in tables.items()},
            standardised_sum(again).reshape(-1, *shape),
        )

    @property
    def confidence(self) -> Confidence:
        """How far the ranking depends on the images that it saw."""
        return confidence(self.rankings)

    @property
    def merits(self) -> dict[str, np.ndarray]:
        """The ranking, as consensus, and every score alone; higher is better."""
        every = {**SCORES, **LABELLED}
        return {"consensus": self.ranking, **{name: every[name].merit(table) for name, table in self.scores.items()}}

    def as_json(self) -> dict[str, Any]:
        """All numbers, for results.json; tables are [blocks][timesteps]."""
        sure = self.confidence
        return {
            "label_free": {name: table.tolist() for name, table in self.scores.items()},
            "label_free_ranking": self.ranking.tolist(),
            "label_free_confidence": {
                "num_resamples": sure.num_resamples,
                **{name: getattr(sure, name).tolist() for name in ("ranks_first", "best_rank", "worst_rank")},
            },
        }

    def trust(self, accuracy: np.ndarray) -> dict[str, Trust]:
        """How far the ranking and every score alone agree with accuracies, [blocks, timesteps], NaN where there is
        none."""
        return {name: trust(merit, accuracy) for name, merit in self.merits.items()}


def choose_rungs(num_train: int, num_classes: int) -> tuple[int, ...]:
    """Training images at each rung: all, a quarter, a sixteenth, ... as long as they are enough to tell anything."""
    return quarters(num_train, max(MIN_IMAGES, MIN_IMAGES_A_CLASS * num_classes))


def bound_search(search_images: int | Literal["auto", "all"], num_train: int, num_classes: int) -> int:
    """Training images at which a search ends: as many as are wanted, all, or of all, a quarter, a sixteenth, ... the
    fewest that are enough. Raises ValueError for fewer than there are classes."""
    if search_images == "all":
        return num_train
    if search_images == "auto":
        return quarters(num_train, least_searched(num_classes))[0]
    if search_images < num_classes:
        raise ValueError(
            f"search_images={search_images} must be {num_classes} or more, as many as there are classes; auto chooses, "
            "and all is every training image"
        )
    return min(search_images, num_train)


def least_searched(num_classes: int) -> int:
    """Training images that a bounded search fits heads on, at least."""
    return max(SEARCH_IMAGES, SEARCH_IMAGES_A_CLASS * num_classes)


def quarters(number: int, least: int) -> tuple[int, ...]:
    """The number, a quarter of it, a sixteenth, ... as long as they are not below the least; growing."""
    numbers = [number]
    while numbers[0] // REDUCTION >= least:
        numbers.insert(0, numbers[0] // REDUCTION)
    return tuple(numbers)


def survivors(answers: Answers, num_timesteps: int) -> Sites:
    """The best num_timesteps timesteps, each with those of its blocks that are not clearly worse than the best of them
    all; differences are paired, image by image.

    A timestep is judged by the mean of its three best blocks, which is less noisy than the best alone.
    """
    merit = {timestep: best_three([right.mean() for right in at.values()]) for timestep, at in answers.items()}
    kept = sorted(merit, key=lambda timestep: -merit[timestep])[:num_timesteps]
    best = max((right for timestep in kept for right in answers[timestep].values()), key=np.mean)
    left = {
        timestep: tuple(block for block, right in answers[timestep].items() if not clearly_worse(right, best))
        for timestep in sorted(kept)
    }
    return {timestep: blocks for timestep, blocks in left.items() if blocks}


def best_timesteps(space: Space, rules: ScreeningRules, ranking: np.ndarray) -> Sites:
    """The timesteps that stay after a first cut by a ranking that no ridge made, [blocks, timesteps], with all of their
    blocks: they are judged as ridge judges them, but nothing tells which block is clearly worse."""
    merit = {timestep: best_three(list(ranking[:, column])) for column, timestep in enumerate(space.timesteps)}
    num_kept = rules.num_kept(max(0, rules.first_cut - 1), len(merit))
    kept = sorted(merit, key=lambda timestep: -merit[timestep])[:num_kept]
    return {timestep: blocks for timestep, blocks in space.sites.items() if timestep in kept}


def best_three(values: list[float]) -> float:
    """The mean of the three highest."""
    return float(np.mean(sorted(values)[-3:]))
