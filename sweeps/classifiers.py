"""The Tasks that end in a classifier, for final_test.py and hand_over.py: a Task is a line in CLASSIFIERS."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ddae.datasets import Dataset
from sweeps.findings.folder import read_results
from sweeps.finetuning import refit as finetuning
from sweeps.probing import refit as probing
from sweeps.search.task import Result


class Classifier(Protocol):
    """The answer of a finished sweep, ready to classify."""

    @property
    def name(self) -> str:
        """The cell's."""
        ...

    @property
    def experiment(self) -> str:
        """The name of its experiment in MLflow."""
        ...

    @property
    def num_train(self) -> int: ...

    @property
    def dataset(self) -> Dataset: ...

    @property
    def result(self) -> Result:
        """What it came to on val."""
        ...

    def correct(self, split: str) -> np.ndarray:
        """bool [N]: which images of a split are classified correctly."""
        ...

    def features(self, split: str) -> np.ndarray:
        """float32 [N, D]: the features of a split, as the head reads them."""
        ...

    def estimator(self) -> Any:
        """It in scikit-learn's conventions, with save(folder, include_backbone, measured)."""
        ...


CLASSIFIERS: dict[str, tuple[Callable[[Path], str], Callable[[Path, tuple[str, ...]], Classifier]]] = {
    "layer-noise": (probing.answer_name, probing.reopen),
    "finetune": (finetuning.answer_name, finetuning.reopen),
}
"""A Task's name -> (folder -> the answer's name, (folder, splits wanted beside train and val) -> the classifier)."""


def answer_name(folder: Path) -> str:
    """The name of the cell that the sweep in a folder has chosen."""
    return _of(folder)[0](folder)


def reopen(folder: Path, splits: tuple[str, ...] = ()) -> Classifier:
    """The answer of the sweep in a folder, fitted again. splits: those that are wanted beside train and val."""
    return _of(folder)[1](folder, splits)


def _of(folder: Path):
    task = read_results(folder)["task"]
    if task not in CLASSIFIERS:
        raise ValueError(
            f"{folder} is a sweep of {task!r}, which ends in no classifier; those of {', '.join(CLASSIFIERS)} do"
        )
    return CLASSIFIERS[task]
