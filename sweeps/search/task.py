"""The contract between what a sweep tries, what proposes and stops it, and what runs it."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

REDUCTION = 4
"""Each rung has about so many times the resource of the one before, and ASHA lets about one cell in so many go on."""

Value = str | int | float
Cell = Any
"""A frozen dataclass of one Task, with a field for each of its axes."""


@dataclass(frozen=True)
class Axis:
    """The values that a cell may have on one axis, and which of them are neighbours.

    kinds: one a value; values of one kind are neighbours in their order, others have nothing in common: mlp-256 and
    mlp-512 are of the kind mlp. None where all values are neighbours, as timesteps are.
    """

    values: tuple[Value, ...]
    kinds: tuple[str, ...] | None = None
    numeric: bool = False
    """Whether charts show the values as numbers on a scale."""

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) < len(self.values):
            raise ValueError(f"an axis has the values {list(self.values)}; give one or more, and each once")
        if self.kinds is not None and len(self.kinds) != len(self.values):
            raise ValueError(f"an axis has {len(self.values)} values and {len(self.kinds)} kinds; give one a value")


@dataclass(frozen=True)
class Objective:
    """A metric of a Result, and which way it is better."""

    metric: str
    direction: Literal["maximize", "minimize"] = "maximize"

    @property
    def measure(self) -> str:
        """What is measured on val, as a person says it: balanced accuracy."""
        return self.metric.removeprefix("val_").replace("_", " ")

    def merit(self, result: "Result") -> float:
        """The metric, or minus it where lower is better."""
        value = result.metrics[self.metric]
        return value if self.direction == "maximize" else -value

    def text(self, result: "Result") -> str:
        """The metric as a person reads it."""
        value = result.metrics[self.metric]
        if not self.metric.endswith("accuracy"):
            return f"{self.metric} {value:.4g}"
        return f"{100 * value:.1f} %{f' {self.measure}' * (self.measure != 'accuracy')}"


@dataclass(frozen=True)
class Resources:
    """What a trial holds while it runs."""

    num_cpus: float = 1
    num_gpus: float = 0
    memory_bytes: int = 0
    in_processes_of_its_own: bool = False
    """Whether the trial starts processes that hold all this, and holds nothing itself."""


@dataclass(frozen=True)
class Result:
    """What a cell came to at one rung; JSON holds all of it."""

    metrics: Mapping[str, float]
    params: Mapping[str, Value]
    """What was chosen inside the trial, such as a head's penalty."""
    started_seconds: float
    """Since the epoch, as ended_seconds."""
    ended_seconds: float
    right: str = ""
    """pack() of which val images were classified correctly, where the trial ends in a classifier."""

    def as_record(self) -> dict:
        return asdict(self)

    @property
    def correct(self) -> np.ndarray:
        """bool [num_val], for paired comparisons."""
        return unpack(self.right)

    @property
    def run_seconds(self) -> float:
        return self.ended_seconds - self.started_seconds


class Fit(NamedTuple):
    """A cell, to be run up to a rung."""

    cell: Cell
    rung: int


@dataclass
class Trial:
    """A cell from its proposal to its record."""

    cell: Cell
    results: dict[int, Result] = field(default_factory=dict)
    """rung -> result, lowest rung first."""
    state: Literal["running", "stopped", "finished"] = "running"

    @property
    def stopped_early(self) -> bool:
        return self.state == "stopped"

    @property
    def rung(self) -> int:
        """The highest rung that it reached."""
        return max(self.results)

    @property
    def last(self) -> Result:
        """Its result at that rung."""
        return self.results[self.rung]


class Checkpoint(Protocol):
    """Where the state of one trial is kept, on its way through the rungs."""

    def load(self) -> bytes | None:
        """What save() kept last; None where there is nothing."""

    def save(self, state: bytes) -> None:
        """Keep this in place of what was kept before."""


class Task(Protocol):
    """What a sweep tries. Workers get a copy of it, pickled."""

    @property
    def name(self) -> str:
        """The kind of experiment, as its folders are named: layer-noise."""

    @property
    def axes(self) -> Mapping[str, Axis]:
        """The axes of a cell."""

    @property
    def cells(self) -> Sequence[Cell]:
        """Every cell that makes sense, in order."""

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What is measured; the first decides what is stopped, and what is chosen."""

    @property
    def rungs(self) -> tuple[int, ...]:
        """How much a trial gets of the resource before it may be stopped, growing."""

    @property
    def resource(self) -> str:
        """num_images, or steps."""

    def resources(self, cell: Cell, rung: int) -> Resources:
        """What one trial holds of a machine."""

    def key(self, cell: Cell, rung: int) -> str:
        """A hash of all that decides the result."""

    def reads(self, cell: Cell, rung: int) -> Hashable:
        """What the trial reads: cells that read the same are run together where there are more of them than slots."""

    def needs(self, cell: Cell, rung: int) -> Sequence[Any]:
        """What must stand in the store first; nothing where that is empty."""

    def run(self, cells: Sequence[Cell], rung: int, checkpoints: Sequence[Checkpoint]) -> Iterator[Result]:
        """The result of each cell, in order, in a worker and on the device that it holds.

        checkpoints: one a cell, which is the same at every rung. Raises LookupError where what it needs is gone from
        the store, ValueError where no retry helps.
        """

    def label(self, cell: Cell) -> str:
        """A cell's name in tables and errors."""

    def params(self, cell: Cell) -> Mapping[str, Value]:
        """The cell as MLflow and the tables show it: its axes, and what follows from them."""


def pack(correct: np.ndarray) -> str:
    """bool [N] as a short text."""
    return f"{len(correct)}:{np.packbits(correct).tobytes().hex()}"


def unpack(text: str) -> np.ndarray:
    """What pack() was given."""
    length, _, bits = text.partition(":")
    packed = np.frombuffer(bytes.fromhex(bits), dtype=np.uint8)
    return np.unpackbits(packed, count=int(length)).astype(bool)


def values_of(task: Task, result: Result) -> list[float] | None:
    """The result's value of each objective; None where it lacks one."""
    values = [result.metrics.get(objective.metric) for objective in task.objectives]
    return None if None in values else values  # type: ignore[return-value]
