"""The Tasks that end in a classifier, for final_test.py and hand_over.py: a Task is a line in CLASSIFIERS."""

from pathlib import Path
from types import ModuleType

from sweeps.findings.folder import newest_sweep, read_results
from sweeps.finetuning import refit as finetuning
from sweeps.fusing import refit as fusing
from sweeps.probing import refit as probing

CLASSIFIERS = {"layer-noise": probing, "finetune": finetuning, "fuse": fusing}
"""A Task's name -> the module that has answer_name(folder), of the cell that the sweep in a folder has chosen, and
reopen(folder, splits), its classifier, fitted again. splits: those that are wanted beside train and val."""
Classifier = probing.Refit | finetuning.Tuned
"""The answer of a finished sweep, ready to classify. Both have the same properties and methods."""


def newest(out: Path) -> Path:
    """The folder of the sweep that was finished last and ends in a classifier."""
    return newest_sweep(out, *CLASSIFIERS)


def room_of(folder: Path) -> ModuleType:
    """The module in CLASSIFIERS that knows the sweep in a folder."""
    task = read_results(folder)["task"]
    if task not in CLASSIFIERS:
        raise ValueError(
            f"{folder} is a sweep of {task!r}, which ends in no classifier of clean images; those of "
            f"{', '.join(CLASSIFIERS)} do"
        )
    return CLASSIFIERS[task]
