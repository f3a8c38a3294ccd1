"""The answer of a finished probing sweep, fitted again."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddae.backbones import Backbone
from ddae.datasets import Dataset
from ddae.fusion import at_timesteps
from ddae.fusion import name_of as name_of_members
from ddae.heads import Kept, StackedHead, find_head
from ddae.probe import Fitted, classify
from ddae.streaming import blocks
from ddae.units import size
from ddae.winner import Winner
from sweeps.findings.folder import read_results
from sweeps.findings.logged import name_of
from sweeps.layer_noise import LayerNoise
from sweeps.probing import kept_head
from sweeps.probing.extractor import Extractor
from sweeps.probing.plan import Setup, set_up_search, sweep_folder
from sweeps.probing.source import Flags, Need, recorded_flags, with_whole_paths
from sweeps.probing.space import Cell
from sweeps.probing.task import ProbeTask, Read
from sweeps.search.task import Result


@dataclass(frozen=True)
class Refit:
    """A cell and its head, fitted on all training images with the setting that is best on val."""

    task: ProbeTask
    cell: Read
    extractor: Extractor
    fitted: Fitted
    result: Result

    @property
    def name(self) -> str:
        return self.cell.name

    @property
    def experiment(self) -> str:
        return self.task.source.name

    @property
    def num_train(self) -> int:
        return self.task.num_train

    @property
    def dataset(self):
        return self.extractor.dataset

    def features(self, split: str) -> np.ndarray:
        """float32 [N, C * p * p] of all images of the split as they are."""
        pooled, _ = self._read(split)
        return torch.cat([maps.flatten(1).cpu() for _, maps in blocks(pooled)]).numpy()

    def correct(self, split: str) -> np.ndarray:
        """bool [N]: which images of the split are classified correctly."""
        pooled, labels = self._read(split)
        found = classify(self.fitted.head, pooled, self.task.num_classes)
        return (found[self.fitted.number] == labels).cpu().numpy()

    def estimator(self) -> Winner:
        source, setting = self.task.source, str(self.result.params["setting"])
        block, timestep = self.cell.members[0]
        seeds: dict[str, Any] = {"seed": self.task.seed, "noise_seed": source.key.noise_seed}
        settings = replace(source.settings, compile=False)
        winner = Winner(
            source.backbone,
            block if len(self.cell.members) == 1 else name_of_members(self.cell.members),
            timestep,
            self.cell.pooling,
            self.cell.head,
            setting=setting,
            settings=settings,
            **seeds,
            white=self.dataset.images.reading.white,
        )
        classes = self.dataset.images.classes
        return winner.take(self._head(), self.num_train, range(len(classes)), classes)

    def _head(self) -> StackedHead:
        """The head alone, on the CPU. Raises ValueError where it would have to take more along than memory allows."""
        channels = self.task.channels(self.cell)
        family, _ = find_head(self.cell.head, channels)
        takes_all = 4 * self.task.views * self.num_train * sum(channels) * self.cell.pooling**2
        if family.takes_all and takes_all > self.task.memory:
            raise ValueError(f"head={self.cell.head!r} takes all training features along, {size(takes_all)}; too much")
        return copy.deepcopy(self.fitted.head.only(self.fitted.setting)).cpu()

    def _read(self, split: str):
        one_view = replace(self.task, views=1)
        num_images = len(self.task.labels[split])
        is_held = one_view.fit_bytes(self.cell, num_images)[0] <= self.task.memory
        pooled, labels = one_view.features(self.cell, split, num_images, {self.cell.pooling: is_held})
        return pooled[self.cell.pooling], labels


def answer_cell(folder: Path) -> Cell:
    """The answer of the sweep in a folder."""
    try:
        return Cell(**read_results(folder)["answer"]["cell"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'results.json'} is damaged; run its sweep again, which takes seconds") from error


def answer_name(folder: Path) -> str:
    return answer_cell(folder).name


def recorded(folder: Path, memory: str = "", here: bool = True) -> Setup:
    """Network, data and task of the sweep in a folder, by its flags. Raises ValueError where they have changed.

    memory: as --memory of layer_noise.py. here: whether the work is done on this machine, and not on a cluster.
    """
    flags = recorded_flags(folder, LayerNoise)
    if "search_images" not in (folder / "config.yaml").read_text():  # of an earlier version, whose search had all
        flags = replace(flags, search_images="all")
    flags = replace(flags, memory=memory)
    if here and flags.device.startswith("cuda") and not torch.cuda.is_available():  # a cluster's, seen from its head
        flags = replace(flags, device="auto")
    setup = set_up_search(replace(flags, warm_start=None))  # where it began decides nothing any more
    if sweep_folder(flags, setup.task).name != name_of(folder):
        raise ValueError(f"{flags.backbone} or {flags.dataset} has changed since {folder} was made; sweep again")
    return setup


DECIDING = (
    "backbone", "dataset", "data_seed", "data_root", "label_column", "group_by", "white", "skip_unreadable",
    "image_size", "num_steps", "text_embedding", "weights",
)  # fmt: skip
"""Flags that say which network and which images a sweep has looked into."""


def with_flags_of(folder: Path, config: Flags, instead: str, take_store: bool) -> tuple[Flags, LayerNoise]:
    """The flags with the network and the data of the sweep in a folder, and that sweep's own flags. Raises ValueError
    where they name others.

    instead: what else can be done then. take_store: whether its store is taken too, where no other is named.
    """
    theirs, whole = recorded_flags(folder, LayerNoise), with_whole_paths(config)
    default = with_whole_paths(type(config)())
    given = {name: getattr(theirs, name) for name in DECIDING}
    for name, value in given.items():
        if getattr(whole, name) not in (value, getattr(default, name)):
            raise ValueError(
                f"{name}={getattr(config, name)!r} is not that of --sweep {folder}, which has {value!r}; leave it out, "
                f"or {instead}"
            )
    if take_store and config.store == type(config).store:
        given["store"] = theirs.store
    return replace(config, **given), theirs


def reopen(folder: Path, splits: tuple[str, ...] = ()) -> Refit:
    """The answer of the sweep in a folder, as it was fitted; its features are those of the store, or made again.

    splits: those whose features are wanted beside train and val.
    """
    cell, (task, backbone, dataset) = answer_cell(folder), recorded(folder)
    return refit(task, cell, dataset, splits, backbone=backbone)


def refit(
    task: ProbeTask,
    cell: Read,
    dataset: Dataset,
    splits: tuple[str, ...],
    kept: Kept | None = None,
    backbone: Backbone | None = None,
) -> Refit:
    """A cell on all training images, with the head that was kept, or fitted again.

    dataset: with all that opening its images has shown. splits: as in reopen(). kept: where a fit that takes long keeps
    its state. backbone: the network, where it is loaded.
    """
    labels = {**task.labels, **{split: dataset.labels(split) for split in splits}}
    task = replace(task, labels=labels, sites=at_timesteps(cell.members))
    extractor = Extractor(task.source, backbone, dataset)
    for need in task.needs(cell, task.num_train):
        extractor.ensure(need)
    for split in splits:
        for timestep, names in at_timesteps(cell.members).items():
            extractor.ensure(Need(timestep, split, len(labels[split]), names))
    fitted = kept_head.find(task, cell)
    if fitted is None:
        fitted = task.fit(cell, *task.read([cell], task.num_train), kept)
        kept_head.keep(task, cell, fitted)
    return Refit(task, cell, extractor, fitted, task.result(fitted, 0.0))
