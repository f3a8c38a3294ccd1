"""The answer of a finished fusing sweep, fitted again."""

from dataclasses import replace
from pathlib import Path

from sweeps import cli
from sweeps.findings.folder import read_results
from sweeps.findings.logged import name_of
from sweeps.fuse import Fuse
from sweeps.fusing.sweep import set_up
from sweeps.fusing.task import FusedCell
from sweeps.probing.refit import Refit, refit


def answer_of(folder: Path) -> FusedCell:
    """The answer of the sweep in a folder; where fusion does not pay, a set of one feature."""
    try:
        return FusedCell(**read_results(folder)["answer"]["cell"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'results.json'} is damaged; run its sweep again, which takes seconds") from error


def answer_name(folder: Path) -> str:
    return answer_of(folder).name


def reopen(folder: Path, splits: tuple[str, ...] = ()) -> Refit:
    """Fit the answer of the sweep in a folder again. splits: those that are wanted beside train and val."""
    cell, flags = answer_of(folder), cli.parse(Fuse, ["--config", str(folder / "config.yaml")], None)
    if flags.sweep and not flags.sweep.exists():  # it has moved along with the folder
        flags = replace(flags, sweep=folder.resolve().parent / flags.sweep.name)
    setup = set_up(flags)
    if setup.folder.name != name_of(folder):
        raise ValueError(f"{flags.sweep} has changed since {folder} was made; fuse again")
    return refit(setup.task([cell.members]), cell, setup.dataset, splits, backbone=setup.backbone)
