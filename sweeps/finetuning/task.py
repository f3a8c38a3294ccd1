"""The Task of fine-tuning: a cell is one training of a cut network, on so many labels; rungs are steps on one
trajectory, under the schedule of the last rung."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch

from ddae.finetune import (
    VERSION,
    Cut,
    CutClassifier,
    Recipe,
    Schooling,
    Training,
    cut_network,
    fresh_head,
    frozen_features,
    reinitialise,
    saved_step,
    scores_of,
    trainable,
)
from ddae.heads import find_head
from ddae.probe import fit_probe, standard_error
from storage.ledger import content_key
from sweeps.probing.extractor import opened
from sweeps.probing.source import FeatureSource
from sweeps.search.task import REDUCTION, Axis, Checkpoint, Objective, Resources, Result, Value, pack

INITS = "finetune", "scratch", "frozen"
CHECKPOINT_SECONDS = 120
"""How much of a training a kill can lose."""
MIN_STEPS = 8
"""A schedule of fewer is not stopped early."""


@dataclass(frozen=True, order=True)
class Cell:
    init: str
    cut: str
    timestep: int
    num_labels: int
    learning_rate: float
    weight_decay: float
    head_start: str
    seed: int


@dataclass(frozen=True)
class FinetuneTask:
    source: FeatureSource
    pooling: int
    head: str
    recipe: Recipe
    noised: bool
    num_steps: int
    """Steps of the whole schedule; 0 where nothing is trained."""
    warmup_epochs: int
    inits: tuple[str, ...]
    cuts: tuple[str, ...]
    """Blocks after which the network is cut, in the order of the data."""
    timesteps: tuple[int, ...]
    num_labels: tuple[int, ...]
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    head_starts: tuple[str, ...]
    seeds: tuple[int, ...]
    last_rung_alone: bool = False
    """Whether trials are never stopped early."""
    name: str = "finetune"
    objectives: tuple[Objective, ...] = (Objective("val_accuracy"),)
    resource: str = "steps"

    @property
    def rungs(self) -> tuple[int, ...]:
        rungs = [self.num_steps]
        while rungs[0] // REDUCTION >= MIN_STEPS and len(rungs) < 3 and not self.last_rung_alone:
            rungs.insert(0, rungs[0] // REDUCTION)
        return tuple(rungs)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Without the choices that an init has not: a frozen network is not trained, and one from scratch has no probe
        to start from."""
        cells = []
        for init, cut, t, num, seed in product(self.inits, self.cuts, self.timesteps, self.num_labels, self.seeds):
            if init == "frozen":
                cells.append(Cell(init, cut, t, num, 0.0, 0.0, "probe", seed))
                continue
            starts = self.head_starts if init == "finetune" else ("fresh",)
            choices = product(self.learning_rates, self.weight_decays, starts)
            cells += [Cell(init, cut, t, num, rate, decay, start, seed) for rate, decay, start in choices]
        return tuple(cells)

    @property
    def axes(self) -> Mapping[str, Axis]:
        values = {name: {getattr(cell, name) for cell in self.cells} for name in ("learning_rate", "weight_decay")}
        starts = tuple(dict.fromkeys(cell.head_start for cell in self.cells))
        return {
            "init": Axis(self.inits, self.inits),
            "cut": Axis(self.cuts),
            "timestep": Axis(self.timesteps, numeric=True),
            "num_labels": Axis(self.num_labels, numeric=True),
            "learning_rate": Axis(tuple(sorted(values["learning_rate"])), numeric=True),
            "weight_decay": Axis(tuple(sorted(values["weight_decay"])), numeric=True),
            "head_start": Axis(starts, starts),
            "seed": Axis(self.seeds, numeric=True),
        }

    def resources(self, cell: Cell, rung: int) -> Resources:
        on_gpu = self.source.settings.device.startswith("cuda")
        return Resources(num_cpus=1, num_gpus=1 if on_gpu else 0)

    def key(self, cell: Cell, rung: int) -> str:
        return content_key(
            features=self.source.key.asdict(),
            cell=asdict(cell),
            read=(self.pooling, self.head, self.noised),
            recipe=asdict(self.recipe),
            steps=(rung, self.num_steps, self.warmup_epochs),
            versions=(VERSION, find_head(self.head)[0].version),
        )

    def reads(self, cell: Cell, rung: int) -> Cell:
        """Every training is a trial of its own."""
        return cell

    def needs(self, cell: Cell, rung: int) -> tuple:
        return ()

    def run(self, cells: Sequence[Cell], rung: int, checkpoints: Sequence[Checkpoint]) -> Iterator[Result]:
        for cell, checkpoint in zip(cells, checkpoints, strict=True):
            started = time.time()
            yield self.probe(cell, started) if cell.init == "frozen" else self.train(cell, rung, checkpoint, started)

    def probe(self, cell: Cell, started_seconds: float) -> Result:
        """The converged head on the frozen features: what the probe of the same cut and pooling comes to."""
        model, _ = self.model(cell)
        fitted = self.fit_head(cell, model)
        return self.result(cell, model, fitted.correct, fitted.setting, started_seconds)

    def train(self, cell: Cell, rung: int, checkpoint: Checkpoint, started_seconds: float) -> Result:
        """Go on from the checkpoint to the rung, and measure on val."""
        training = self.training(cell)
        state = checkpoint.load()
        if state is not None and saved_step(state) <= rung:
            training.load(state)
        saved = time.monotonic()
        for step in training.run(rung):
            if step == rung or time.monotonic() - saved > CHECKPOINT_SECONDS:
                checkpoint.save(training.state())
                saved = time.monotonic()
        correct = self.correct(cell, training.model, "val")
        setting = f"lr={cell.learning_rate:g} weight_decay={cell.weight_decay:g} {cell.head_start}"
        return self.result(cell, training.model, correct, setting, started_seconds)

    def result(
        self, cell: Cell, model: CutClassifier, correct: np.ndarray, setting: str, started_seconds: float
    ) -> Result:
        accuracy = float(correct.mean())
        metrics = {"val_accuracy": accuracy, "val_stderr": standard_error(accuracy, len(correct))}
        return Result(metrics, {"setting": setting}, started_seconds, time.time(), pack(correct))

    def correct(self, cell: Cell, model: CutClassifier, split: str) -> np.ndarray:
        """bool [N]: which images of a split the model classifies correctly."""
        dataset = opened(self.source).dataset
        scores = scores_of(model, dataset, dataset.splits[split], cell.seed)
        return (scores.argmax(1).numpy() == dataset.labels(split)).astype(bool)

    def restored(self, cell: Cell, checkpoint: Checkpoint) -> tuple[CutClassifier, Sequence[str]]:
        """The model as the checkpoint has it, and the names of the network's parameters that are kept."""
        if cell.init == "frozen":
            model, kept = self.model(cell)
            fitted = self.fit_head(cell, model)
            model.head = fitted.head.only(fitted.setting)
            return model, kept
        training, state = self.training(cell), checkpoint.load()
        if state is not None:
            training.load(state)
        prefix = "network."
        return training.model, [name.removeprefix(prefix) for name in training.trained if name.startswith(prefix)]

    def training(self, cell: Cell) -> Training:
        dataset = opened(self.source).dataset
        model, kept = self.model(cell)
        parameters = dict(model.named_parameters())
        trained = {name: parameters[name] for name in [*(f"network.{name}" for name in kept), *heads_of(parameters)]}
        schooling = Schooling(
            cell.init, cell.num_labels, cell.learning_rate, cell.weight_decay, cell.head_start, cell.seed
        )
        rows = self.labelled(cell)
        warmup = self.warmup_epochs if cell.init == "scratch" else 0
        return Training(model, trained, dataset, rows, self.recipe, schooling, self.num_steps, warmup)

    def model(self, cell: Cell) -> tuple[CutClassifier, list[str]]:
        """The cut network with its head before any training, and the names of the parameters that are kept of it."""
        dataset = opened(self.source).dataset
        cut = Cut(cell.cut, cell.timestep, self.pooling, self.head, self.noised)
        backbone, kept = cut_network(opened(self.source).backbone, cut)
        if cell.init == "scratch":
            reinitialise(backbone.network, cell.seed)
        block = next(block for block in backbone.blocks if block.name == cell.cut)
        shape = torch.empty(1, block.channels, self.pooling, self.pooling, device=backbone.settings.device)
        head = fresh_head(self.head, shape, dataset.num_classes, cell.seed)
        model = CutClassifier(backbone, cut, head)
        if cell.head_start == "probe" and cell.init == "finetune":
            fitted = self.fit_head(cell, model)
            model.head = trainable(fitted.head.only(fitted.setting), self.head).to(backbone.settings.device)
        return model, kept

    def fit_head(self, cell: Cell, model: CutClassifier):
        """The head, fitted to convergence on the model's features of the labelled images."""
        source = opened(self.source)
        rows = {"train": self.labelled(cell), "val": source.dataset.splits["val"]}
        labels = source.dataset.images.labels
        train, val = (
            (frozen_features(model, source.dataset, each, cell.seed), torch.from_numpy(labels[each]))
            for each in rows.values()
        )
        return fit_probe(self.head, train, val, source.dataset.num_classes, cell.seed)

    def labelled(self, cell: Cell) -> np.ndarray:
        """The training images whose labels are seen: another sample for each seed."""
        rows = opened(self.source).dataset.splits["train"]
        return rows[np.random.default_rng(cell.seed).permutation(len(rows))[: cell.num_labels]]

    def label(self, cell: Cell) -> str:
        if cell.init == "frozen":
            return f"frozen/{cell.cut}/{cell.timestep}/{cell.num_labels}/seed-{cell.seed}"
        rates = f"{cell.learning_rate:g}/{cell.weight_decay:g}/{cell.head_start}"
        return f"{cell.init}/{cell.cut}/{cell.timestep}/{cell.num_labels}/{rates}/seed-{cell.seed}"

    def params(self, cell: Cell) -> dict[str, Value]:
        return {**asdict(cell), "pooling": self.pooling, "head": self.head, "num_steps": self.num_steps}


def heads_of(parameters: Mapping[str, torch.nn.Parameter]) -> list[str]:
    return [name for name, each in parameters.items() if name.startswith("head.") and each.requires_grad]
