"""SIGKILL of a process in the middle of a group of cells that are run together."""

import os
import signal
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sweeps.cluster.session import ray_session
from sweeps.cluster.tune import Run, run_trials
from sweeps.search.halving import HalvingSearch
from sweeps.search.task import Axis, Objective, Resources, Result

DEADLY = 2


@dataclass(frozen=True)
class Cell:
    number: int


@dataclass(frozen=True)
class Mortal:
    """A Task of six cells that read the same; the first process that comes to the third one dies."""

    died: Path
    name = "mortal"
    axes: ClassVar = {"number": Axis(tuple(range(6)), numeric=True)}
    cells = tuple(map(Cell, range(6)))
    objectives = (Objective("loss", "minimize"),)
    rungs = (1,)
    resource = "steps"

    def resources(self, cell, rung):
        return Resources()

    def key(self, cell, rung):
        return f"{cell.number}-{rung}"

    def reads(self, cell, rung):
        return "the same"

    def needs(self, cell, rung):
        return ()

    def run(self, cells, rung, checkpoints):
        for cell in cells:
            if cell.number == DEADLY and not self.died.exists():
                self.died.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            yield Result({"loss": cell.number}, {"process": os.getpid()}, time.time(), time.time())

    def label(self, cell):
        return str(cell.number)

    def params(self, cell):
        return {"number": cell.number}


def prepared(fit, lost):
    ready = Future()
    ready.set_result(None)
    return ready


def test_what_a_killed_group_has_finished_is_not_run_again(fork, monkeypatch, tmp_path):
    task = Mortal(tmp_path / "died")
    search = HalvingSearch(task, len(task.cells), "grid")
    monkeypatch.setenv("RAY_ADDRESS", fork.keywords["RAY_ADDRESS"])
    with ray_session():
        run_trials([Run(search, str(tmp_path / "store"), prepared)], [], lambda: None)

    assert [trial.cell for trial in search.trials] == list(task.cells)
    assert [trial.last.metrics["loss"] for trial in search.trials] == list(range(6))
    processes = [trial.last.params["process"] for trial in search.trials]
    assert processes[:DEADLY] == [int(task.died.read_text())] * DEADLY  # the ledger has them still
    assert processes[DEADLY:] == processes[-1:] * 4 and processes[-1] != processes[0]
