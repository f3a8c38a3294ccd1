"""A transfer sweep, from its flags to its findings."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from storage.tracking import Tracker
from sweeps.cluster.given import FOR_FITS
from sweeps.cluster.pool import Pool
from sweeps.cluster.session import one_line
from sweeps.driver import open_run, run_searches
from sweeps.findings.answer import Answer
from sweeps.findings.logged import finished_report, incomplete
from sweeps.probing import atlas, examples
from sweeps.probing.plan import sweep_folder
from sweeps.probing.screening import Screening
from sweeps.probing.source import Need
from sweeps.probing.space import Cell
from sweeps.probing.sweep import Search
from sweeps.progress import Progress
from sweeps.search.halving import HalvingSearch
from sweeps.search.task import Result, Trial
from sweeps.transferring.findings import Findings, Searched, best_for_all, right_at_every_site
from sweeps.transferring.publish import flags_of, publish, report
from sweeps.transferring.setup import Pair, PairTask, Setup, estimate, set_up, site_needs

__all__ = ["estimate", "finished_report", "incomplete", "report", "run", "set_up"]

COLUMNS = "backbone", "dataset", "block", "timestep", "sigma", "pooling", "head", "num_images"
"""Params of a trial that MLflow's page of trials shows."""
EXPERIMENT = "transfer"

T = TypeVar("T")

log = logging.getLogger("sweeps")


class PairSearch(Search):
    """The search of one pair beside others, whose progress they share."""

    task: PairTask

    def __init__(self, pair: Pair, pool: Pool, tracker: Tracker, started_seconds: float, progress: Progress):
        super().__init__(pair.config, pair.task, pool, tracker, started_seconds, progress)
        self.pair = pair

    def _begin(self, title: str, needs: list[Need], num_steps: int) -> None:
        """The stages of pairs overlap; the sweep shows its own."""


def run(setup: Setup, started_seconds: float) -> Findings:
    first, config = setup.pairs[0].task, setup.config
    store, device = first.source.store, first.source.settings.device
    backbones = dict.fromkeys(pair.task.source.key.backbone for pair in setup.pairs)
    more = {f"backbone_{number}_sha256": sha256 for number, sha256 in enumerate(backbones, 1)}
    with open_run(setup.folder, EXPERIMENT, store, first, COLUMNS, flags_of(config), more) as tracker:
        left = FOR_FITS if first.gpus_per_fit else 0
        with Pool(device, config.gpus_per_extractor, left) as pool:
            sweep = TransferSweep(setup, pool, tracker, started_seconds)
            every_site, screenings = sweep.screen()
            trials = sweep.search(screenings)
            found = sweep.conclude(every_site, screenings, trials)
        publish(found, config, tracker)
    return found


class TransferSweep:
    """All pairs on one pool of workers: whatever one of them waits for, another may have to do."""

    def __init__(self, setup: Setup, pool: Pool, tracker: Tracker, started_seconds: float):
        self.setup, self.pool, self.tracker, self.started_seconds = setup, pool, tracker, started_seconds
        self.progress = Progress(grid_passes=sum(pair.task.grid_passes for pair in setup.pairs))
        args = pool, tracker, started_seconds, self.progress
        self.searches = [PairSearch(pair, *args) for pair in setup.pairs]

    def screen(self) -> tuple[list[Screening], list[Screening]]:
        """Screen each pair: every site on as many images, and the rounds that leave few of them."""
        spaces = [each.task.space for each in self.searches]
        self.progress.stage("screen every site", sum(len(each.blocks) * len(each.sigmas) for each in spaces))
        with self.progress:
            every_site = self._all(each.screening(each.pair.every_site) for each in self.searches)
            self.progress.stage("screening")
            return every_site, self._all(each.screening(each.rules) for each in self.searches)

    def search(self, screenings: Sequence[Screening]) -> list[list[Trial]]:
        runs = [each.as_run(each.halving(screening)) for each, screening in zip(self.searches, screenings, strict=True)]
        return run_searches(runs, self.tracker, self.progress, self.pool.busy, "search")

    def conclude(
        self, every_site: Sequence[Screening], screenings: Sequence[Screening], trials: Sequence[Sequence[Trial]]
    ) -> Findings:
        """Fit every network's answers on all of its datasets, and put everything together."""
        answers = [
            each.choose(screening, tried)
            for each, screening, tried in zip(self.searches, screenings, trials, strict=True)
        ]
        candidates = self._candidates(answers, every_site)
        runs = [
            each.as_run(HalvingSearch(each.task.of_cells(cells), len(cells), "grid", cells=cells))
            for each in self.searches
            for cells in [candidates[each.task.backbone]]
        ]
        ended = run_searches(runs, self.tracker, self.progress, self.pool.busy, "every answer on every dataset")
        searched = []
        for each, sites, screening, tried, answer, on_all in zip(
            self.searches, every_site, screenings, trials, answers, ended, strict=True
        ):
            fitted = {trial.cell: trial for trial in on_all}
            final = fitted[answer.cell] if each.task.is_bounded else None
            passes = self._passes(each, screening, tried, list(fitted))
            searched.append(
                Searched(each.pair, sites, screening, tuple(tried), replace(answer, final=final), fitted, passes)
            )
        added, trouble = self._add_to_atlas(searched) if self.setup.config.atlas else ("", "")
        raw_pixels, new_passes = self._raw_pixels(searched), sum(each.new_passes for each in self.searches)
        wall_seconds = time.time() - self.started_seconds
        where = self.setup.folder, self.tracker.where
        return Findings(tuple(searched), raw_pixels, *where, wall_seconds, new_passes, added, trouble)

    def _add_to_atlas(self, searched: Sequence[Searched]) -> tuple[str, str]:
        """Add an entry for every pair. Returns what is said of it, and why that failed, if it did."""
        folder = self.setup.config.out / "atlas"
        for each in searched:
            pair, sweep = each.pair, sweep_folder(each.pair.config, each.pair.task).name
            _, trouble = atlas.add(folder, atlas.entry_of(sweep, pair.task, each.screening, each.answer, None))
            if trouble:
                return "", trouble
        return f"{folder}, {len(searched)} files: {atlas.SAYS}", ""

    def _candidates(self, answers: Sequence[Answer], every_site: Sequence[Screening]) -> dict[str, list[Cell]]:
        """backbone -> its answers on all datasets, and, as each of them pools and classifies, the site that is best on
        the mean of the datasets."""
        found = {}
        for backbone in dict.fromkeys(each.task.backbone for each in self.searches):
            at = [number for number, each in enumerate(self.searches) if each.task.backbone == backbone]
            cells, space = [answers[number].cell for number in at], self.searches[at[0]].task.space
            block, timestep = best_for_all([right_at_every_site(space, every_site[number]) for number in at])
            site = {"block": space.block_names[block], "timestep": space.timesteps[timestep]}
            more = [replace(cell, **site) for cell in cells]
            found[backbone] = [*dict.fromkeys([*cells, *(cell for cell in more if cell in space.cells)])]
        return found

    def _passes(
        self, search: PairSearch, screening: Screening, trials: Sequence[Trial], fitted: Sequence[Cell]
    ) -> float:
        """Full forward passes of one image that a pair takes."""
        task = search.task
        needs = screening.needs + [Need(t, "val", len(task.val_labels()), b) for t, b in screening.sites.items()]
        left = replace(task, sites=screening.sites)
        needs += [need for trial in trials for need in left.needs(trial.cell, trial.rung)]
        needs += [need for cell in fitted for need in task.of_cells(fitted).needs(cell, task.num_train)]
        return task.space.forward_passes([*needs, *site_needs(search.pair)])

    def _raw_pixels(self, searched: Sequence[Searched]) -> dict[str, Result]:
        """dataset -> pixels under the head of its first network's answer."""
        self.progress.stage("raw pixels")
        first: dict[str, Searched] = {}
        for each in searched:
            first.setdefault(each.pair.task.dataset, each)
        found = {}
        with self.progress:
            for name, each in first.items():
                task = replace(each.pair.task, sites=each.screening.sites)
                try:
                    with one_line():
                        found[name] = self.pool.submit(examples.raw_pixels, task, each.answer.cell.head).result()
                except Exception as error:  # the answers do not depend on it
                    log.warning(f"{name}: raw pixels could not be measured ({error})")
        return found

    def _all(self, work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """What the coroutines return, which go side by side on the pool."""

        async def gathered() -> list[T]:
            return list(await asyncio.gather(*work))

        return self.pool.run(gathered()).result()
