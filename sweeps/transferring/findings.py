"""What a transfer sweep has found, as numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np

from ddae import transfer
from ddae.probe import paired_loss, standard_error
from ddae.transfer import LEAST_SIGMA, Agreement, ForAll, Loss
from sweeps.findings.answer import Answer, row
from sweeps.probing.screening import Screening
from sweeps.probing.space import Cell, Space
from sweeps.search.task import Result, Trial, Value
from sweeps.transferring.setup import Pair


@dataclass(frozen=True)
class Searched:
    """What became of one pair."""

    pair: Pair
    every_site: Screening
    """All sites, on as many images."""
    screening: Screening
    tried: tuple[Trial, ...]
    answer: Answer
    fitted: Mapping[Cell, Trial]
    """The answers of all datasets under this network, its own among them, and cells at the site that is best for all:
    fitted on all training images of this dataset."""
    passes: float
    """Full forward passes of one image that all this takes."""

    @property
    def own(self) -> Trial:
        """The answer, on all images."""
        return self.fitted[self.answer.cell]

    @property
    def trials(self) -> list[Trial]:
        """What was tried, and what was fitted on all images besides."""
        known = {(trial.cell, trial.rung) for trial in self.tried}
        return [*self.tried, *(each for each in self.fitted.values() if (each.cell, each.rung) not in known)]

    @cached_property
    def right(self) -> np.ndarray:
        """[blocks, timesteps, images]: which training images ridge classifies correctly without having seen them, as
        they count."""
        return right_at_every_site(self.pair.task.space, self.every_site)

    def counted(self, cell: Cell) -> np.ndarray:
        """[num_val]: which val images a fitted cell classifies correctly, as they count."""
        task, correct = self.pair.task, self.fitted[cell].last.correct
        weights = task.weigh(task.labels["val"])
        return correct if weights is None else correct * weights

    def gflops(self, cell: Cell) -> float:
        """Those of a forward pass of one image that stops after the cell's block."""
        return self.pair.gflops * self.pair.task.space.block(cell.block).flops_share

    @property
    def best_site(self) -> tuple[int, int]:
        """Where ridge is best, as (number of the block, of the timestep)."""
        accuracy = self.right.mean(-1)
        block, timestep = np.unravel_index(accuracy.argmax(), accuracy.shape)
        return int(block), int(timestep)


@dataclass(frozen=True)
class Findings:
    searched: tuple[Searched, ...]
    raw_pixels: Mapping[str, Result]
    """dataset -> pixels under the head of its first network's answer; without those that could not be measured."""
    folder: Path
    tracked: str
    """How a person sees the trials in MLflow."""
    wall_seconds: float
    new_passes: float
    """Full forward passes that were run just now; the store held the others."""
    added: str = ""
    """Where it lies in the atlas, if it does."""
    not_added: str = ""
    """Why it could not be added, if so."""

    @property
    def backbones(self) -> list[str]:
        return list(dict.fromkeys(each.pair.task.backbone for each in self.searched))

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(each.pair.task.dataset for each in self.searched))

    def under(self, backbone: str) -> dict[str, Searched]:
        """dataset -> what was found under this network."""
        return {each.pair.task.dataset: each for each in self.searched if each.pair.task.backbone == backbone}

    def on(self, dataset: str) -> dict[str, Searched]:
        """backbone -> what was found on this dataset."""
        return {each.pair.task.backbone: each for each in self.searched if each.pair.task.dataset == dataset}

    def chosen(self, backbone: str) -> dict[str, Cell]:
        return {dataset: each.answer.cell for dataset, each in self.under(backbone).items()}

    def correct(self, backbone: str) -> dict[str, dict[Cell, np.ndarray]]:
        """dataset -> cell -> which val images it classifies correctly; every cell on every dataset."""
        return {name: {cell: each.counted(cell) for cell in each.fitted} for name, each in self.under(backbone).items()}

    def regrets(self, backbone: str) -> dict[tuple[str, str], Loss]:
        """(the dataset on which a cell was chosen, the one on which it is used) -> what it loses there, on the val
        images of the latter."""
        return transfer.regret_matrix(self.correct(backbone), self.chosen(backbone))

    def losses_of(self, backbone: str, cell: Cell) -> dict[str, Loss]:
        """dataset -> what a cell that was fitted on all of them loses there."""
        return {
            name: Loss(*paired_loss(each.counted(cell), each.counted(each.answer.cell)))
            for name, each in self.under(backbone).items()
        }

    def for_all(self, backbone: str) -> list[ForAll]:
        return transfer.one_for_all(self.correct(backbone), self.chosen(backbone))

    def left_out(self, backbone: str) -> dict[str, tuple[Cell, Loss]]:
        return transfer.left_out(self.correct(backbone), self.chosen(backbone))

    @cached_property
    def agreements(self) -> dict[tuple[str, str, str, str], Agreement]:
        """(backbone, scope, dataset, other dataset) -> how far they put the sites in the same order."""
        return {
            (backbone, scope, one, other): transfer.agreement(under[one].right, under[other].right, compare)
            for backbone in self.backbones
            for under in [self.under(backbone)]
            for scope, compare in transfer.scopes_of(next(iter(under.values())).right.shape).items()
            for one, other in combinations(under, 2)
        }

    @cached_property
    def halves(self) -> dict[tuple[str, str, str], float]:
        """(backbone, scope, dataset) -> how far two halves of the dataset agree, stepped up to all of its images."""
        return {
            (backbone, scope, name): transfer.of_halves(each.right, compare)
            for backbone in self.backbones
            for name, each in self.under(backbone).items()
            for scope, compare in transfer.scopes_of(each.right.shape).items()
        }

    def ceiling(self, backbone: str, scope: str, one: str, other: str) -> float:
        """What two datasets with the same order would come to, as their own halves tell."""
        return (self.halves[backbone, scope, one] * self.halves[backbone, scope, other]) ** 0.5

    def against_best(self, dataset: str) -> dict[str, Loss]:
        """backbone -> what its answer loses on val against that of the best network; best first."""
        on = self.on(dataset)
        right = {name: each.counted(each.answer.cell) for name, each in on.items()}
        ranked = sorted(right, key=lambda name: -right[name].mean())
        return {name: Loss(*paired_loss(right[name], right[ranked[0]])) for name in ranked}

    def carried(self, dataset: str) -> dict[tuple[str, str], Loss]:
        """(network whose best site it is, network in which the site at the nearest noise and depth is used) -> what
        that loses under ridge against the best there, on the images on which every site was screened."""
        found, on = {}, self.on(dataset)
        for name, each in on.items():
            space, (block, timestep) = each.pair.task.space, each.best_site
            depth, sigma = space.blocks[block].flops_share, list(space.sigmas.values())[timestep]
            for other, there in on.items():
                has = there.pair.task.space
                depths = [one.flops_share for one in has.blocks]
                site = transfer.nearest_site(depth, sigma, depths, list(has.sigmas.values()))
                site = there.best_site if name == other else site
                found[name, other] = Loss(*paired_loss(there.right[site], there.right[there.best_site]))
        return found

    def by_sigma(self, dataset: str) -> dict[str, list[tuple[float, float, float]]]:
        """backbone -> (sigma, accuracy of ridge at the best block, its standard error), sigma growing."""
        curves = {}
        for name, each in self.on(dataset).items():
            best = each.right.mean(-1).max(0)
            sigmas = each.pair.task.space.sigmas.values()
            num_images = each.pair.num_site_images
            curves[name] = [
                (max(sigma, LEAST_SIGMA), float(value), standard_error(min(1.0, float(value)), num_images))
                for sigma, value in zip(sigmas, best, strict=True)
            ]
        return curves

    @property
    def trials(self) -> list[dict[str, Value]]:
        """One row a trial, pair by pair; pandas.DataFrame takes it."""
        return [
            {"backbone": task.backbone, "dataset": task.dataset, **row(task, trial)}
            for each in self.searched
            for task in [each.pair.task]
            for trial in each.trials
        ]


def right_at_every_site(space: Space, screening: Screening) -> np.ndarray:
    """[blocks, timesteps, images], as the first round of a screening of all sites has them."""
    found = screening.rounds[0]
    return np.array([[found[timestep][block] for timestep in space.timesteps] for block in space.block_names])


def best_for_all(right: Sequence[np.ndarray]) -> tuple[int, int]:
    """The site with the best mean accuracy over datasets, as (number of the block, of the timestep). right: of each
    dataset, [blocks, timesteps, images]."""
    mean = np.mean([each.mean(-1) for each in right], axis=0)
    block, timestep = np.unravel_index(mean.argmax(), mean.shape)
    return int(block), int(timestep)
