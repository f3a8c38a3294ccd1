"""The answer of a finished fine-tuning sweep, as it was trained."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from ddae.datasets import Dataset
from ddae.finetune import CutClassifier, frozen_features
from ddae.heads import StackedHead
from ddae.winner import Winner
from storage.checkpoints import StoredCheckpoint
from storage.files import published
from sweeps.findings.folder import read_results
from sweeps.findings.logged import name_of
from sweeps.finetune import Finetune
from sweeps.finetuning.sweep import set_up
from sweeps.finetuning.task import Cell, FinetuneTask
from sweeps.finetuning.training import batches
from sweeps.probing.extractor import opened
from sweeps.probing.source import recorded_flags
from sweeps.search.task import Result


@dataclass(frozen=True)
class Tuned:
    """A cut network and its head, in the state in which it was measured on val."""

    task: FinetuneTask
    cell: Cell
    model: CutClassifier
    kept: Sequence[str]
    result: Result
    folder: Path

    @property
    def name(self) -> str:
        return self.task.label(self.cell)

    @property
    def experiment(self) -> str:
        return self.task.source.name

    @property
    def num_train(self) -> int:
        return self.cell.num_labels

    @property
    def dataset(self) -> Dataset:
        return opened(self.task.source).dataset

    def correct(self, split: str) -> np.ndarray:
        """bool [N]: which images of the split are classified correctly."""
        return self.task.correct(self.cell, self.model, split)

    def features(self, split: str) -> np.ndarray:
        """float32 [N, C * p * p]: what the head reads."""
        places = np.arange(len(self.dataset.splits[split]))
        images = batches(self.task.source, self.model, split, places, self.cell.seed)
        return frozen_features(self.model, images).flatten(1).numpy()

    def estimator(self) -> Winner:
        """Its weights are written into the sweep's folder first: those that the cut keeps."""
        source, cell, task = self.task.source, self.cell, self.task
        settings = replace(source.settings, compile=False)
        if cell.init != "frozen":
            file = (self.folder / "weights.safetensors").absolute()
            state = self.model.network.state_dict()
            buffers = {name for name, _ in self.model.network.named_buffers()} & state.keys()
            with published(file) as part:
                save_file({name: state[name].cpu().contiguous() for name in [*self.kept, *sorted(buffers)]}, part)
            settings = replace(settings, weights=str(file))
        winner = Winner(
            source.backbone, cell.cut, cell.timestep, task.pooling, task.head, setting="", seed=cell.seed,
            noise_seed=cell.seed, noised=task.noised, settings=settings,
            white=self.dataset.images.reading.white,
        )  # fmt: skip
        classes = self.dataset.images.classes
        head: StackedHead = self.model.head.eval().requires_grad_(False)
        return winner.take(head, self.num_train, range(len(classes)), classes)


def answer_of(folder: Path) -> Cell:
    """The answer of the sweep in a folder."""
    try:
        return Cell(**read_results(folder)["answer"]["cell"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'results.json'} is damaged; run its sweep again") from error


def answer_name(folder: Path) -> str:
    task, cell = _task_and_cell(folder)
    return task.label(cell)


def reopen(folder: Path, splits: tuple[str, ...] = ()) -> Tuned:
    """The answer from its checkpoint in the store; where that is gone it is trained again."""
    task, cell = _task_and_cell(folder)
    checkpoint = StoredCheckpoint(task.source.store, task.key(cell, task.rungs[-1]))
    [result] = task.run([cell], task.rungs[-1], [checkpoint])
    model, kept = task.restored(cell, checkpoint)
    return Tuned(task, cell, model, kept, result, folder)


def _task_and_cell(folder: Path) -> tuple[FinetuneTask, Cell]:
    cell = answer_of(folder)
    flags = recorded_flags(folder, Finetune)
    setup = set_up(replace(flags, sweep=None))
    if setup.folder.name != name_of(folder):
        raise ValueError(f"{flags.backbone} or {flags.dataset} has changed since {folder} was made; sweep again")
    [task] = [task for task in setup.tasks if not task.baseline and cell in task.cells]
    return task, cell
