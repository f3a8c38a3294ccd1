"""The Task of the noise-conditional classifier: a cell is one way to train one head for all noise levels."""

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch

from ddae.heads import Kept
from ddae.memory import is_out_of_memory
from ddae.noise_levels import DISTRIBUTIONS, Levels
from ddae.noisy_classifier import NoisyHead, restored
from ddae.noisy_training import VERSION, Columns, fit, score
from storage.checkpoints import StoredCheckpoint
from storage.feature_store import FeatureStore
from storage.ledger import content_key
from sweeps.probing.source import FeatureSource, Need
from sweeps.probing.task import ProbeTask
from sweeps.search.task import Axis, Checkpoint, Objective, Resources, Result, Value, pack

READING, READING_BYTES = 0.25, 2**28
"""The part of a fit's memory that reading features may take, and the most that it takes: the order of the rows follows
from it, so that machines of 1 GB a fit and more train the same head."""


@dataclass(frozen=True, order=True)
class NoisyCell:
    block: str
    pooling: int
    width: int
    """Hidden units, as a multiple of the numbers that the head reads."""
    embedding: str
    """tau, where the head is told the noise level, or none."""
    noise: str
    """How often each level is trained on: a name in DISTRIBUTIONS."""
    standardise: str
    """level, where features are standardised by the statistics of their level, or none."""

    @property
    def name(self) -> str:
        told, scaled = f"tau-{self.embedding}", f"standardise-{self.standardise}"
        return f"{self.block}/{self.pooling}/{self.width}x/{told}/{self.noise}/{scaled}"


def official(block: str, noise: str = "uniform-t", standardise: str = "none") -> NoisyCell:
    """DDAE's recipe: average-pooled features as they are, a hidden layer of twice their number, tau, uniform t."""
    return NoisyCell(block, 1, 2, "tau", noise, standardise)


@dataclass(frozen=True)
class NoisyTask:
    probing: ProbeTask
    """Its source, space (the blocks that are tried) and labels."""
    levels: Levels
    """All of the schedule."""
    grid: Levels
    """Those that are trained on."""
    between: Levels
    """Others, at which val is looked at as well."""
    poolings: tuple[int, ...]
    widths: tuple[int, ...]
    rungs: tuple[int, ...]
    num_draws: int
    num_val: int
    seed: int = 0
    name: str = "noisy-classifier"
    objectives: tuple[Objective, ...] = (Objective("val_accuracy"),)
    resource: str = "num_images"

    @property
    def source(self) -> FeatureSource:
        return self.probing.source

    @property
    def blocks(self) -> tuple[str, ...]:
        return self.probing.space.block_names

    @property
    def looked_at(self) -> Levels:
        """The levels at which val is looked at: the grid, then those between."""
        return {**self.grid, **self.between}

    @cached_property
    def cells(self) -> tuple[NoisyCell, ...]:
        """Without poolings that a block's map is too small for."""
        axes = (axis.values for axis in self.axes.values())
        sizes = {block.name: block.size for block in self.probing.space.blocks}
        cells = (NoisyCell(*values) for values in product(*axes))  # type: ignore[arg-type]
        return tuple(cell for cell in cells if cell.pooling <= sizes[cell.block])

    @property
    def axes(self) -> Mapping[str, Axis]:
        noises, yes_or_no = tuple(DISTRIBUTIONS), {"embedding": ("none", "tau"), "standardise": ("level", "none")}
        return {
            "block": Axis(self.blocks),
            "pooling": Axis(self.poolings),
            "width": Axis(self.widths),
            "embedding": Axis(yes_or_no["embedding"], yes_or_no["embedding"]),
            "noise": Axis(noises, noises),
            "standardise": Axis(yes_or_no["standardise"], yes_or_no["standardise"]),
        }

    def resources(self, cell: NoisyCell, rung: int) -> Resources:
        held = self.probing
        return Resources(1, held.gpus_per_fit, 0 if held.gpus_per_fit else held.memory_bytes)

    def key(self, cell: NoisyCell, rung: int) -> str:
        return content_key(
            task=self.name,
            features=self.source.key.asdict(),
            cell=asdict(cell),
            levels=(tuple(self.grid), tuple(self.between)),
            num_images=rung,
            num_draws=self.num_draws,
            num_val=self.num_val,
            seed=self.seed,
            version=VERSION,
        )

    def reads(self, cell: NoisyCell, rung: int) -> NoisyCell:
        """Every training is a trial of its own: it takes much longer than its features take to be read."""
        return cell

    def needs(self, cell: NoisyCell, rung: int) -> list[Need]:
        """One pass serves all blocks that are tried."""
        draws = range(self.num_draws)
        needs = [Need(timestep, "train", rung, self.blocks, draw) for timestep in self.grid for draw in draws]
        return needs + [Need(timestep, "val", self.num_val, self.blocks) for timestep in self.looked_at]

    def run(self, cells: Sequence[NoisyCell], rung: int, checkpoints: Sequence[Checkpoint]) -> Iterator[Result]:
        for cell, checkpoint in zip(cells, checkpoints, strict=True):
            started = time.time()
            try:
                head = self.fitted(cell, rung, checkpoint)
                correct = self.score(cell, head)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise ValueError(f"{self.probing.device} has too little memory for {cell.name}: {error}") from error
            yield self.result(correct, started)

    def result(self, correct: np.ndarray, started_seconds: float, **params: Value) -> Result:
        """correct: bool [levels that are looked at, num_val]."""
        grid, between = correct[: len(self.grid)], correct[len(self.grid) :]
        accuracy, stderr = mean_over_levels(grid)
        metrics = {"val_accuracy": accuracy, "val_stderr": stderr, "val_accuracy_least_noise": float(grid[0].mean())}
        if len(between):
            metrics["val_accuracy_between"] = mean_over_levels(between)[0]
        return Result(metrics, params, started_seconds, time.time(), pack(correct.ravel()))

    def correct_at(self, result: Result) -> np.ndarray:
        """bool [levels that are looked at, num_val]: which val images are classified correctly at each."""
        return result.correct.reshape(-1, self.num_val)

    def fitted(self, cell: NoisyCell, rung: int, checkpoint: Checkpoint | None) -> NoisyHead:
        """The trained head, from the checkpoint where that has it. Of the last rung it is kept there."""
        if rung == self.rungs[-1] and (kept := self.kept(cell, checkpoint)) is not None:
            return kept
        head = fit(
            self.columns(cell, tuple(self.grid), "train", rung, range(self.num_draws)),
            torch.from_numpy(self.probing.labels["train"][:rung]),
            tuple(self.grid.values()),
            DISTRIBUTIONS[cell.noise](self.levels, tuple(self.grid.values())),
            self.probing.num_classes,
            cell.width,
            cell.embedding == "tau",
            cell.standardise == "level",
            self.seed,
            Kept(checkpoint, self.key(cell, rung)),
        )
        if rung == self.rungs[-1] and checkpoint:
            state = {name: tensor.cpu() for name, tensor in head.state_dict().items()}
            torch.save({"name": self._fitted_name(cell), "state": state}, buffer := io.BytesIO())
            checkpoint.save(buffer.getvalue())
        return head

    def kept(self, cell: NoisyCell, checkpoint: Checkpoint | None) -> NoisyHead | None:
        """The head that a checkpoint holds; None where it holds none."""
        state = Kept(checkpoint, self._fitted_name(cell)).load()
        if state is None:
            return None
        head = restored(state, self.probing.num_classes, cell.width, cell.embedding == "tau")
        return head.to(self.probing.device)

    def _fitted_name(self, cell: NoisyCell) -> str:
        return f"{self.key(cell, self.rungs[-1])} fitted"

    def score(self, cell: NoisyCell, head: NoisyHead) -> np.ndarray:
        """bool [levels that are looked at, num_val]."""
        columns = self.columns(cell, tuple(self.looked_at), "val", self.num_val, range(1))
        labels = torch.from_numpy(self.probing.labels["val"][: self.num_val])
        return score(head, columns, labels, tuple(self.looked_at.values()))

    def columns(
        self, cell: NoisyCell, timesteps: Sequence[int], split: str, num_images: int, draws: Sequence[int]
    ) -> Columns:
        """The stored features of the cell's block at these timesteps. Raises LookupError where the store lacks some."""
        store, probing = FeatureStore(self.source.store), self.probing

        def read(timestep: int, draw: int) -> list[np.ndarray]:
            need = Need(timestep, split, num_images, (cell.block,), draw)
            return store.read(self.source.column(need, cell.block), num_images)

        parts = [[read(timestep, draw) for draw in draws] for timestep in timesteps]
        channels, memory = probing.space.block(cell.block).channels, min(READING_BYTES, int(READING * probing.memory))
        return Columns(parts, channels, cell.pooling, probing.device, memory)

    def label(self, cell: NoisyCell) -> str:
        return f"{cell.name} (DDAE's recipe)" if cell == official(cell.block) else cell.name

    def params(self, cell: NoisyCell) -> dict[str, Value]:
        channels = self.probing.space.block(cell.block).channels
        return {**asdict(cell), "num_features": channels * cell.pooling**2, "num_draws": self.num_draws}


def mean_over_levels(correct: np.ndarray) -> tuple[float, float]:
    """The mean accuracy of correct, bool [L, N], and its standard error over the images, which all levels share."""
    each = correct.mean(0)
    return float(each.mean()), float(each.std() / len(each) ** 0.5)


def fitted_head(task: NoisyTask, cell: NoisyCell) -> NoisyHead:
    """The head of a cell on all training images that the task has, on the CPU."""
    checkpoint = StoredCheckpoint(task.source.store, task.key(cell, task.rungs[-1]))
    return task.fitted(cell, task.rungs[-1], checkpoint).cpu()
