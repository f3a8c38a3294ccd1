"""A Task of plain numbers, which needs no model, no images and no store."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import product
from random import Random

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
