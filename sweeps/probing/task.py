"""The Task of probing: a cell is a frozen feature under a head, fitted to convergence on growing numbers of images."""

import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ddae.datasets import is_uneven
from ddae.heads import find_head
from ddae.pooling import pool
from ddae.probe import Fitted, balanced_accuracy, class_weights, fit_probe, standard_error, to_maps
from storage.feature_store import FeatureStore
from storage.ledger import content_key
from sweeps.flags import SEEDS
from sweeps.probing.source import FeatureSource, Need
from sweeps.probing.space import Cell, Sites, Space
from sweeps.search.task import Axis, Checkpoint, Objective, Resources, Result, Value, pack

MAX_VIEWS = 1000
SCREENED_FEATURES = 1024
"""Numbers an image up to which ridge is cheap beside the forward pass."""


@dataclass(frozen=True)
class ProbeTask:
    source: FeatureSource
    space: Space
    sites: Sites
    """Where cells are tried: all sites of the space, or those that screening has left."""
    labels: Mapping[str, np.ndarray]
    """int64, of train and val, in the order of the rows."""
    num_classes: int
    rungs: tuple[int, ...]
    """Numbers of training images, growing; the last is all of them."""
    seed: int = 0
    views: int = 1
    """How many views of every training image heads are fitted on: the image as it is, then flipped and cropped ones."""
    notes: tuple[str, ...] = ()
    """Dataset.notes"""
    twins: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Dataset.twins"""
    metric: str = "accuracy"
    """What chooses: accuracy, or balanced_accuracy."""
    name: str = "layer-noise"
    resource: str = "num_images"
    cells: tuple[Cell, ...] = field(init=False)
    axes: Mapping[str, Axis] = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.views <= MAX_VIEWS:
            raise ValueError(
                f"views={self.views} must be 1 or more, and {MAX_VIEWS} at most; 1 is every image as it is"
            )
        if not SEEDS[0] <= self.seed <= SEEDS[1]:
            raise ValueError(f"seed={self.seed} must be {SEEDS[0]} or more, and {SEEDS[1]:,} at most")
        object.__setattr__(self, "cells", self.space.cells_at(self.sites))
        object.__setattr__(self, "axes", self.space.axes if self.space.heads else {})

    @property
    def num_train(self) -> int:
        return self.rungs[-1]

    @property
    def num_val(self) -> int:
        return len(self.labels["val"])

    @property
    def objectives(self) -> tuple[Objective, ...]:
        return (Objective(f"val_{self.metric}"),)

    @property
    def measure(self) -> str:
        """What chooses, as a person says it."""
        return self.objectives[0].measure

    @property
    def measures(self) -> tuple[str, ...]:
        """What is measured, what chooses first, as a person says it."""
        both = "accuracy", *(["balanced accuracy"] if self.is_balanced else [])
        return tuple(sorted(both, key=lambda measure: measure != self.measure))

    @cached_property
    def is_balanced(self) -> bool:
        """Whether balanced accuracy is measured beside accuracy: it chooses, or the classes are uneven."""
        return self.metric == "balanced_accuracy" or is_uneven(
            np.concatenate([self.labels["train"], self.labels["val"]])
        )

    @property
    def weights(self) -> np.ndarray | None:
        """How much each val image counts in the choice, [num_val]; None where all count alike."""
        return class_weights(self.labels["val"]) if self.metric == "balanced_accuracy" else None

    def counted(self, correct: np.ndarray) -> np.ndarray:
        """Which of the first training images are right, as they count in the choice: their mean is its metric."""
        if self.metric == "accuracy":
            return correct
        return correct * class_weights(self.labels["train"][: len(correct)])

    def resources(self, cell: Cell, rung: int) -> Resources:
        return Resources(num_cpus=1)

    def key(self, cell: Cell, rung: int) -> str:
        """The version is that of the cell's own head: a change to one head recomputes no other."""
        return content_key(
            features=self.source.key.asdict(),
            cell=cell.name,
            num_images=rung,
            views=self.views,
            seed=self.seed,
            version=find_head(cell.head)[0].version,
            **({"metrics": ["balanced_accuracy", self.metric]} if self.is_balanced else {}),
        )

    def reads(self, cell: Cell, rung: int) -> Hashable:
        return cell.block, cell.timestep

    def needs(self, cell: Cell, rung: int) -> list[Need]:
        """One pass serves all blocks that are tried at the cell's timestep."""
        blocks = tuple(dict.fromkeys([*self.sites.get(cell.timestep, ()), cell.block]))
        train = [Need(cell.timestep, "train", rung, blocks, view=view) for view in range(self.views)]
        return [*train, Need(cell.timestep, "val", self.num_val, blocks)]

    def run(self, cells: Sequence[Cell], rung: int, checkpoints: Sequence[Checkpoint]) -> Iterator[Result]:
        """Fit the heads of cells of one block and timestep, whose columns are read once."""
        poolings = {cell.pooling for cell in cells}
        started = time.time()
        train, val = (
            self.read(cells[0], split, num, poolings) for split, num in (("train", rung), ("val", self.num_val))
        )
        for cell in cells:
            fitted = self.fit(cell, train, val)
            yield self.result(fitted, started)
            started = time.time()

    def fit(self, cell: Cell, train: "Pooled", val: "Pooled") -> Fitted:
        seen, held_out = ((pooled[cell.pooling], labels) for pooled, labels in (train, val))
        return fit_probe(cell.head, seen, held_out, self.num_classes, self.seed, self.weights)

    def result(self, fitted: Fitted, started_seconds: float) -> Result:
        accuracy = float(fitted.correct.mean())
        metrics = {"val_accuracy": accuracy, "val_stderr": standard_error(accuracy, len(fitted.correct))}
        if self.is_balanced:
            balanced, stderr = balanced_accuracy(fitted.correct, self.labels["val"])
            metrics |= {"val_balanced_accuracy": balanced, "val_balanced_stderr": stderr}
        return Result(metrics, {"setting": fitted.setting}, started_seconds, time.time(), pack(fitted.correct))

    def read(self, cell: Cell, split: str, num_images: int, poolings: set[int] | None = None) -> "Pooled":
        """The cell's block from the store, at its own pooling or several; of training images every view, one after the
        other. Raises LookupError where the store lacks some."""
        store = FeatureStore(self.source.store)
        views = range(self.views if split == "train" else 1)
        needs = [Need(cell.timestep, split, num_images, (cell.block,), view=view) for view in views]
        shards = [shard for need in needs for shard in store.read(self.source.column(need, cell.block), num_images)]
        maps = to_maps(shards, self.space.block(cell.block).channels)
        labels = torch.from_numpy(self.labels[split][:num_images]).repeat(len(views))
        return {pooling: pool(maps, pooling) for pooling in poolings or {cell.pooling}}, labels

    def label(self, cell: Cell) -> str:
        return cell.name

    def params(self, cell: Cell) -> dict[str, Value]:
        block = self.space.block(cell.block)
        return {
            "block": block.name,
            "block_position": self.space.blocks.index(block),
            "stage": block.stage,
            "timestep": cell.timestep,
            "sigma": round(self.space.sigmas[cell.timestep], 6),
            "pooling": cell.pooling,
            "head": cell.head,
            "num_features": self.space.num_features(cell),
        }

    def screening_poolings(self, block: str) -> tuple[int, ...]:
        """The poolings at which a block is screened: of those that it is searched at the smallest, and others that
        leave few numbers an image."""
        cells = self.space.cells_at({self.space.timesteps[0]: (block,)})
        poolings = sorted({cell.pooling for cell in cells} or {min(self.space.poolings)})
        channels = self.space.block(block).channels
        return tuple(p for p in poolings if p == poolings[0] or channels * p**2 <= SCREENED_FEATURES)

    @property
    def grid_passes(self) -> float:
        """Full forward passes of the exhaustive grid: every view of every image at every timestep."""
        deepest = self.space.pass_share(self.space.block_names)
        return deepest * len(self.space.timesteps) * (self.views * self.num_train + self.num_val)


Pooled = tuple[dict[int, Tensor], Tensor]
"""(pooling -> features float32 [N, C, p, p], labels int64 [N])"""
