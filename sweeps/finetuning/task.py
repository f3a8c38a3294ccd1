"""The Task of fine-tuning: a cell is one training of a cut network, on so many labels; rungs are steps on one
trajectory, under the schedule of the last rung."""

import logging
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
    cut_network,
    fresh_head,
    frozen_features,
    reinitialise,
    trainable,
)
from ddae.heads import find_head
from ddae.probe import Fitted, balanced_accuracy, fit_probe, standard_error
from storage.ledger import content_key
from sweeps.cluster.loop import Diverged, run_loop
from sweeps.cluster.train import train
from sweeps.finetuning.training import NUM_LATENT_VIEWS, CellTraining, batches, correct_of
from sweeps.probing.extractor import opened
from sweeps.probing.source import FeatureSource, Need
from sweeps.search.task import REDUCTION, Axis, Checkpoint, Objective, Resources, Result, Value, pack, unpack

INITS = "finetune", "scratch", "frozen"
CHECKPOINT_SECONDS = 120
"""How much of a training a kill can lose."""
MIN_STEPS = 8
"""A schedule of fewer is not stopped early."""

log = logging.getLogger("sweeps")


@dataclass(frozen=True, order=True)
class Cell:
    init: str
    cut: str
    timestep: int
    num_labels: int
    learning_rate: float
    weight_decay: float
    head_start: str
    augment: str
    """A name in AUGMENTATIONS, or none."""
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
    augments: tuple[str, ...]
    seeds: tuple[int, ...]
    num_workers: int = 1
    """Processes that train one network together, each on a device of its own."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass, which saves memory."""
    baseline: str = ""
    """The network's name, where it is none of the model that is fine-tuned."""
    last_rung_alone: bool = False
    """Whether trials are never stopped early."""
    is_uneven: bool = False
    """Whether balanced accuracy is measured beside accuracy, because the classes are uneven."""
    name: str = "finetune"
    objectives: tuple[Objective, ...] = (Objective("val_accuracy"),)
    resource: str = "steps"

    @property
    def start(self) -> str:
        """What a person calls this start."""
        return self.baseline or ", ".join(self.inits)

    @property
    def ladder(self) -> tuple[int, ...]:
        """Steps after which val is looked at."""
        ladder = [self.num_steps]
        while ladder[0] // REDUCTION >= MIN_STEPS and len(ladder) < 3:
            ladder.insert(0, ladder[0] // REDUCTION)
        return tuple(ladder)

    @property
    def rungs(self) -> tuple[int, ...]:
        return self.ladder[-1:] if self.last_rung_alone else self.ladder

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Without the choices that an init has not: a frozen network is not trained, and one from scratch has no probe
        to start from."""
        cells = []
        for init, cut, t, num, seed in product(self.inits, self.cuts, self.timesteps, self.num_labels, self.seeds):
            if init == "frozen":
                cells.append(Cell(init, cut, t, num, 0.0, 0.0, "probe", "none", seed))
                continue
            starts = self.head_starts if init == "finetune" else ("fresh",)
            choices = product(self.learning_rates, self.weight_decays, starts, self.augments)
            cells += [Cell(init, cut, t, num, *chosen, seed) for chosen in choices]
        return tuple(cells)

    @property
    def axes(self) -> Mapping[str, Axis]:
        values = {name: {getattr(cell, name) for cell in self.cells} for name in ("learning_rate", "weight_decay")}
        starts, augments = (
            tuple(dict.fromkeys(getattr(cell, name) for cell in self.cells)) for name in ("head_start", "augment")
        )
        return {
            "init": Axis(self.inits, self.inits),
            "cut": Axis(self.cuts),
            "timestep": Axis(self.timesteps, numeric=True),
            "num_labels": Axis(self.num_labels, numeric=True),
            "learning_rate": Axis(tuple(sorted(values["learning_rate"])), numeric=True),
            "weight_decay": Axis(tuple(sorted(values["weight_decay"])), numeric=True),
            "head_start": Axis(starts, starts),
            "augment": Axis(augments, augments),
            "seed": Axis(self.seeds, numeric=True),
        }

    def resources(self, cell: Cell, rung: int) -> Resources:
        num_processes = 1 if cell.init == "frozen" else self.num_workers
        num_gpus = num_processes if self.source.settings.device.startswith("cuda") else 0
        return Resources(num_processes, num_gpus, in_processes_of_its_own=num_processes > 1)

    def key(self, cell: Cell, rung: int) -> str:
        return content_key(
            features=self.source.key.asdict(),
            cell=asdict(cell),
            read=(self.pooling, self.head, self.noised),
            recipe=(self.recipe.optimizer, self.recipe.momentum, self.recipe.decay, self.recipe.batch_size),
            steps=(rung, self.num_steps, self.warmup_epochs),
            num_workers=self.num_workers,
            versions=(VERSION, find_head(self.head)[0].version),
            **({"metrics": "balanced_accuracy"} if self.is_uneven else {}),
        )

    def result(self, correct: np.ndarray, setting: str, started_seconds: float) -> Result:
        """correct: which val images are classified correctly, bool [N]."""
        accuracy = float(correct.mean())
        metrics = {"val_accuracy": accuracy, "val_stderr": standard_error(accuracy, len(correct))}
        if self.is_uneven:
            balanced, stderr = balanced_accuracy(correct, opened(self.source).dataset.labels("val"))
            metrics |= {"val_balanced_accuracy": balanced, "val_balanced_stderr": stderr}
        return Result(metrics, {"setting": setting}, started_seconds, time.time(), pack(correct))

    def reads(self, cell: Cell, rung: int) -> Cell:
        """Every training is a trial of its own."""
        return cell

    def needs(self, cell: Cell, rung: int) -> list[Need]:
        """The latents that its training sees, where the network has an encoder."""
        if not self.source.encoder:
            return []
        splits = opened(self.source).dataset.splits
        sizes = len(splits["train"]), len(splits["val"])
        return latents_seen(cell.seed, cell.num_labels, *sizes, cell.augment != "none")

    def run(self, cells: Sequence[Cell], rung: int, checkpoints: Sequence[Checkpoint]) -> Iterator[Result]:
        for cell, checkpoint in zip(cells, checkpoints, strict=True):
            started = time.time()
            if cell.init == "frozen":
                _, fitted, _ = self.probe(cell)
                yield self.result(fitted.correct, fitted.setting, started)
            else:
                yield self.train(cell, rung, checkpoint, started)

    def train(self, cell: Cell, rung: int, checkpoint: Checkpoint, started_seconds: float) -> Result:
        """Go on from the checkpoint to the rung. A training that diverges has classified nothing correctly."""
        setting = f"lr={cell.learning_rate:g} weight_decay={cell.weight_decay:g} {cell.head_start} {cell.augment}"
        try:
            training = self.trained(cell, checkpoint, rung)
        except Diverged as error:
            log.warning(f"{self.label(cell)}: {error}")
            num_val = len(opened(self.source).dataset.splits["val"])
            return self.result(np.zeros(num_val, dtype=bool), f"{setting} diverged", started_seconds)
        return self.result(unpack(training.right[str(rung)]), setting, started_seconds)

    def trained(self, cell: Cell, checkpoint: Checkpoint, rung: int) -> CellTraining:
        """The training after so many steps, or after more where its checkpoint has them; in this process."""
        training, device = CellTraining(self, cell), self.source.settings.device
        if self.num_workers > 1:
            train(training, checkpoint, device, self.num_workers, 1, rung, self.num_steps, CHECKPOINT_SECONDS)
        else:
            run_loop(training, checkpoint, torch.device(device), rung, self.num_steps, CHECKPOINT_SECONDS)
        return training

    def probe(self, cell: Cell) -> tuple[CutClassifier, Fitted, list[str]]:
        """The frozen network under an untrained head, the head that is fitted to its features, and the names of the
        network's parameters that are kept."""
        model, kept = self.bare_model(cell, self.source)
        return model, self.fit_head(cell, model, self.source), kept

    def restored(self, cell: Cell, checkpoint: Checkpoint) -> tuple[CutClassifier, list[str]]:
        """The model at the end of its training, and the names of the network's parameters that are kept."""
        if cell.init == "frozen":
            model, fitted, kept = self.probe(cell)
            model.head = fitted.head.only(fitted.setting)
            return model, kept
        training, prefix = self.trained(cell, checkpoint, self.num_steps), "network."
        return training.network, [name.removeprefix(prefix) for name in training.trained if name.startswith(prefix)]

    def model(self, cell: Cell, source: FeatureSource) -> tuple[CutClassifier, list[str]]:
        """The cut network with its head before any training, and the names of the parameters that are kept of it."""
        model, kept = self.bare_model(cell, source)
        if cell.head_start == "probe":
            fitted = self.fit_head(cell, model, source)
            model.head = trainable(fitted.head.only(fitted.setting), self.head).to(source.settings.device)
        if self.gradient_checkpointing:
            model.network.enable_gradient_checkpointing()  # type: ignore[operator]
        return model, kept

    def bare_model(self, cell: Cell, source: FeatureSource) -> tuple[CutClassifier, list[str]]:
        """Like model(), with an untrained head. source: this task's, on any device."""
        opening = opened(source)
        cut = Cut(cell.cut, cell.timestep, self.pooling, self.head, self.noised)
        backbone, kept = cut_network(opening.backbone, cut)
        if cell.init == "scratch":
            reinitialise(backbone.network, cell.seed)
        block = next(block for block in backbone.blocks if block.name == cell.cut)
        shape = torch.empty(1, block.channels, self.pooling, self.pooling, device=backbone.settings.device)
        return CutClassifier(backbone, cut, fresh_head(self.head, shape, opening.dataset.num_classes, cell.seed)), kept

    def fit_head(self, cell: Cell, model: CutClassifier, source: FeatureSource) -> Fitted:
        """The head, fitted to convergence on the model's features of the labelled images."""
        dataset = opened(source).dataset
        places = {"train": self.labelled(cell), "val": np.arange(len(dataset.splits["val"]))}
        train, val = (
            (
                frozen_features(model, batches(source, model, split, chosen, cell.seed)),
                torch.from_numpy(dataset.labels(split)[chosen]),
            )
            for split, chosen in places.items()
        )
        return fit_probe(self.head, train, val, dataset.num_classes, cell.seed)

    def correct(self, cell: Cell, model: CutClassifier, split: str) -> np.ndarray:
        """bool [N]: which images of a split the model classifies correctly."""
        return correct_of(self.source, model, split, cell.seed)

    def labelled(self, cell: Cell) -> np.ndarray:
        """Where in the train split the images stand whose labels are seen; another part of it for each seed."""
        num_train = len(opened(self.source).dataset.splits["train"])
        return np.arange(cell.num_labels) + first_labelled(cell.seed, cell.num_labels, num_train)

    def batch_size(self, num_labels: int) -> int:
        """Images of one step."""
        return min(self.recipe.batch_size, num_labels)

    def label(self, cell: Cell) -> str:
        if cell.init == "frozen":
            return f"frozen/{cell.cut}/{cell.timestep}/{cell.num_labels}/seed-{cell.seed}"
        start = self.baseline or cell.init
        rates = f"{cell.learning_rate:g}/{cell.weight_decay:g}/{cell.head_start}/{cell.augment}"
        return f"{start}/{cell.cut}/{cell.timestep}/{cell.num_labels}/{rates}/seed-{cell.seed}"

    def params(self, cell: Cell) -> dict[str, Value]:
        return {
            **asdict(cell),
            "start": self.baseline or cell.init,
            "pooling": self.pooling,
            "head": self.head,
            "num_steps": self.num_steps,
        }


def latents_seen(seed: int, num_labels: int, num_train: int, num_val: int, is_augmented: bool) -> list[Need]:
    """Val as it is, and the train split up to the last labelled image of the seed, as it is and, where it is augmented,
    in all views."""
    last = first_labelled(seed, num_labels, num_train) + num_labels
    views = range(1 + NUM_LATENT_VIEWS * is_augmented)
    return [Need(0, "val", num_val, ()), *(Need(0, "train", last, (), view=view) for view in views)]


def first_labelled(seed: int, num_labels: int, num_train: int) -> int:
    """Where in the train split the labelled images of a seed begin."""
    return seed * num_labels % (num_train - num_labels + 1)
