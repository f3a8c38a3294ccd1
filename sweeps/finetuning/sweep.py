"""A fine-tuning sweep from its flags to its findings."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

from ddae.backbones import Backbone
from ddae.datasets import Dataset, is_uneven
from ddae.finetune import RECIPES, Recipe
from ddae.heads import expand, find_head
from ddae.noise import Clean
from ddae.views import USUAL
from storage.ledger import content_key
from storage.tracking import Tracker
from sweeps.cluster.pool import Pool
from sweeps.cluster.train import check_shares
from sweeps.cluster.tune import Run
from sweeps.driver import no_needs, open_run, run_searches
from sweeps.findings.answer import choose
from sweeps.findings.folder import named, newest_sweep, read_results
from sweeps.findings.logged import finished_report, incomplete
from sweeps.finetune import Finetune
from sweeps.finetuning.cost import estimate, kept_by_cuts, latents_needed
from sweeps.finetuning.findings import Findings, outcome_of
from sweeps.finetuning.publish import publish, report
from sweeps.finetuning.task import FinetuneTask
from sweeps.flags import SEEDS, as_flags, check_no_offload, check_numbers
from sweeps.probing.extractor import num_shards
from sweeps.probing.filling import Filling
from sweeps.probing.refit import answer_cell, with_flags_of
from sweeps.probing.source import (
    VAL_FRACTION,
    FeatureSource,
    choose_blocks,
    load_model,
    open_source,
    with_whole_paths,
)
from sweeps.progress import Progress
from sweeps.search.halving import HalvingSearch
from sweeps.search.task import Trial

log = logging.getLogger("sweeps")

__all__ = ["estimate", "finished_report", "incomplete", "open_sweep", "report", "set_up"]

SCRATCH_EPOCHS, SCRATCH_WARMUP_EPOCHS = 200, 5
"""DDAE's table 8."""
MIN_STEPS = 500
"""A training whose epochs are not given has at least so many, however few its images; the paper's have 11,700."""
COLUMNS = (
    "init", "num_labels", "learning_rate", "weight_decay", "head_start", "augment", "cut", "timestep", "seed", "steps",
)  # fmt: skip
"""Params of a trial that MLflow's page of trials shows."""


@dataclass(frozen=True)
class Setup:
    config: Finetune
    """With what a sweep has said filled in."""
    tasks: tuple[FinetuneTask, ...]
    """One for each start, cut, timestep and number of labels."""
    backbone: Backbone
    dataset: Dataset

    @property
    def folder(self) -> Path:
        """out/finetune-<hash of all that decides the trials, but for how many there are>."""
        trials = [task.key(cell, rung) for task in self.tasks for cell in task.cells for rung in task.rungs]
        return self.config.out / f"finetune-{content_key(trials=trials, seeds=self.config.seeds)[:8]}"


def set_up(config: Finetune, val_fraction: float = VAL_FRACTION) -> Setup:
    """Load the network and the dataset, and check every name and number against them. Raises ValueError for what cannot
    be trained. val_fraction: of the training images."""
    many = 1, 10**6
    check_numbers(config, num_trials=many, seeds=(1, 1000), seed=SEEDS, pooling=(1, 64), num_workers=many)
    check_numbers(config, batch_size=(0, 10**6), baseline_size=(0, 4096))
    config = with_sweep(config)
    check_no_offload(config)
    for name in ("init", "head_start", "augment"):
        if not getattr(config, name):
            raise ValueError(f"--{name.replace('_', '-')} is empty; give at least one, or leave the flag out")
    backbone = load_model(config)
    source, dataset = open_source(config, backbone, 4, val_fraction)
    cuts = check_cuts(config, backbone)
    if config.gradient_checkpointing and not hasattr(backbone.network, "enable_gradient_checkpointing"):
        raise ValueError(f"--gradient-checkpointing: {type(backbone.network).__name__} has none; leave the flag out")
    recipe = RECIPES[config.recipe]
    tasks = []
    for init in dict.fromkeys(config.init):
        default, given = (SCRATCH_EPOCHS, config.scratch_epochs) if init == "scratch" else (0, config.epochs)
        for cut, timestep in product(cuts, config.tell or (config.timestep,)):
            task = make_task(config, source, init, recipe, cut, timestep)
            tasks += for_counts(config, dataset, task, given, default)
    for name in dict.fromkeys(config.baseline):
        alone = replace(config, backbone=name, image_size=config.baseline_size, weights="", text_embedding="")
        alone = replace(alone, learning_rates=(), weight_decays=())
        network = load_model(alone)
        if not isinstance(network.schedule, Clean):
            raise ValueError(f"baseline={name!r} is a diffusion model; give a classifier, such as wrn:28-10")
        theirs, images = open_source(alone, network, 4, val_fraction)
        task = make_task(alone, theirs, "scratch", RECIPES["classifier"], network.blocks[-1].name, 0)
        whole = replace(task, baseline=name, pooling=1, head="linear", noised=False)
        tasks += for_counts(config, images, whole, config.scratch_epochs, SCRATCH_EPOCHS)
    return Setup(config, tuple(tasks), backbone, dataset)


def make_task(
    config: Finetune, source: FeatureSource, init: str, recipe: Recipe, cut: str, timestep: int
) -> FinetuneTask:
    """A task of no labels and no steps, which for_counts() sets."""
    recipe = replace(recipe, batch_size=config.batch_size or recipe.batch_size)
    rates = tuple(sorted(set(config.learning_rates or recipe.learning_rates)))
    decays = tuple(sorted(set(config.weight_decays or recipe.weight_decays)))
    if min(rates) <= 0 or min(decays) < 0:
        raise ValueError(f"learning_rates={list(rates)} must be above 0, and weight_decays={list(decays)} 0 or more")
    for name in config.augment if source.encoder else ():
        if name not in (USUAL, "none"):
            raise ValueError(
                f"augment={name!r} is not for latents, which are stored flipped and cropped; give flip+crop or none"
            )
    return FinetuneTask(
        source, config.pooling, config.head, recipe, config.noised or recipe.noised, 0,
        SCRATCH_WARMUP_EPOCHS if init == "scratch" else 0, (init,), (cut,), (timestep,), (), rates,
        decays, tuple(dict.fromkeys(config.head_start)), tuple(dict.fromkeys(config.augment)), (config.seed,),
        num_workers=config.num_workers, gradient_checkpointing=config.gradient_checkpointing,
    )  # fmt: skip


def for_counts(
    config: Finetune, dataset: Dataset, task: FinetuneTask, given: tuple[int, ...], default: int
) -> list[FinetuneTask]:
    """The task on each number of labelled images, growing. given: epochs as the flags have them. default: epochs where
    they have none; 0 is the recipe's."""
    num_train, num_classes = len(dataset.splits["train"]), dataset.num_classes
    counts = config.num_labels or (num_train,)
    if len(given) not in (0, 1, len(counts)) or min(given, default=1) < 1:
        raise ValueError(
            f"epochs={list(given)} must be 1 or more, one number or as many as there are in --num-labels, {len(counts)}"
        )
    tasks = {}
    for index, count in enumerate(counts):
        if not num_classes <= count <= num_train:
            raise ValueError(
                f"num_labels={count} must be {num_classes} or more, one a class, and {num_train:,} at most"
            )
        steps_per_epoch = max(1, count // task.batch_size(count))
        num_steps = max(MIN_STEPS, (default or task.recipe.num_epochs) * steps_per_epoch)
        if given:
            num_steps = given[index % len(given)] * steps_per_epoch
        trained = task.inits != ("frozen",)
        if trained:
            check_shares(task.batch_size(count), config.num_workers)
        tasks[count] = replace(
            task,
            num_labels=(count,),
            num_steps=num_steps if trained else 0,
            is_uneven=is_uneven(dataset.images.labels),
        )
    return [tasks[count] for count in sorted(tasks)]


def with_sweep(config: Finetune) -> Finetune:
    """The flags, with model, data and cell of a finished layer_noise.py sweep where no block is given."""
    if config.block:
        if config.sweep:
            raise ValueError(
                f"--sweep says which block is best, and --block {config.block} is another; give one of both"
            )
        return config
    folder = named(config.sweep) if config.sweep else newest_sweep(config.out, "layer-noise")
    task = read_results(folder)["task"]
    if task != "layer-noise":
        raise ValueError(f"--sweep {folder} is a sweep of {task}; give one of layer_noise.py")
    cell = answer_cell(folder)
    instead = "give --block, --timestep, --pooling and --head instead of the sweep"
    config, theirs = with_flags_of(folder, config, instead, take_store=config.sweep is not None)
    if theirs.metric != "accuracy":
        log.warning(
            f"{folder} has chosen its cell by {theirs.metric.replace('_', ' ')}; the training is chosen by accuracy"
        )
    return replace(config, sweep=folder, **asdict(cell))


def check_cuts(config: Finetune, backbone: Backbone) -> tuple[str, ...]:
    """The blocks after which the network is cut. Raises ValueError where nothing would be cut off, or the head or the
    pooling does not fit."""
    blocks = choose_blocks(backbone, config.cut or [config.block])
    [head] = expand([config.head])[:1]
    least = find_head(head)[0].min_grid
    if config.pooling < least:
        raise ValueError(f"head={config.head!r} wants a pooling of {least} or more, and pooling={config.pooling}")
    for block in blocks:
        if block.name == backbone.blocks[-1].name and not isinstance(backbone.schedule, Clean):
            others = ", ".join(each.name for each in backbone.blocks[:-1])
            raise ValueError(f"block={block.name!r} is the last, and nothing is left to cut off; allowed: {others}")
        if config.pooling > block.size:
            raise ValueError(
                f"pooling={config.pooling} does not fit block={block.name!r}, whose map is {block.size} x {block.size}"
            )
    for timestep in config.tell or (config.timestep,):
        timesteps = backbone.schedule.timesteps
        if timestep not in timesteps:
            raise ValueError(
                f"timestep={timestep} is outside this model's schedule; allowed: {timesteps[0]} to {timesteps[-1]}"
            )
    return tuple(block.name for block in blocks)


class FinetuneSweep:
    def __init__(self, setup: Setup, tracker: Tracker, started_seconds: float):
        self.setup, self.tracker, self.started_seconds = setup, tracker, started_seconds
        self.progress = Progress()

    def encode(self) -> None:
        """Fill the store with the latents that the trainings see, on all devices, before trials hold them."""
        for source, needs in latents_needed(self.setup).items():
            self.progress.stage("encode", sum(map(num_shards, needs)))
            with self.progress, Pool(source.settings.device, self.setup.config.gpus_per_extractor) as pool:
                pool.run(Filling(source, pool, on_step=self.progress.step).encode(needs)).result()

    def search(self) -> list[tuple[Trial, ...]]:
        """Every start, cut, timestep and number of labels has a search of its own; they run side by side."""
        self.encode()
        config = self.setup.config
        return self._run([HalvingSearch(task, config.num_trials, seed=config.seed) for task in self.setup.tasks])

    def repeat(self, searched: Sequence[tuple[Trial, ...]]) -> list[tuple[Trial, ...]]:
        """The best cell of each search, with all seeds."""
        config, searches = self.setup.config, []
        for task, trials in zip(self.setup.tasks, searched, strict=True):
            winner = choose(task, trials).best
            if str(winner.last.params["setting"]).endswith("diverged"):
                raise ValueError(
                    f"{task.start} on {task.num_labels[0]:,} labels diverged at every one of learning_rates="
                    f"{list(task.learning_rates)}; give lower ones"
                )
            best = winner.cell
            again = replace(
                task,
                cuts=(best.cut,),
                timesteps=(best.timestep,),
                learning_rates=(best.learning_rate,),
                weight_decays=(best.weight_decay,),
                head_starts=(best.head_start,),
                augments=(best.augment,),
                seeds=tuple(range(config.seed, config.seed + config.seeds)),
                last_rung_alone=True,
            )
            searches.append(HalvingSearch(again, len(again.cells), "grid"))
        return self._run(searches)

    def _run(self, searches: Sequence[HalvingSearch]) -> list[tuple[Trial, ...]]:
        runs = [Run(search, search.task.source.store, no_needs) for search in searches]  # type: ignore[attr-defined]
        return [tuple(trials) for trials in run_searches(runs, self.tracker, self.progress, [])]

    def conclude(self, searched: Sequence[tuple[Trial, ...]], repeated: Sequence[tuple[Trial, ...]]) -> Findings:
        setup = self.setup
        found = Findings(
            searches=tuple(zip(setup.tasks, searched, strict=True)),
            outcomes=tuple(map(outcome_of, setup.tasks, searched, repeated)),
            kept=kept_by_cuts(setup),
            folder=setup.folder,
            tracked=self.tracker.where,
            wall_seconds=time.time() - self.started_seconds,
            notes=setup.dataset.notes,
        )
        by_task = zip(setup.tasks, searched, repeated, strict=True)
        trials = [(task, trial) for task, first, again in by_task for trial in (*first, *again)]
        publish(found, setup.config, self.tracker, trials)
        return found


@contextmanager
def open_sweep(setup: Setup, started_seconds: float) -> Iterator[FinetuneSweep]:
    """The sweep on a running cluster, alone in its folder, open in MLflow, until the block ends."""
    task = setup.tasks[0]
    flags = as_flags(with_whole_paths(setup.config))
    more = {"backbone_sha256": task.source.key.backbone}
    with open_run(setup.folder, task.source.name, task.source.store, task, COLUMNS, flags, more) as tracker:
        yield FinetuneSweep(setup, tracker, started_seconds)
