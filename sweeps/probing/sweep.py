"""A probing sweep from its flags to its findings."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from ddae.backbones import Backbone
from ddae.datasets import Dataset
from ddae.memory import machine_bytes
from ddae.units import parse_size, size
from storage.feature_store import FeatureStore
from storage.ledger import content_key
from storage.tracking import Tracker
from sweeps.cli import check_writable
from sweeps.cluster.pool import FOR_FITS, Pool
from sweeps.cluster.session import address, check_cluster, one_line, ray_session
from sweeps.cluster.tune import Run
from sweeps.driver import open_run, run_searches
from sweeps.findings.answer import Answer, choose
from sweeps.findings.logged import finished_report, incomplete
from sweeps.flags import ModelAndData, as_flags, check_numbers
from sweeps.layer_noise import LayerNoise
from sweeps.probing import cost, examples
from sweeps.probing.extractor import Extracted
from sweeps.probing.filling import Filling
from sweeps.probing.findings import Findings, warm_start
from sweeps.probing.publish import publish
from sweeps.probing.screening import (
    NUM_LABEL_FREE,
    SEARCH_VAL,
    LabelFree,
    Screening,
    ScreeningRules,
    best_timesteps,
    bound_search,
    choose_rungs,
    least_searched,
    quarters,
)
from sweeps.probing.sections import draw
from sweeps.probing.source import FeatureSource, Need, load_model, open_source, with_whole_paths
from sweeps.probing.space import Cell, check_choices, make_space, stored_pooling
from sweeps.probing.task import ProbeTask
from sweeps.probing.text import report
from sweeps.progress import Progress
from sweeps.search.halving import HalvingSearch, check_search, plan_round_size
from sweeps.search.samplers import find_sampler
from sweeps.search.task import Fit, Trial

__all__ = [
    "estimate",
    "finished_report",
    "incomplete",
    "list_blocks",
    "open_sweep",
    "report",
    "set_up_search",
    "sweep_folder",
]

COLUMNS = "block", "timestep", "sigma", "pooling", "head", "num_images"
"""Params of a trial that MLflow's page of trials shows, in charts and in the table."""


class Setup(NamedTuple):
    task: ProbeTask
    backbone: Backbone
    dataset: Dataset


def set_up(
    config: ModelAndData,
    poolings: tuple[int, ...] = (1,),
    heads: tuple[str, ...] | None = None,
    exhaustive: bool = False,
    seed: int = 0,
    views: int = 1,
    metric: str = "accuracy",
    memory: str = "",
    gpus_per_fit: float = 0,
    search_images: int | Literal["auto", "all"] = "all",
) -> Setup:
    """Load the network and the dataset that the flags name, and check every name and number against them.

    heads: None where none is to be fitted. exhaustive: whether all cells are fitted on all images at once.
    search_images: how many training images the search has at most. Raises ValueError for what cannot be searched.
    """
    poolings, heads = check_choices(poolings, heads)
    backbone = load_model(config)
    space = make_space(backbone, config, poolings, heads)
    source, dataset = open_source(config, backbone, stored_pooling(poolings))
    labels = {split: dataset.labels(split) for split in ("train", "val")}
    task = ProbeTask(
        source,
        space,
        space.sites,
        labels,
        dataset.num_classes,
        (len(labels["train"]),),
        seed,
        views,
        dataset.notes,
        dataset.twins,
        metric,
        parse_memory(memory),
        gpus_per_fit if source.fits_on != "cpu" else 0,
    )
    return Setup(task if exhaustive else bounded(task, search_images), backbone, dataset)


def bounded(task: ProbeTask, search_images: int | Literal["auto", "all"]) -> ProbeTask:
    """The task of a search that has at most so many training images. Where these are not all, it stops no trial on
    fewer than it would choose by itself: heads on fewer mislead (docs/log.md)."""
    bound = bound_search(search_images, task.num_train, task.num_classes)
    if bound == task.num_train:
        return replace(task, rungs=choose_rungs(bound, task.num_classes)[-2:])
    return replace(task, rungs=quarters(bound, least_searched(task.num_classes))[-2:], search_val=SEARCH_VAL)


def set_up_search(config: LayerNoise) -> Setup:
    rules_of(config, (1,))  # wrong rules are found before anything is loaded
    check_search(config.search, config.num_trials, config.round_size)
    exhaustive = config.search == "grid"
    check_numbers(config, gpus_per_fit=(0, FOR_FITS))
    parse_memory(config.memory)
    if exhaustive and isinstance(config.search_images, int):
        raise ValueError(
            f"search_images={config.search_images} bounds a search, and the grid fits every cell on all images; leave "
            "--search-images out"
        )
    found = set_up(
        config,
        config.poolings,
        config.heads,
        exhaustive,
        config.seed,
        config.views,
        config.metric,
        config.memory,
        config.gpus_per_fit,
        config.search_images,
    )
    if (memory := found.task.memory_bytes) and not address() and memory > machine_bytes():
        raise ValueError(f"memory={config.memory!r} is more than the {size(machine_bytes())} of this machine; lower it")
    if config.memory:
        for cell in found.task.space.cells_at({found.task.space.timesteps[0]: found.task.space.block_names}):
            check_fit(found.task, cell)
    return found


def check_fit(task: ProbeTask, cell: Cell) -> None:
    """Raises ValueError where a fit of such cells on all images has too little memory."""
    try:
        task.check_memory([cell], task.num_train)
    except ValueError as error:
        raise ValueError(f"{cell.head} at {cell.block} {cell.pooling}x{cell.pooling}: {error}") from error


def parse_memory(text: str) -> int:
    """--memory in bytes; 0 where it is not given."""
    try:
        return parse_size(text) if text else 0
    except ValueError as error:
        raise ValueError(f"memory={error}") from error


def rules_of(config: LayerNoise, rungs: tuple[int, ...]) -> ScreeningRules:
    """How a search screens. rungs: all numbers of images from which rounds and rungs are taken."""
    exhaustive = config.search == "grid"
    rounds = rungs[:1] if exhaustive or len(rungs) == 1 else rungs[:-1]
    rounds = rounds[1:] or rounds if config.start == "label-free" else rounds
    return ScreeningRules(rounds, config.keep, config.finalists, config.start, exhaustive)


def rules_for(config: LayerNoise, task: ProbeTask) -> ScreeningRules:
    """A search that is bounded screens on all of its images, one that is not leaves the last rung to the trials."""
    rungs = choose_rungs(task.rungs[-1], task.num_classes)
    return rules_of(config, (*rungs, task.num_train) if task.is_bounded else rungs)


def round_size(config: LayerNoise, task: ProbeTask) -> int:
    """How many cells are proposed at once."""
    planned = plan_round_size(config.search, config.num_trials, len(task.space.cells))
    return planned if config.round_size is None else config.round_size


def sweep_folder(config: LayerNoise, task: ProbeTask) -> Path:
    """out/layer-noise-<hash of all that decides the sweep's trials, but for how many there are>."""
    space, rules = task.space, rules_for(config, task)
    key = content_key(
        blocks=space.block_names,
        timesteps=space.timesteps,
        poolings=space.poolings,
        heads=space.heads,
        trials=[task.key(cell, rung) for cell in space.cells[:1] for rung in task.rungs],
        search=(config.search, round_size(config, task), config.seed),
        screening=(rules.rounds, rules.keep, rules.finalists, rules.start),
    )
    return config.out / f"{task.name}-{key[:8]}"


def list_blocks(config: ModelAndData, every_module: bool = False) -> str:
    """What the model holds: its blocks, or also every other module that returns a map of the image."""
    backbone = load_model(config)
    if every_module:
        listed = {block.module for block in backbone.blocks}
        backbone.add_modules(path for path, _ in backbone.network.named_modules() if path not in listed)
    return cost.block_table(backbone)


def estimate(config: LayerNoise, setup: Setup) -> str:
    """What the sweep will cost."""
    rules = rules_for(config, setup.task)
    total, of_search = (cost.least_and_most(setup.task, rules, final) for final in (True, False))
    costs = cost.estimate(*setup, *total, of_search=of_search)
    num_trials = min(config.num_trials, len(setup.task.space.cells))
    if find_sampler(config.search).rounds:
        costs += f"\ntrials          {num_trials:,}, in rounds of {round_size(config, setup.task):,}"
    return costs


class ProbeSweep:
    """What a sweep does with a task on a pool of workers.

    least_passes: full forward passes that it takes at least.
    """

    def __init__(self, task: ProbeTask, pool: Pool, least_passes: float):
        self.task, self.pool = task, pool
        self.progress = Progress(least_passes, task.grid_passes)
        self.filling = Filling(task.source, pool, self._extracted, self.progress.step)
        self.new_passes = 0.0
        """Full forward passes that were run, not found in the store."""

    def fill(self, needs: list[Need]) -> None:
        """Wait until the needs stand in the store."""
        self._begin("extract", needs, 0)
        with self.progress:
            self.pool.run(self.filling.fill(needs)).result()

    def label_free(self, num_images: int = NUM_LABEL_FREE, num_labels: int = 0) -> LabelFree:
        """Every (block, timestep) ranked without labels, or with so many, of the first of the images."""
        first, second = (cost.label_free_needs(self.task, draw, num_images) for draw in (0, 1))
        self._begin("label-free", [*first, *second], len(second))
        with self.progress:
            scores = self.filling.score(first, second, second[1:] + second[-1:], num_labels)
            return LabelFree.of(self.task.space, self.pool.run(scores).result())

    def screen(self, rules: ScreeningRules, label_free: LabelFree | None = None) -> Screening:
        """Closed-form ridge at every site, on growing numbers of images, until few timesteps are left.

        label_free: whose ranking makes the first cut, if any.
        """
        space = self.task.space
        sites = best_timesteps(space, rules, label_free.ranking) if label_free else space.sites
        screening = Screening(rules, space, (), sites)
        poolings = {block: self.task.screening_poolings(block) for block in space.block_names}
        for num_images in rules.rounds:
            needs = [Need(t, "train", num_images, blocks) for t, blocks in screening.sites.items()]
            self._begin(f"screen on {num_images:,} images", needs, sum(len(need.blocks) for need in needs))
            with self.progress:
                answers = self.pool.run(self.filling.screen(needs, poolings)).result()
                screening = screening.after({need: self.task.counted(right) for need, right in answers.items()})
        return screening

    def _begin(self, title: str, needs: list[Need], num_steps: int) -> None:
        self.progress.stage(title, num_steps, sum(need.num_images for need in needs))

    def _extracted(self, extracted: Extracted) -> None:
        self.new_passes += extracted.passes
        self.progress.extracted(extracted.num_images, extracted.passes)


class Search(ProbeSweep):
    """A sweep that searches: it has flags, a folder, and a run in MLflow."""

    def __init__(self, config: LayerNoise, task: ProbeTask, pool: Pool, tracker: Tracker, started_seconds: float):
        self.config, self.tracker, self.started_seconds = config, tracker, started_seconds
        self.rules = rules_for(config, task)
        self.failed: list[str] = []
        """What could not be made for the report, and why."""
        super().__init__(task, pool, cost.least_and_most(task, self.rules)[0])

    def search(self, screening: Screening) -> tuple[Trial, ...]:
        """Try cells at the sites that screening has left."""
        config, task = self.config, replace(self.task, sites=screening.sites)
        size = round_size(config, self.task)
        rules, first = (config.num_trials, config.search, config.seed, size), warm_start(task, screening)
        return self._run(HalvingSearch(task, *rules, first=first), "search")

    def answer(self, screening: Screening, trials: tuple[Trial, ...]) -> Answer:
        """Choose among the trials. Where the search was bounded, fit the answer on all images."""
        task = replace(self.task, sites=screening.sites)
        answer = choose(task, trials, task.space.cost, task.weights, self.config.prefer)
        if not task.is_bounded:
            return answer
        halving = HalvingSearch(task.on_all_images(answer.cell), 1, "grid", cells=[answer.cell])
        [final] = self._run(halving, "the answer on all images")
        return replace(answer, final=final)

    def conclude(
        self, screening: Screening, label_free: LabelFree, trials: tuple[Trial, ...], answer: Answer
    ) -> Findings:
        """Take a closer look at the answer, and write and log all that was found."""
        task, folder = replace(self.task, sites=screening.sites), sweep_folder(self.config, self.task)
        raw_pixels = self._on_a_worker("raw pixels", examples.raw_pixels, task, answer.cell.head)
        shown = self._on_a_worker("report", examples.find_examples, task, answer.cell, answer.result.run_seconds)
        spent = self._cost(task, screening, trials, answer)
        found = Findings(
            task, trials, answer, screening, label_free, raw_pixels, shown, spent, folder, self.tracker.where,
            round_size(self.config, self.task) if find_sampler(self.config.search).rounds else None,
        )  # fmt: skip
        began = time.time()
        drawn, undrawn = draw(found, folder / "figures")
        self.pool.busy.append((began, time.time()))
        found = replace(found, cost=self._cost(task, screening, trials, answer))
        publish(found, drawn, self.config, self.tracker, [*self.failed, *undrawn])
        return found

    def _run(self, halving: HalvingSearch, title: str) -> tuple[Trial, ...]:
        task = halving.task

        def prepare(fit: Fit, lost: bool):
            return self.pool.run(self.filling.fill(task.needs(*fit), lost))

        run = Run(halving, self.task.source.store, prepare)
        [trials] = run_searches([run], self.tracker, self.progress, self.pool.busy, title)
        return tuple(trials)

    def _on_a_worker(self, title: str, function, *args):
        """None where it fails; the answer does not depend on it."""
        self.progress.stage(title)
        try:
            with self.progress, one_line():
                return self.pool.submit(function, *args).result()
        except Exception as error:
            self.failed.append(f"the stage {title!r} failed ({error})")
            return None

    def _cost(self, task: ProbeTask, screening: Screening, trials: tuple[Trial, ...], answer: Answer) -> cost.Cost:
        now, final = time.time(), [answer.final] if answer.final else []
        run_seconds = sum(result.run_seconds for trial in (*trials, *final) for result in trial.results.values())
        needs = cost.needs_of(task, screening, trials)
        search_passes = task.space.forward_passes(needs)
        for trial in final:
            needs += task.on_all_images(trial.cell).needs(trial.cell, trial.rung)
        passes = task.space.forward_passes(needs)
        return cost.Cost(
            search_passes=search_passes,
            final_passes=passes - search_passes,
            passes=passes,
            grid_passes=task.grid_passes,
            num_train=task.num_train,
            new_passes=self.new_passes,
            head_seconds=self.filling.screening_seconds + run_seconds,
            wall_seconds=now - self.started_seconds,
            ray_share=cost.share_outside(self.pool.busy, self.started_seconds, now),
        )


@contextmanager
def open_sweep(config: LayerNoise, task: ProbeTask, started_seconds: float) -> Iterator[Search]:
    """The search on a running cluster, alone in its folder, open in MLflow, until the block ends."""
    folder, source = sweep_folder(config, task), task.source
    warn_of_old_results(source.store)
    more = {"backbone_sha256": source.key.backbone, "store_folder": source.folder()}
    with open_run(
        folder, source.name, source.store, task, COLUMNS, as_flags(with_whole_paths(config)), more
    ) as tracker:
        loaded = time.time()
        left = FOR_FITS if task.gpus_per_fit else 0
        with Pool(source.settings.device, config.gpus_per_extractor, left) as pool:
            pool.busy.append((started_seconds, loaded))
            yield Search(config, task, pool, tracker, started_seconds)


@contextmanager
def open_pool(config: ModelAndData, source: FeatureSource, folder: Path) -> Iterator[Pool]:
    """A pool on a running cluster until the block ends, for a command that searches nothing; folder and store are made,
    and found to be writable, first."""
    check_cluster()
    check_writable(folder, source.store)
    with ray_session(), Pool(source.settings.device, config.gpus_per_extractor) as pool:
        yield pool


def warn_of_old_results(store: str) -> None:
    """Version 0.1 kept results under keys that said less."""
    root = FeatureStore(store).root
    if (root / "results").is_dir() and not (root / "ledger").is_dir():
        logging.getLogger("sweeps").warning(
            f"{store} was filled by version 0.1: its features are read, and its results in {root / 'results'} are made "
            "again"
        )
