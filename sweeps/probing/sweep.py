"""A probing sweep from its flags to its findings."""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from ddae.label_free import CONSENSUS
from ddae.report.page import Section
from storage.feature_store import FeatureStore
from storage.ledger import Ledger
from storage.tracking import Tracker
from sweeps.cli import check_writable
from sweeps.cluster.given import FOR_FITS
from sweeps.cluster.pool import Pool
from sweeps.cluster.session import check_cluster, one_line, ray_session
from sweeps.cluster.tune import Run
from sweeps.driver import open_run, run_searches
from sweeps.findings.answer import Answer, choose
from sweeps.findings.logged import finished_report, incomplete
from sweeps.flags import ModelAndData, as_flags
from sweeps.layer_noise import LayerNoise
from sweeps.probing import atlas, cost, examples
from sweeps.probing.extractor import Extracted
from sweeps.probing.filling import Filling
from sweeps.probing.findings import Findings, first_cells
from sweeps.probing.plan import remember, round_size, rules_for, set_up_search, sweep_folder
from sweeps.probing.publish import publish
from sweeps.probing.screening import (
    NUM_LABEL_FREE,
    NUM_RESAMPLES,
    LabelFree,
    Screening,
    ScreeningRules,
    best_timesteps,
)
from sweeps.probing.sections import NAMES, OF_EXAMPLES, draw
from sweeps.probing.source import FeatureSource, Need, as_turned, with_whole_paths
from sweeps.probing.task import ProbeTask
from sweeps.probing.text import report
from sweeps.progress import Progress
from sweeps.search.halving import HalvingSearch
from sweeps.search.samplers import find_sampler
from sweeps.search.task import Fit, Result, Trial

__all__ = [
    "finished_report",
    "incomplete",
    "open_sweep",
    "remember",
    "report",
    "set_up_search",
    "sweep_folder",
]

T = TypeVar("T")

COLUMNS = "block", "timestep", "sigma", "pooling", "head", "num_images"
"""Params of a trial that MLflow's page of trials shows, in charts and in the table."""


class ProbeSweep:
    """What a sweep does with a task on a pool of workers.

    least_passes: full forward passes that it takes at least. grid_passes: those of all that could be extracted; by
    default of the exhaustive grid. progress: shared with other sweeps on the pool, where there are some.
    """

    def __init__(
        self,
        task: ProbeTask,
        pool: Pool,
        least_passes: float,
        grid_passes: float = 0,
        progress: Progress | None = None,
    ):
        self.task, self.pool = task, pool
        self.progress = progress or Progress(least_passes, grid_passes or task.grid_passes)
        self.filling = Filling(task.source, pool, self._extracted, self.progress.step)
        self.new_passes = 0.0
        """Full forward passes that were run, not found in the store."""

    def fill(self, needs: list[Need]) -> None:
        """Wait until the needs stand in the store."""
        self._begin("extract", needs, 0)
        with self.progress:
            self.pool.run(self.filling.fill(needs)).result()

    def label_free(
        self, num_images: int = NUM_LABEL_FREE, num_labels: int = 0, names: tuple[str, ...] = CONSENSUS
    ) -> LabelFree:
        """Every (block, timestep) ranked without labels, or with so many, of the first of the images. names: of the
        scores, those of the consensus among them."""
        draws = cost.draws_of(self.task, names, num_images)
        turned = [each["turned"] for each in draws if "turned" in each]
        self._begin("label-free", [each[field] for each in draws for field in ("first", "second")] + turned, len(draws))
        with self.progress:
            if turned:
                self.pool.run(Filling(as_turned(self.task.source), self.pool, self._extracted).fill(turned)).result()
            scores = self.filling.score(draws, names, num_labels, NUM_RESAMPLES)
            return LabelFree.of(self.task.space, self.pool.run(scores).result())

    def screen(self, rules: ScreeningRules, ranking: np.ndarray | None = None) -> Screening:
        """Closed-form ridge at every site, on growing numbers of images, until few timesteps are left.

        ranking: [blocks, timesteps], makes the first cut, if there is one.
        """
        with self.progress:
            return self.pool.run(self.screening(rules, ranking)).result()

    async def screening(self, rules: ScreeningRules, ranking: np.ndarray | None = None) -> Screening:
        """Do what screen() does, beside other work of the pool."""
        space = self.task.space
        sites = space.sites if ranking is None else best_timesteps(space, rules, ranking)
        screening = Screening(rules, space, (), sites)
        poolings = {block: self.task.screening_poolings(block) for block in space.block_names}
        for num_images in rules.rounds:
            needs = [Need(t, "train", num_images, blocks) for t, blocks in screening.sites.items()]
            self._begin(f"screen on {num_images:,} images", needs, sum(len(need.blocks) for need in needs))
            answers = await self.filling.screen(needs, poolings)
            screening = screening.after({need: self.task.counted(right) for need, right in answers.items()})
        return screening

    def run(self, halving: HalvingSearch, tracker: Tracker, title: str) -> tuple[Trial, ...]:
        """The trials of a search, each once its features stand in the store. title: what is shown."""
        [trials] = self.run_all([halving], tracker, title)
        return trials

    def run_all(self, searches: Sequence[HalvingSearch], tracker: Tracker, title: str) -> list[tuple[Trial, ...]]:
        """As run(), of searches that go side by side."""
        runs = [self.as_run(each) for each in searches]
        return [tuple(trials) for trials in run_searches(runs, tracker, self.progress, self.pool.busy, title)]

    def as_run(self, search: HalvingSearch) -> Run:
        """A search whose features come from this sweep's store."""

        def prepare(fit: Fit, lost: bool):
            return self.pool.run(self.filling.fill(search.task.needs(*fit), lost))

        return Run(search, self.task.source.store, prepare)

    def _begin(self, title: str, needs: list[Need], num_steps: int) -> None:
        self.progress.stage(title, num_steps, sum(need.num_images for need in needs))

    def _extracted(self, extracted: Extracted) -> None:
        self.new_passes += extracted.passes
        self.progress.extracted(extracted.num_images, extracted.passes)


class Search(ProbeSweep):
    """A sweep that searches: it has flags, a folder, and a run in MLflow."""

    def __init__(
        self,
        config: LayerNoise,
        task: ProbeTask,
        pool: Pool,
        tracker: Tracker,
        started_seconds: float,
        progress: Progress | None = None,
    ):
        self.config, self.tracker, self.started_seconds = config, tracker, started_seconds
        self.warm = atlas.warm_start(sweep_folder(config, task), config.warm_start, task, keep=True)
        """Where other sweeps have it begin."""
        self.rules = rules_for(config, task, self.warm.ranking is not None)
        self.raw_pixels: Future[Result] | None = None
        """Under way, once the answer's head is known."""
        self.failed: list[str] = []
        """What could not be made for the report, and why."""
        super().__init__(task, pool, cost.least_and_most(task, self.rules)[0], progress=progress)

    def search(self, screening: Screening) -> tuple[Trial, ...]:
        """Try cells at the sites that screening has left."""
        return self.run(self.halving(screening), self.tracker, "search")

    def halving(self, screening: Screening) -> HalvingSearch:
        """The search of cells at the sites that screening has left."""
        config, task = self.config, replace(self.task, sites=screening.sites)
        size = round_size(config, self.task)
        first = first_cells(task, screening, self.warm.cells)
        return HalvingSearch(task, config.num_trials, config.search, config.seed, size, first=first)

    def choose(self, screening: Screening, trials: Sequence[Trial]) -> Answer:
        """The answer among the trials."""
        task = replace(self.task, sites=screening.sites)
        return choose(task, trials, task.space.cost, task.weights, self.config.prefer)

    def answer(self, screening: Screening, trials: tuple[Trial, ...]) -> Answer:
        """Choose among the trials. Where the search was bounded, fit the answer on all images."""
        task, answer = replace(self.task, sites=screening.sites), self.choose(screening, trials)
        if not task.is_bounded:
            return answer
        final_task = task.on_all_images(answer.cell)
        halving = HalvingSearch(final_task, 1, "grid", cells=[answer.cell])
        if Ledger(task.source.ledger).get(task.key(answer.cell, task.num_train)) is None:
            self.fill(final_task.needs(answer.cell, task.num_train))
        self.raw_pixels = self.pool.submit(examples.raw_pixels, task, answer.cell.head)  # beside the only fit
        [final] = self.run(halving, self.tracker, "the answer on all images")
        return replace(answer, final=final)

    def conclude(
        self, screening: Screening, label_free: LabelFree, trials: tuple[Trial, ...], answer: Answer
    ) -> Findings:
        """Take a closer look at the answer, and write and log all that was found."""
        task, folder = replace(self.task, sites=screening.sites), sweep_folder(self.config, self.task)
        raw_pixels = self.raw_pixels or self.pool.submit(examples.raw_pixels, task, answer.cell.head)
        shown = self.pool.submit(examples.find_examples, task, answer.cell, answer.result.run_seconds)
        self.progress.stage("raw pixels and examples")
        spent = self._cost(task, screening, trials, answer)
        found = Findings(
            task, trials, answer, screening, label_free, None, None, spent, folder, self.tracker.where,
            round_size(self.config, self.task) if find_sampler(self.config.search).rounds else None, self.warm.said,
        )  # fmt: skip
        with self.progress:
            drawn = self._draw(found, [name for name in NAMES if name not in OF_EXAMPLES])
            raw, seen = self._of_worker("raw pixels", raw_pixels), self._of_worker("examples", shown)
        found = replace(found, raw_pixels=raw, examples=seen)
        self.progress.stage("report")
        if self.config.atlas:
            entry = atlas.entry_of(folder.name, task, screening, answer, raw)
            added, trouble = atlas.add(self.config.out / "atlas", entry)
            found, self.failed = replace(found, added=added), [*self.failed, trouble]
        drawn |= self._draw(found, OF_EXAMPLES)
        found = replace(found, cost=self._cost(task, screening, trials, answer))
        publish(found, [drawn[name] for name in NAMES if name in drawn], self.config, self.tracker, self.failed)
        return found

    def _draw(self, found: Findings, names: Sequence[str]) -> dict[str, Section]:
        began = time.time()
        drawn, undrawn = draw(found, found.folder / "figures", names)
        self.failed += undrawn
        self.pool.busy.append((began, time.time()))
        return drawn

    def _of_worker(self, title: str, future: "Future[T]") -> T | None:
        """What a worker has found; None where it fails, because the answer does not depend on it."""
        try:
            with one_line():
                return future.result()
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
