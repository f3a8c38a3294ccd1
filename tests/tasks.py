"""Tasks of plain numbers, which need no model, no images and no store."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from storage.ledger import content_key
from sweeps.search.halving import HalvingSearch
from sweeps.search.task import Axis, Checkpoint, Objective, Resources, Result

HEADS = {"linear": "linear", "attention-1": "attention", "attention-2": "attention"}


@dataclass(frozen=True, order=True)
class ToyCell:
    depth: int
    noise: int
    width: int
    head: str


@dataclass(frozen=True)
class ToyTask:
    """4 depths x 3 noises x 2 widths x 3 heads, without widths above 2**depth, and attention of width 1: 39 cells."""

    rungs: tuple[int, ...] = (300, 1200)
    name: str = "toy"
    objectives: tuple[Objective, ...] = (Objective("val_accuracy"),)
    resource: str = "steps"
    cells: tuple[ToyCell, ...] = tuple(
        ToyCell(depth, noise, width, head)
        for noise, depth, width, head in product((0, 10, 100), range(4), (1, 2), HEADS)
        if (1 if head == "linear" else 2) <= width <= 2**depth
    )

    @property
    def axes(self) -> dict[str, Axis]:
        ordered = {"depth": Axis(tuple(range(4))), "noise": Axis((0, 10, 100), numeric=True), "width": Axis((1, 2))}
        return {**ordered, "head": Axis(tuple(HEADS), tuple(HEADS.values()))}

    def resources(self, cell: ToyCell, rung: int) -> Resources:
        return Resources(num_cpus=1)

    def key(self, cell: ToyCell, rung: int) -> str:
        return content_key(task=self.name, cell=asdict(cell), rung=rung)

    def reads(self, cell: ToyCell, rung: int) -> tuple[int, int]:
        return cell.depth, cell.noise

    def needs(self, cell: ToyCell, rung: int) -> tuple:
        return ()

    def run(self, cells: Sequence[ToyCell], rung: int, checkpoints: Sequence[Checkpoint]) -> Iterator[Result]:
        return (self.result(cell, rung) for cell in cells)

    def result(self, cell: ToyCell, rung: int) -> Result:
        """Best at depth 2 and noise 10, and no two cells alike."""
        good = 0.1 * (cell.depth == 2) + 0.1 * (cell.noise == 10)
        accuracy = 0.5 + good + rung / 1e5 + ToyTask.cells.index(cell) / 1e6
        return Result({"val_accuracy": accuracy}, {"setting": "none"}, now := time.time(), now + 1)

    def label(self, cell: ToyCell) -> str:
        return "/".join(map(str, astuple(cell)))

    def params(self, cell: ToyCell) -> dict[str, int | str]:
        return asdict(cell)


@dataclass(frozen=True)
class Ball:
    start: int
    rate: float
    surface: str


@dataclass(frozen=True)
class Descent:
    """Balls roll down a bowl: the loss is to be small, and the effort as well. A ball goes on from its checkpoint, and
    every step that it takes is noted in a file, where `notes` is a folder."""

    notes: str = ""
    unlucky: int = -1
    """Balls that start here are a mistake."""
    seed: int = 0
    name: str = "descent"
    objectives: tuple[Objective, ...] = (Objective("loss", "minimize"), Objective("effort", "minimize"))
    rungs: tuple[int, ...] = (4, 16)
    resource: str = "steps"
    axes = {  # noqa: RUF012
        "start": Axis((1, 2, 3, 5, 8), numeric=True),
        "rate": Axis((0.1, 0.3, 0.9)),
        "surface": Axis(("ice", "sand-1", "sand-2"), ("ice", "sand", "sand")),
    }

    @property
    def cells(self) -> tuple[Ball, ...]:
        starts, rates, surfaces = (axis.values for axis in self.axes.values())
        return tuple(Ball(s, r, f) for s in starts for r in rates for f in surfaces)

    def resources(self, cell: Ball, rung: int) -> Resources:
        return Resources(num_cpus=1)

    def key(self, cell: Ball, rung: int) -> str:
        return content_key(task=self.name, seed=self.seed, cell=self.label(cell), rung=rung)

    def reads(self, cell: Ball, rung: int) -> int:
        return cell.start

    def needs(self, cell: Ball, rung: int) -> tuple:
        return ()

    def run(self, cells: Sequence[Ball], rung: int, checkpoints: Sequence[Checkpoint]) -> Iterator[Result]:
        call = f"{time.time_ns()}-{Random().random()}"
        for cell, checkpoint in zip(cells, checkpoints, strict=True):
            if cell.start == self.unlucky:
                raise ValueError(f"start={cell.start} is unlucky; leave it out")
            began = time.time()
            step, height = json.loads(checkpoint.load() or json.dumps([0, float(cell.start)]))
            step, height = (0, float(cell.start)) if step > rung else (step, height)
            friction = {"ice": 1.0, "sand-1": 0.8, "sand-2": 0.6}[cell.surface]
            while step < rung:
                step, height = step + 1, height * (1 - 0.2 * cell.rate * friction)
                self._note(call, cell, step)
            checkpoint.save(json.dumps([step, height]).encode())
            effort = cell.rate * rung / friction + cell.start / 100
            metrics = {"loss": height + 0.01 * self.seed, "effort": effort}
            yield Result(metrics, {"final_height": height}, began, time.time())

    def _note(self, call: str, cell: Ball, step: int) -> None:
        if self.notes:
            with Path(self.notes, call).open("a") as file:
                file.write(f"{self.label(cell)} {step}\n")

    def label(self, cell: Ball) -> str:
        return f"{cell.start}/{cell.rate}/{cell.surface}"

    def params(self, cell: Ball) -> Mapping[str, Any]:
        return {"start": cell.start, "rate": cell.rate, "surface": cell.surface}


def play(search: HalvingSearch, num_workers: int = 1, order: Random | None = None) -> list[tuple]:
    """Work on num_workers fits at once, which end in a random order; returns (cell, accuracies, stopped early)s."""
    running = []
    while not search.ended:
        while len(running) < num_workers and (fit := search.ask()):
            running.append(fit)
        fit = running.pop(order.randrange(len(running)) if order else 0)
        search.tell(fit, search.task.result(*fit))
    assert search.ask() is None
    return tried(search)


def tried(search: HalvingSearch) -> list[tuple]:
    return [(one.cell, accuracies(one.results.values()), one.stopped_early) for one in search.trials]


def accuracies(results) -> tuple[float, ...]:
    return tuple(result.metrics["val_accuracy"] for result in results)
