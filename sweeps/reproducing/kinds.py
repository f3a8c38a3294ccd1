"""What each kind of entry runs, by the machinery of the other commands: frozen features and a head as final_test.py, a
training as finetune.py, samples as sample.py, a classifier's own scores from its stored features."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ddae.backbones import Backbone
from ddae.datasets import Dataset
from ddae.finetune import MAX_NORM
from ddae.heads import Kept, check_recipe
from ddae.probe import standard_error
from ddae.units import counted, duration, rounded, size
from storage.checkpoints import StoredCheckpoint
from storage.ledger import content_key
from sweeps import sampling
from sweeps.cluster.session import address
from sweeps.finetune import Finetune
from sweeps.finetuning import sweep as finetuning
from sweeps.finetuning.task import Cell as TuningCell
from sweeps.finetuning.task import FinetuneTask
from sweeps.flags import ModelAndData
from sweeps.probing import plan
from sweeps.probing.cost import time_passes
from sweeps.probing.extractor import Extractor
from sweeps.probing.filling import Filling
from sweeps.probing.refit import refit
from sweeps.probing.source import Need
from sweeps.probing.space import Cell
from sweeps.probing.sweep import ProbeSweep, open_pool
from sweeps.probing.task import ProbeTask
from sweeps.reproduce import Reproduce
from sweeps.reproducing.entry import VIEWS, Entry, FineTuning, Generation, OwnScores, Probe
from sweeps.reproducing.files import INCEPTION
from sweeps.sample import Sample

VAL_FRACTION = 0.01
"""How much of the training images is val, which no choice needs here; one a class at least."""
IN_PROCESS = 4096
"""So many images are not worth the start of workers."""


class Measured(NamedTuple):
    """Accuracy in percent or FID, and its standard error, NaN where it is not known."""

    value: float
    stderr: float
    num_test: int
    num_train: int


class Measurement(Protocol):
    """An entry, ready to be measured."""

    @property
    def key(self) -> str:
        """Hash of all that decides the number."""

    @property
    def differs(self) -> list[str]:
        """What every entry of its kind does otherwise than papers do."""

    @property
    def feature(self) -> str:
        """What is read of the network."""

    def estimate(self) -> list[str]: ...

    def measure(self, folder: Path) -> Measured: ...


@dataclass(frozen=True)
class ProbeMeasurement:
    """A head on a frozen feature."""

    flags: ModelAndData
    task: ProbeTask
    cell: Cell
    backbone: Backbone
    dataset: Dataset
    num_epochs: int
    """0 where the head is not trained in epochs."""

    @property
    def key(self) -> str:
        return self.task.key(self.cell, self.task.num_train)

    @property
    def feature(self) -> str:
        cell, sigma = self.cell, self.task.space.sigmas[self.cell.timestep]
        at = f"timestep {cell.timestep} (sigma {rounded(sigma, 3)})" if sigma else "clean images"
        return f"{cell.block} at {at}, pooled to {cell.pooling}x{cell.pooling}, under {cell.head}"

    @property
    def needs(self) -> list[Need]:
        of_test = Need(self.cell.timestep, "test", len(self.dataset.labels("test")), (self.cell.block,))
        return [*self.task.needs(self.cell, self.task.num_train), of_test]

    @property
    def differs(self) -> list[str]:
        found = [held_out(self.dataset), "features are kept as float16"]
        if self.num_epochs > self.task.views:
            views = counted(self.task.views, "stored view of each image is", "stored views of each image are")
            found.append(
                f"{views} seen in turn, in {self.num_epochs} epochs of which the paper augments each anew "
                "(--fresh-augmentation stores a view for each)"
            )
        if self.num_epochs:
            found.append("an epoch leaves out a last, smaller batch")
        return found

    def estimate(self) -> list[str]:
        task, block = self.task, self.task.space.block(self.cell.block)
        passes = task.space.forward_passes(self.needs)
        images = sum(need.num_images for need in self.needs)
        stored = images * task.space.bytes_per_image(task.source.key.pooling)
        rows = self.dataset.splits["train"][: 32 if self.backbone.flops < 1e10 else 1]
        seconds, encoding_seconds = time_passes(task, self.backbone, self.dataset, rows)
        time = passes * seconds + images * encoding_seconds
        lines = [
            f"passes    {images:,} images through {block.flops_share:.0%} of the network: {passes:,.0f} full forward "
            f"passes of {rounded(self.backbone.flops / 1e9, 3)} GFLOP, about {duration(time)} on one "
            f"{task.source.settings.device}",
            f"features  {size(stored)} in {task.source.store}",
        ]
        if self.num_epochs:
            lines.append(
                f"views     {task.views} stored for {self.num_epochs} epochs; --fresh-augmentation stores "
                f"{self.num_epochs}, {self.num_epochs / task.views:.1f} times the passes and the room of training"
            )
        return lines

    def measure(self, folder: Path) -> Measured:
        is_held = self.task.check_memory(self.cell, self.task.num_train)  # refused before anything is extracted
        if address() or sum(need.num_images for need in self.needs) > IN_PROCESS:
            with open_pool(self.flags, self.task.source, folder) as pool:
                passes = self.task.space.forward_passes(self.needs)
                ProbeSweep(self.task, pool, passes, passes).fill(self.needs)
        order = "held" if is_held else f"streamed in {self.task.memory:,} bytes"  # by which rows are shuffled
        kept = Kept(StoredCheckpoint(self.task.source.store, content_key(fit=self.key)), f"{self.key} {order}")
        fitted = refit(self.task, self.cell, self.dataset, ("test",), kept)
        return measured(fitted.correct("test"), self.task.num_train)


@dataclass(frozen=True)
class ScoresMeasurement:
    """A classifier's own scores."""

    task: ProbeTask
    need: Need
    dataset: Dataset

    @property
    def key(self) -> str:
        return content_key(features=self.task.source.key.asdict(), scores=self.need.blocks, timestep=self.need.timestep)

    @property
    def feature(self) -> str:
        return f"{self.need.blocks[0]} at timestep {self.need.timestep}"

    @property
    def differs(self) -> list[str]:
        order = "class k of the network is taken for the k-th of the images' classes, in the order of their names"
        return ["scores are kept as float16", order]

    def estimate(self) -> list[str]:
        return [f"passes    {self.need.num_images:,} test images, once"]

    def measure(self, folder: Path) -> Measured:
        extractor = Extractor(self.task.source)
        extractor.dataset, extractor.images = self.dataset, None
        extractor.ensure(self.need)
        scores = extractor.read(self.need, self.need.blocks[0]).flatten(1)
        if scores.shape[1] != self.dataset.num_classes:
            raise ValueError(
                f"the network scores {scores.shape[1]} classes, and {self.dataset.name} has "
                f"{self.dataset.num_classes}; give the images that it was trained on"
            )
        return measured((scores.argmax(1) == extractor.labels(self.need)).numpy(), 0)


@dataclass(frozen=True)
class TuningMeasurement:
    """A training of a cut network."""

    setup: finetuning.Setup

    @property
    def task(self) -> FinetuneTask:
        return self.setup.tasks[0]

    @property
    def cell(self) -> TuningCell:
        [cell] = self.task.cells
        return cell

    @property
    def key(self) -> str:
        return self.task.key(self.cell, self.task.num_steps)

    @property
    def feature(self) -> str:
        return f"cut after {self.cell.cut}, told timestep {self.cell.timestep}, under {self.task.head}"

    @property
    def differs(self) -> list[str]:
        found = [held_out(self.setup.dataset), f"gradients are clipped to a norm of {MAX_NORM:g}"]
        if self.task.recipe.decay == "cosine":
            found.append("the cosine falls at every step")
        return found

    def estimate(self) -> list[str]:
        config = self.setup.config
        lines = finetuning.estimate(replace(self.setup, config=replace(config, num_trials=1, seeds=1))).splitlines()
        return [*lines, "views     fresh in every epoch, or ten stored latents"]

    def measure(self, folder: Path) -> Measured:
        task, cell, source = self.task, self.cell, self.task.source
        needs = task.needs(cell, task.num_steps)
        if address() or sum(need.num_images for need in needs) > IN_PROCESS:
            with open_pool(self.setup.config, source, folder) as pool:
                pool.run(Filling(source, pool).encode(needs)).result()
        checkpoint = StoredCheckpoint(source.store, self.key)
        [result] = task.run([cell], task.num_steps, [checkpoint])
        if str(result.params["setting"]).endswith("diverged"):
            raise ValueError(f"the training at learning_rate={cell.learning_rate:g} has diverged; try another --seed")
        model, _ = task.restored(cell, checkpoint)
        return measured(task.correct(cell, model, "test"), cell.num_labels)


@dataclass(frozen=True)
class SamplesMeasurement:
    """Samples and their FID."""

    setup: sampling.Setup
    published_samples: int

    @property
    def key(self) -> str:
        setup = self.setup
        number, [extractor] = setup.config.num_samples, setup.extractors
        return content_key(
            recipe=setup.recipe, num_samples=number, extractor=extractor.fingerprint, real=setup.images.fingerprint
        )

    @property
    def feature(self) -> str:
        return f"{self.setup.config.num_samples:,} samples by {self.setup.sampler}, {self.setup.num_steps} steps"

    @property
    def differs(self) -> list[str]:
        number = self.setup.config.num_samples
        fewer = f"{number:,} samples and not {self.published_samples:,}, of which FID depends"
        return ["noise is drawn by image, not by batch", *([fewer] if number != self.published_samples else [])]

    def estimate(self) -> list[str]:
        return [sampling.estimate(self.setup)]

    def measure(self, folder: Path) -> Measured:
        sampling.run(self.setup)
        [extractor] = self.setup.extractors
        found = json.loads((self.setup.folder / "measures.json").read_text())[extractor.name]
        said: dict[str, Any] = found["to_train"]
        return Measured(said["value"], float("nan"), found["num_images"], said["num_real"])


def measurement(config: Reproduce, entry: Entry, backbone: str, text_embedding: str) -> Measurement:
    """An entry with its network and images loaded. backbone, text_embedding: as the flags of these names.

    Raises ValueError for what cannot be run."""
    recipe = entry.recipe
    if isinstance(recipe, Generation):
        return of_samples(config, entry, recipe, backbone)
    flags: dict[str, Any] = {
        "backbone": backbone, "dataset": entry.dataset, "data_root": config.data_root, "data_seed": config.seed,
        "store": config.store, "out": config.out, "device": config.device, "precision": config.precision,
        "gpus_per_extractor": config.gpus_per_extractor, "image_size": entry.image_size, "num_steps": entry.num_steps,
        "text_embedding": text_embedding, "check_data": config.check_data, "dry_run": config.dry_run,
    }  # fmt: skip
    if isinstance(recipe, FineTuning):
        return of_tuning(config, recipe, flags)
    read = ModelAndData(**flags, blocks=(recipe.block,), timesteps=(recipe.timestep,))
    if isinstance(recipe, OwnScores):
        found = plan.set_up(read, exhaustive=True, val_fraction=VAL_FRACTION)
        [block] = found.task.space.block_names
        need = Need(recipe.timestep, "test", len(found.dataset.labels("test")), (block,))
        return ScoresMeasurement(found.task, need, found.dataset)
    return of_probe(config, recipe, read)


def of_probe(config: Reproduce, recipe: Probe, flags: ModelAndData) -> ProbeMeasurement:
    epochs = recipe.training.epochs if recipe.training else 0
    views = epochs if config.fresh_augmentation else min(epochs, config.views or VIEWS)
    task, backbone, dataset = plan.set_up(
        flags, (recipe.pooling,), (recipe.head,), exhaustive=True, seed=config.seed, views=max(1, views),
        memory=config.memory, gpus_per_fit=1.0, val_fraction=VAL_FRACTION, augment=recipe.augment,
        grid=recipe.pooling,
    )  # fmt: skip
    if recipe.training:
        check_recipe(recipe.head)
        task = replace(task, recipe=recipe.training.recipe)
    [cell] = task.cells
    return ProbeMeasurement(flags, task, cell, backbone, dataset, epochs)


def of_tuning(config: Reproduce, recipe: FineTuning, flags: dict[str, Any]) -> TuningMeasurement:
    epochs = (recipe.epochs,)
    tuning = Finetune(
        **flags, block=recipe.block, timestep=recipe.timestep, pooling=recipe.pooling, head=recipe.head,
        init=(recipe.init,), recipe=recipe.recipe, augment=(recipe.augment,),  # type: ignore[arg-type]
        learning_rates=(recipe.learning_rate,), head_start=("fresh",), epochs=epochs, scratch_epochs=epochs,
        num_trials=1, seeds=1, seed=config.seed,
    )  # fmt: skip
    return TuningMeasurement(finetuning.set_up(tuning, VAL_FRACTION))


def of_samples(config: Reproduce, entry: Entry, recipe: Generation, backbone: str) -> SamplesMeasurement:
    number = config.num_samples or recipe.num_samples
    wanted = Sample(
        backbone=backbone, dataset=entry.dataset, data_root=config.data_root, check_data=config.check_data,
        extractor=(f"inception:{config.models / INCEPTION[0]}",), against="train", image_size=entry.image_size,
        precision=config.precision, num_samples=number, sampler=recipe.sampler, steps=recipe.steps, seed=config.seed,
        force=number != recipe.num_samples, batch_size=config.batch_size, device=config.device,
        dry_run=config.dry_run, out=config.out / f"samples-{entry.name}-{config.seed}",
    )  # fmt: skip
    return SamplesMeasurement(sampling.set_up(wanted), recipe.num_samples)


def held_out(dataset: Dataset) -> str:
    num_val, num_train = len(dataset.splits["val"]), len(dataset.splits["train"])
    share = 100 * num_val / (num_train + num_val)
    return f"{num_val:,} training images ({share:.1f} %) are val, which nothing is chosen on, and are not trained on"


def measured(correct: np.ndarray, num_train: int) -> Measured:
    """correct: which test images are classified correctly, bool [N]."""
    accuracy = float(correct.mean())
    return Measured(100 * accuracy, 100 * standard_error(accuracy, len(correct)), len(correct), num_train)
