"""A Task whose trials take as long as they are meant to, so that what is measured is all around them."""

import random
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass

from ddae.backbones import Block
from storage.ledger import content_key
from sweeps.probing.space import Cell, Space
from sweeps.search.task import Axis, Checkpoint, Fit, Objective, Resources, Result, Value


@dataclass(frozen=True)
class Toy:
    """The cells of a space, each a fit of its own. Accuracy is best at one block and timestep, with noise."""

    space: Space
    rungs: tuple[int, ...]
    work_seconds: float = 0
    """CPU time that a trial takes."""
    name: str = "toy"
    objectives: tuple[Objective, ...] = (Objective("val_accuracy"),)
    resource: str = "num_images"

    @property
    def axes(self) -> Mapping[str, Axis]:
        return self.space.axes

    @property
    def cells(self) -> tuple[Cell, ...]:
        return self.space.cells

    def resources(self, cell: Cell, rung: int) -> Resources:
        return Resources(num_cpus=1)

    def key(self, cell: Cell, rung: int) -> str:
        return content_key(cell=cell.name, rung=rung)

    def reads(self, cell: Cell, rung: int) -> Hashable:
        """No two cells read the same, so each is a Tune trial of its own."""
        return cell

    def needs(self, cell: Cell, rung: int) -> Sequence:
        return ()

    def run(self, cells: Sequence[Cell], rung: int, checkpoints: Sequence[Checkpoint]) -> Iterator[Result]:
        for cell in cells:
            started = time.time()
            burn(self.work_seconds)
            yield Result({"val_accuracy": self.accuracy(cell, rung)}, {}, started, time.time())

    def accuracy(self, cell: Cell, rung: int) -> float:
        best = self.space.blocks[len(self.space.blocks) * 2 // 3]
        apart = abs(self.space.block(cell.block).index - best.index) / len(self.space.blocks)
        return 0.8 - 0.3 * (apart + abs(cell.timestep - 90) / 1000) + 0.02 * random.Random(f"{cell}{rung}").random()

    def label(self, cell: Cell) -> str:
        return cell.name

    def params(self, cell: Cell) -> Mapping[str, Value]:
        return asdict(cell)


def toy_space(num_blocks: int, timesteps: Sequence[int]) -> Space:
    """Three poolings and two heads, a block's share of the forward pass growing with its index."""
    blocks = tuple(Block(f"b{i}", i, "up", 512, 16, (i + 1) / num_blocks) for i in range(num_blocks))
    return Space(blocks, dict.fromkeys(timesteps, 1.0), (1, 2, 4), ("linear", "mlp"))


def burn(seconds: float) -> None:
    deadline = time.process_time() + seconds
    while time.process_time() < deadline:
        pass


def stands_ready(fit: Fit, lost: bool) -> Future:
    """What a Run's prepare is where trials need nothing."""
    ready: Future = Future()
    ready.set_result(None)
    return ready
