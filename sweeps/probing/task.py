"""The Task of probing: a cell is a frozen feature under a head, fitted to convergence on growing numbers of images."""

import logging
import os
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ddae.datasets import is_uneven
from ddae.fusion import Members, at_timesteps
from ddae.heads import Kept, Recipe, find_head, memory_by
from ddae.heads.parts import joined
from ddae.memory import for_fits, is_out_of_memory
from ddae.probe import Fitted, balanced_accuracy, class_weights, fit_probe, standard_error
from ddae.streaming import Features, Streamed, hold, hold_bytes, on_device, stream_bytes
from ddae.units import size
from storage.feature_store import FeatureStore
from storage.ledger import content_key
from sweeps.flags import SEEDS
from sweeps.probing import kept_head
from sweeps.probing.source import FeatureSource, Need
from sweeps.probing.space import Cell, Sites, Space
from sweeps.search.task import Axis, Checkpoint, Objective, Resources, Result, Value, pack

log = logging.getLogger("sweeps")

MAX_VIEWS = 1000
SCREENED_FEATURES = 1024
"""Numbers an image up to which ridge is cheap beside the forward pass."""


class Read(Protocol):
    """What a head reads, and the head: a Cell, or one that reads several blocks."""

    @property
    def name(self) -> str: ...

    @property
    def members(self) -> Members: ...

    @property
    def pooling(self) -> int: ...

    @property
    def head(self) -> str: ...


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
    """Numbers of training images at which the search tries cells, growing."""
    seed: int = 0
    views: int = 1
    """How many views of every training image heads are fitted on: the image as it is, then flipped and cropped ones."""
    notes: tuple[str, ...] = ()
    """Dataset.notes"""
    twins: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Dataset.twins"""
    metric: str = "accuracy"
    """What chooses: accuracy, or balanced_accuracy."""
    memory_bytes: int = 0
    """What a fit may take; 0 is its part of half of the device."""
    gpus_per_fit: float = 0
    """Share of a GPU that a fit holds; 0 where heads are fitted on the CPU."""
    search_val: int = 0
    """A bounded search judges on so many val images, the first; 0 is all."""
    recipe: Recipe | None = None
    """By which heads are trained instead of their own; all views are augmented then."""
    is_answer: bool = False
    """What is fitted is kept, too."""
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
        return len(self.labels["train"])

    @property
    def num_val(self) -> int:
        return len(self.labels["val"])

    @property
    def train_views(self) -> range:
        """The numbers of the views of training images that heads are fitted on; 0 is the image as it is."""
        first = int(self.recipe is not None)
        return range(first, first + self.views)

    @property
    def is_bounded(self) -> bool:
        """Whether the search ends on a part of the training images, and the answer alone is fitted on all of them."""
        return self.rungs[-1] < self.num_train

    def on_all_images(self, cell: Read) -> "ProbeTask":
        """The Task of fitting the answer alone, on all images. The passes keep the other blocks at its sites that they
        meet on their way."""
        sites = {}
        for timestep, blocks in at_timesteps(cell.members).items():
            share = self.space.pass_share(blocks)
            sites[timestep] = tuple(b for b in self.sites[timestep] if self.space.block(b).flops_share <= share)
        return replace(self, rungs=(self.num_train,), sites=sites, is_answer=True)

    def val_labels(self, rung: int | None = None) -> np.ndarray:
        """int64, of the val images that judge a cell which is fitted on so many images; by default on the most that the
        search has."""
        is_final = (rung or self.rungs[-1]) == self.num_train
        return self.labels["val"][: None if is_final else self.search_val or None]

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
        """How much each val image that the search judges on counts in its choice; None where all count alike."""
        return self.weigh(self.val_labels())

    def weigh(self, labels: np.ndarray) -> np.ndarray | None:
        """The same of any images with these labels, float [N]."""
        return class_weights(labels) if self.metric == "balanced_accuracy" else None

    def counted(self, correct: np.ndarray) -> np.ndarray:
        """Which of the first training images are right, as they count in the choice: their mean is its metric."""
        if self.metric == "accuracy":
            return correct
        return correct * class_weights(self.labels["train"][: len(correct)])

    def resources(self, cell: Read, rung: int) -> Resources:
        return Resources(1, self.gpus_per_fit, 0 if self.gpus_per_fit else self.memory_bytes)

    def key(self, cell: Read, rung: int) -> str:
        """The version is that of the cell's own head: a change to one head recomputes no other."""
        num_val = len(self.val_labels(rung))
        return content_key(
            features=self.source.key.asdict(),
            cell=cell.name,
            num_images=rung,
            views=self.views,
            seed=self.seed,
            version=find_head(cell.head, cell.members)[0].version,
            **({"metrics": ["balanced_accuracy", self.metric]} if self.is_balanced else {}),
            **({"num_val": num_val} if num_val < self.num_val else {}),
            **({"recipe": self.recipe.key} if self.recipe else {}),
        )

    def reads(self, cell: Read, rung: int) -> Hashable:
        return cell.members

    def needs(self, cell: Read, rung: int) -> list[Need]:
        """One pass serves all blocks that are tried at a timestep of the cell."""
        needs = []
        for timestep, its in at_timesteps(cell.members).items():
            blocks = tuple(dict.fromkeys([*self.sites.get(timestep, ()), *its]))
            needs += [Need(timestep, "train", rung, blocks, view=view) for view in self.train_views]
            needs.append(Need(timestep, "val", len(self.val_labels(rung)), blocks))
        return needs

    def channels(self, cell: Read) -> tuple[int, ...]:
        """The channels of each block that a cell reads."""
        return tuple(self.space.block(block).channels for block, _ in cell.members)

    def run(self, cells: Sequence[Read], rung: int, checkpoints: Sequence[Checkpoint]) -> Iterator[Result]:
        """Fit the heads of cells of one block and timestep, whose columns are read once for all that are held; again in
        half of the memory, block by block, where the device turns out to have less."""
        task: ProbeTask = self
        served, data = list[Read](), None
        for number, (cell, checkpoint) in enumerate(zip(cells, checkpoints, strict=True)):
            started = time.time()
            while True:
                try:
                    if data is None or cell not in served:
                        data = None  # there may be no room for two
                        served = task.together(cells[number:], rung, hold=task is self)
                        data = task.read(served, rung, hold=task is self)
                    result = self._result(cell, rung, data, checkpoint, started)
                    break
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    if task is not self:
                        reason = (str(error) or type(error).__name__).splitlines()[0]
                        raise ValueError(f"{self.device} has too little memory: {reason}") from error
                task, data = self._in_half(), None
            yield result

    def _result(
        self, cell: Read, rung: int, data: tuple["Pooled", "Pooled"], checkpoint: Checkpoint, started_seconds: float
    ) -> Result:
        features = data[0][0][cell.pooling]
        held = "held" if isinstance(features, Tensor) else f"{features.rows_at_once} rows at once"
        fitted = self.fit(cell, *data, Kept(checkpoint, f"{self.key(cell, rung)} {held}"))
        if self.is_answer:
            kept_head.keep(self, cell, fitted)
        return self.result(fitted, started_seconds, held != "held")

    def _in_half(self) -> "ProbeTask":
        """The task in half of the memory, which its device turned out not to have."""
        log.warning(f"{self.device} has less than {size(self.memory)} for a fit; again with half of it, block by block")
        if self.device != "cpu":
            torch.cuda.empty_cache()
        return replace(self, memory_bytes=self.memory // 2)

    def fit(self, cell: Read, train: "Pooled", val: "Pooled", kept: Kept | None = None) -> Fitted:
        seen, held_out = ((pooled[cell.pooling], labels) for pooled, labels in (train, val))
        weights = self.weigh(val[1].cpu().numpy())
        channels = self.channels(cell) if len(cell.members) > 1 else ()  # raw pixels are no block
        recipe = replace(self.recipe, views=self.views) if self.recipe else None
        return fit_probe(cell.head, seen, held_out, self.num_classes, self.seed, weights, kept, channels, recipe)

    def result(self, fitted: Fitted, started_seconds: float, streamed: bool = False) -> Result:
        accuracy = float(fitted.correct.mean())
        metrics = {"val_accuracy": accuracy, "val_stderr": standard_error(accuracy, len(fitted.correct))}
        if self.is_balanced:
            balanced, stderr = balanced_accuracy(fitted.correct, self.labels["val"][: len(fitted.correct)])
            metrics |= {"val_balanced_accuracy": balanced, "val_balanced_stderr": stderr}
        params = {"setting": fitted.setting} | ({"features": "streamed"} if streamed else {})
        return Result(metrics, params, started_seconds, time.time(), pack(fitted.correct))

    def together(self, cells: Sequence[Read], num_train: int, hold: bool = True) -> list[Read]:
        """The first of these cells of one site, and those of the others that the same read() can serve: the memory has
        room for all features that it holds."""
        served: list[Read] = []
        held: dict[int, bool] = {}
        maps = head = 0
        for cell in cells:
            is_held = self.check_memory(cell, num_train, hold)
            more = self.maps_bytes(cell, num_train) if is_held and cell.pooling not in held else 0
            most = max(head, self.head_bytes(cell, num_train)[not is_held])
            is_alike = held.get(cell.pooling, is_held) == is_held
            if not served or (is_alike and maps + more + most <= self.memory):
                served.append(cell)
                maps, head, held[cell.pooling] = maps + more, most, is_held
        return served

    def read(self, cells: Sequence[Read], num_train: int, hold: bool = True) -> tuple["Pooled", "Pooled"]:
        """The block and timestep of these cells, which together() gave, from the store, at the cells' poolings, of
        train and of val; of training images every view, one after the other. The features of each cell that has the
        memory for it are held, all from one read, and the others streamed.

        Raises LookupError where the store lacks some, ValueError where the memory is too small in either way.
        """
        poolings = {cell.pooling: self.check_memory(cell, num_train, hold) for cell in cells}
        return (
            self.features(cells[0], "train", num_train, poolings),
            self.features(cells[0], "val", len(self.val_labels(num_train)), poolings),
        )

    def features(self, cell: Read, split: str, num_images: int, poolings: Mapping[int, bool] | None = None) -> "Pooled":
        """What the cell reads from the store, several blocks side by side; of training images every view.

        poolings: pooling -> whether its features are held; by default those at the cell's own are. Raises LookupError
        where the store lacks some.
        """
        poolings, channels = poolings or {cell.pooling: True}, self.channels(cell)
        views = self.train_views if split == "train" else range(1)
        labels = torch.from_numpy(self.labels[split][:num_images]).repeat(len(views)).to(self.device)
        shards = [self._shards(site, split, num_images, views) for site in cell.members]
        found: dict[int, Features] = {}
        if held := [p for p, is_held in poolings.items() if is_held]:
            maps = {p: torch.empty(len(labels), sum(channels), p, p, device=self.device) for p in held}
            its = zip(*(each.split(channels, 1) for each in maps.values()), strict=True)
            for parts, num, into in zip(shards, channels, its, strict=True):
                hold(parts, num, self.device, dict(zip(maps, into, strict=True)), self.memory)
            found |= maps
        limit = self.memory // len(shards)
        if streamed := poolings.keys() - found:
            shards = [on_device(parts, self.device, limit // 8) for parts in shards]
        for p in streamed:
            each = zip(shards, channels, strict=True)
            found[p] = joined([Streamed(parts, num, p, self.device, limit) for parts, num in each])
        return found, labels

    def _shards(
        self, site: tuple[str, int], split: str, num_images: int, views: Iterable[int]
    ) -> Sequence[np.ndarray | Tensor]:
        """The rows of one block and timestep in the store, a view after the other."""
        (block, timestep), store = site, FeatureStore(self.source.store)
        needs = [Need(timestep, split, num_images, (block,), view=view) for view in views]
        return [shard for need in needs for shard in store.read(self.source.column(need, block), num_images)]

    def check_memory(self, cell: Read, num_train: int, hold: bool = True) -> bool:
        """Whether a fit holds its features, as it should where hold says so. Raises ValueError where the memory is too
        small for streamed ones as well."""
        held, streamed = self.fit_bytes(cell, num_train)
        if hold and held <= self.memory:
            return True
        if streamed > self.memory:
            flag = "--gpus-per-fit" if self.gpus_per_fit and not self.memory_bytes else "--memory"
            raise ValueError(
                f"a fit takes {size(streamed)} and may have {size(self.memory)}: raise {flag}, or take smaller "
                "poolings or heads"
            )
        return False

    def fit_bytes(self, cell: Read, num_train: int) -> tuple[int, int]:
        """What a fit takes where features are held; where they are streamed."""
        held, streamed = self.head_bytes(cell, num_train)
        return self.maps_bytes(cell, num_train) + held, streamed

    def maps_bytes(self, cell: Read, num_train: int) -> int:
        """What the features of a cell take, held."""
        rows = self.views * num_train + len(self.val_labels(num_train))
        return 4 * rows * sum(self.channels(cell)) * cell.pooling**2

    def head_bytes(self, cell: Read, num_train: int) -> tuple[int, int]:
        """What a fit takes beside features that are held; with the blocks of streamed ones."""
        channels = self.channels(cell)
        shape = self.views * num_train, sum(channels), cell.pooling, cell.pooling
        held, streamed = memory_by(self.recipe, cell.head, channels, shape, self.num_classes)
        return max(held, hold_bytes(self.memory)), streamed + stream_bytes(self.memory)

    @property
    def device(self) -> str:
        """Where heads are fitted."""
        return self.source.fits_on if self.gpus_per_fit else "cpu"

    @property
    def memory(self) -> int:
        """Bytes that a fit may take here."""
        return self.memory_bytes or for_fits(self.device, self.part(torch.get_num_threads()))

    def part(self, num_cpus: int) -> float:
        """The part of its device that a fit holds, of so many CPUs if it is fitted there."""
        return self.gpus_per_fit or num_cpus / max(num_cpus, os.cpu_count() or 1)

    def label(self, cell: Read) -> str:
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


Pooled = tuple[Mapping[int, Features], Tensor]
"""(pooling -> features float32 [N, C, p, p], labels int64 [N]), on the device where heads are fitted."""
