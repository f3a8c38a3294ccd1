"""A sweep of noise-conditional classifiers, from what was set up to its findings."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from ddae.noisy_classifier import NoisyClassifier
from storage.tracking import Tracker
from sweeps.cluster.given import FOR_FITS
from sweeps.cluster.pool import Pool
from sweeps.cluster.tune import Run
from sweeps.driver import no_needs, open_run, run_searches
from sweeps.findings.logged import finished_report, incomplete
from sweeps.flags import as_flags
from sweeps.noisy.baseline import BaselineTask
from sweeps.noisy.findings import Findings, choose, own_of
from sweeps.noisy.publish import publish, report
from sweeps.noisy.setup import OWN_HEADS, Setup, estimate, set_up
from sweeps.noisy.task import NoisyCell, fitted_head, official
from sweeps.probing.source import absolute, with_whole_paths
from sweeps.probing.space import Cell
from sweeps.probing.sweep import ProbeSweep
from sweeps.search.halving import HalvingSearch
from sweeps.search.task import Result, Trial

__all__ = ["estimate", "finished", "incomplete", "open_sweep", "report", "set_up"]

COLUMNS = "block", "pooling", "width", "embedding", "noise", "standardise", "num_features", "num_images"
"""Params of a trial that MLflow's page of trials shows."""


def finished(setup: Setup) -> str | None:
    """The report of a sweep that has ended with these flags, and whose head can be read."""
    try:
        NoisyClassifier.load(setup.folder)
    except ValueError:
        return None
    config = setup.config
    flags = {"num_trials": config.num_trials, "baseline": list(config.baseline)}
    return finished_report(setup.folder, **flags, baseline_epochs=config.baseline_epochs)


def recipes(block: str) -> dict[str, NoisyCell]:
    """DDAE's recipe, and what mends its collapse where there is little noise."""
    return {
        "DDAE's recipe": official(block),
        "levels alike": official(block, noise="log-sigma"),
        "standardised": official(block, standardise="level"),
        "both": official(block, "log-sigma", "level"),
    }


def first_cells(setup: Setup) -> list[NoisyCell]:
    """What is tried before Optuna is asked: what most likely is best, DDAE's recipe, and what mends it."""
    block, pooling = setup.config.blocks[0], setup.task.poolings[-1]
    block = next((each.name for each in setup.task.probing.space.blocks if block in (each.name, each.alias)), block)
    best = NoisyCell(block, pooling, setup.task.widths[-1], "none", "log-sigma", "level")
    return [best, *recipes(block).values()]


class NoisySweep(ProbeSweep):
    def __init__(self, setup: Setup, pool: Pool, tracker: Tracker, started_seconds: float):
        super().__init__(setup.task.probing, pool, setup.passes, setup.passes)
        self.setup, self.tracker, self.started_seconds = setup, tracker, started_seconds

    def search(self) -> tuple[Trial, ...]:
        """Try ways to train the head; most see a quarter of the images."""
        config, task = self.setup.config, self.setup.task
        self.fill(task.needs(task.cells[0], task.rungs[-1]))
        halving = HalvingSearch(
            task, config.num_trials, seed=config.seed, round_size=self.setup.round_size, first=first_cells(self.setup)
        )
        return self.run(halving, self.tracker, "search")

    def mend(self, cell: NoisyCell) -> dict[str, Trial]:
        """DDAE's recipe at the answer's block, and what is changed of it, on all images."""
        task, named = self.setup.task, recipes(cell.block)
        last = replace(task, rungs=task.rungs[-1:])
        cells = list(named.values())
        trials = self.run(HalvingSearch(last, len(cells), "grid", cells=cells), self.tracker, "DDAE's recipe")
        return dict(zip(named, trials, strict=True))

    def own_heads(self, cell: NoisyCell) -> dict[int, np.ndarray]:
        """Heads of one level each, at the pooling of a cell and at that of DDAE's recipe."""
        task = self.setup.task
        probing = replace(task.probing, sites=dict.fromkeys(task.looked_at, (cell.block,)))
        cells = [
            Cell(cell.block, timestep, pooling, head)
            for timestep in task.looked_at
            for pooling in dict.fromkeys([cell.pooling, 1])
            for head in OWN_HEADS
        ]
        trials = self.run(HalvingSearch(probing, len(cells), "grid", cells=cells), self.tracker, "a head at each level")
        found: dict[int, dict[int, list[Result]]] = {}
        for trial in trials:
            found.setdefault(trial.cell.pooling, {}).setdefault(trial.cell.timestep, []).append(trial.last)
        return {pooling: own_of(results, task.num_val) for pooling, results in found.items()}

    def from_scratch(self, cell: NoisyCell) -> dict[str, tuple[BaselineTask, Trial]]:
        """The baselines, under the noise of the cell."""
        tasks = self.setup.baselines(cell.noise)
        runs = [Run(HalvingSearch(task, 1, "grid"), task.source.store, no_needs) for task in tasks]
        trials = run_searches(runs, self.tracker, self.progress, self.pool.busy, "baseline") if runs else []
        return {task.network: (task, trial) for task, [trial] in zip(tasks, trials, strict=True)}

    def conclude(self, trials: Sequence[Trial]) -> Findings:
        """Compare the answer with all else, keep its head, and write and log what was found."""
        setup, task = self.setup, self.setup.task
        tied = choose(task, trials)
        cell = tied[0].cell
        mended, own, baselines = self.mend(cell), self.own_heads(cell), self.from_scratch(cell)
        self.progress.stage("keep the head")
        with self.progress:
            head = self.pool.submit(fitted_head, task, cell).result()
        found = Findings(
            task=task,
            tried=tuple(trials),
            answer=tied[0],
            tied=tied,
            recipes=mended,
            own=own,
            baselines=baselines,
            num_parameters=num_parameters(setup, head, baselines),
            folder=setup.folder,
            tracked=self.tracker.where,
            wall_seconds=time.time() - self.started_seconds,
            new_passes=self.new_passes,
        )
        source = task.source
        classifier = NoisyClassifier(
            head, cell.block, cell.pooling, tuple(map(str, setup.dataset.images.classes)), source.backbone,
            replace(source.settings, compile=False), source.key.backbone, absolute(setup.config.dataset),
            dict(tied[0].last.metrics),
        )  # fmt: skip
        classifier.save(setup.folder)
        publish(found, setup.config, self.tracker)
        return found


def num_parameters(setup: Setup, head, baselines: Mapping[str, tuple[BaselineTask, Trial]]) -> dict[str, int]:
    """Who classifies -> numbers that are trained for it; and those of the frozen network."""
    return {
        "shared head": sum(each.numel() for each in head.parameters()),
        "frozen network": sum(each.numel() for each in setup.backbone.network.parameters()),
        **{name: int(trial.last.params["num_parameters"]) for name, (_, trial) in baselines.items()},
    }


@contextmanager
def open_sweep(setup: Setup, started_seconds: float) -> Iterator[NoisySweep]:
    """The sweep on a running cluster, alone in its folder, open in MLflow, until the block ends."""
    task, config = setup.task, setup.config
    source, left = task.source, FOR_FITS if task.probing.gpus_per_fit else 0
    flags, more = as_flags(with_whole_paths(config)), {"backbone_sha256": source.key.backbone}
    with (
        open_run(setup.folder, source.name, source.store, task, COLUMNS, flags, more) as tracker,
        Pool(source.settings.device, config.gpus_per_extractor, left) as pool,
    ):
        yield NoisySweep(setup, pool, tracker, started_seconds)
