"""How a sweep runs on Ray, and how it goes on: screen, search, answer."""

import itertools
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import ray
from optuna.trial import TrialState
from ray import tune
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ddae.probe import Candidate, ProbeResult
from storage.results import Ledger
from storage.tracking import Metric, Tracker, Trial
from sweeps.tuning.evaluation import from_record
from sweeps.tuning.extraction import extractor_of, start_extractors
from sweeps.tuning.outcome import Cost, FinishedTrial, LabelFree, best_cells, images_at, share_outside
from sweeps.tuning.plan import REDUCTION, Plan
from sweeps.tuning.searcher import Axes, OptunaSearcher, finished_trials, open_study
from sweeps.tuning.trial import ProbeTrial


@dataclass(frozen=True)
class Search:
    """How candidates are chosen. Raises ValueError for a number that makes no sense."""

    sampler: str
    """optuna, random, or grid: every cell on all images."""
    num_trials: int
    budget: float | None
    """Forward passes an image after which no new trial starts."""
    seed: int

    def __post_init__(self) -> None:
        if self.num_trials < 1:
            raise ValueError(f"num_trials={self.num_trials} must be 1 or more; the default is 40")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"budget={self.budget} must be more than 0 forward passes an image; leave it out for none")


def check_cluster() -> None:
    """Raises ValueError where the cluster at RAY_ADDRESS does not answer; Ray itself would ask for minutes."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ValueError(
            f"RAY_ADDRESS={address} does not answer ({error}); start the cluster, or unset it to use this machine"
        ) from error


@contextmanager
def ray_cluster() -> Iterator[None]:
    """The cluster at RAY_ADDRESS, else a local one for as long as the block lasts; a worker's mistake is one line."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS")
    local = {} if address else {"include_dashboard": False, "object_store_memory": 256 * 2**20}
    ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **local)
    try:
        yield
    except RayTaskError as error:
        raise ValueError(str(error.cause)) from error
    except RayActorError as error:  # what an actor's start raised is in its text alone
        raise ValueError(str(error).strip().splitlines()[-1]) from error
    finally:
        ray.shutdown()


class Sweep:
    """A sweep on a running cluster."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.console = Console(stderr=True)
        self.extractors = start_extractors(plan)
        self.busy: list[tuple[float, float]] = []

    def screen(self) -> np.ndarray:
        """Val accuracy of ridge on the first rung, [blocks, timesteps]."""
        probes = self._each_timestep("screen", "ridge probes")
        return np.array([[probe.val_accuracy for probe in at_timestep] for at_timestep in probes]).T

    def label_free(self) -> LabelFree:
        """Every (block, timestep) ranked without labels."""
        return LabelFree.of(self.plan, self._each_timestep("label_free", "label-free"))

    def _each_timestep(self, method: str, title: str) -> list:
        """One call of an extractor's method a timestep, in the plan's order."""
        timesteps = self.plan.space.timesteps
        pending = {getattr(extractor_of(self.plan, self.extractors, t), method).remote(t): t for t in timesteps}
        results = {}
        with self._progress() as progress:
            bar = progress.add_task(f"{title:<13} timesteps", total=len(pending), note="")
            while pending:
                ready, _ = ray.wait(list(pending))
                results[pending.pop(ready[0])] = ray.get(ready[0])
                progress.advance(bar)
        return [results[t] for t in timesteps]

    def start_baselines(self) -> None:
        """Raw pixels under each head, computed while the trials start."""
        self._baselines = {
            head: self.extractors[i % len(self.extractors)].raw_pixels.remote(head)
            for i, head in enumerate(self.plan.space.heads)
        }

    def search(self, search: Search, folder: Path, first: list[Candidate], tracker: Tracker) -> list[FinishedTrial]:
        """Run trials until num_trials have finished, the space is exhausted or the budget is spent.

        folder: keeps the study, from which the same call goes on. first: candidates to try before any other.
        """
        grid = search.sampler == "grid"
        num_cells = len(self.plan.space.candidates)
        num_trials = num_cells if grid else min(search.num_trials, num_cells)
        study = open_study(folder / "optuna.journal", "random" if grid else search.sampler, search.seed)
        searcher = OptunaSearcher(
            self.plan.space, study, num_trials, first, lambda: self._affordable(study, search.budget), in_order=grid
        )
        num_finished = len(finished_trials(study))
        with self._logging(study, tracker) as log, self._progress() as progress:
            log()
            watch = _Watch(progress, num_trials, num_finished, log)
            if num_finished < num_trials:
                self._tune(searcher, self._scheduler(study), num_trials - num_finished, folder, watch)
            self.busy += watch.busy
        return self._finished(study)

    def baseline(self, head: str) -> ProbeResult:
        """What start_baselines found for a head."""
        return ray.get(self._baselines[head])

    def label_free_choice(
        self, label_free: LabelFree, winner: Candidate, trials: list[FinishedTrial]
    ) -> tuple[ProbeResult, ProbeResult]:
        """The label-free ranking's first cell with the winner's pooling and head, and the winner itself, both on as
        many images as that cell's timestep has been extracted for: no further forward pass."""
        [(block, timestep)] = best_cells(self.plan, label_free.ranking)
        pooling = min(winner.pooling, self.plan.space.block(block).size)
        extracted = images_at(self.plan, trials)[timestep]
        num_images = max(rung for rung in self.plan.rungs if rung <= extracted)
        cells = Candidate(block, timestep, pooling, winner.head), winner
        free = itertools.cycle(self.extractors)
        return tuple(ray.get([actor.probe.remote(cell, num_images) for cell, actor in zip(cells, free, strict=False)]))

    def cost(self, trials: list[FinishedTrial], started: float) -> Cost:
        """Of the sweep, which began at `started` (seconds since the epoch)."""
        reports = ray.get([extractor.report.remote() for extractor in self.extractors])
        intervals = self.busy + [interval for busy, _ in reports for interval in busy]
        now = time.time()
        return Cost(
            passes=self.plan.forward_passes(images_at(self.plan, trials)),
            grid_passes=self.plan.grid_passes,
            new_passes=sum(num for _, num in reports),
            fit_seconds=sum(rung.fit_seconds for trial in trials for rung in trial.rungs),
            wall_seconds=now - started,
            ray_share=share_outside(intervals, started, now),
        )

    def _tune(
        self,
        searcher: OptunaSearcher,
        scheduler: TrialScheduler,
        num_samples: int,
        folder: Path,
        watch: "_Watch",
    ) -> None:
        trainable = tune.with_parameters(ProbeTrial, plan=self.plan, extractors=self.extractors)
        slots = max(1, int(ray.cluster_resources().get("CPU", 1)))
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=num_samples,
                max_concurrent_trials=slots,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str((folder / "ray").absolute()),
                verbose=0,
                callbacks=[watch],
                failure_config=tune.FailureConfig(max_failures=2),
            ),
        ).fit()

    def _scheduler(self, study: optuna.Study) -> TrialScheduler:
        """ASHA on the number of training images, in units of the first rung; the rungs of earlier sessions are put
        back from the study."""
        rungs = self.plan.rungs
        if len(rungs) == 1:
            return FIFOScheduler()
        scheduler = ASHAScheduler(
            time_attr="resource",
            metric="val_accuracy",
            mode="max",
            grace_period=1,
            max_t=REDUCTION ** (len(rungs) - 1),
            reduction_factor=REDUCTION,
        )
        for trial in finished_trials(study):
            stand_in = SimpleNamespace(trial_id=f"finished-{trial.number}")
            scheduler.on_trial_add(None, stand_in)
            for num_images, accuracy in sorted(trial.intermediate_values.items()):
                resource = REDUCTION ** rungs.index(num_images)
                scheduler.on_trial_result(None, stand_in, {"resource": resource, "val_accuracy": accuracy})
        return scheduler

    def _finished(self, study: optuna.Study) -> list[FinishedTrial]:
        return [self._finished_trial(trial) for trial in finished_trials(study)]

    def _finished_trial(self, trial: optuna.trial.FrozenTrial) -> FinishedTrial:
        """The study says which rungs a trial ran, the ledger what they gave; a result that is gone is made again."""
        candidate = Axes(self.plan.space).candidate(trial.params)
        rungs = []
        for num_images in sorted(trial.intermediate_values):
            record = Ledger(f"{self.plan.store}/results").get(self.plan.result_key(candidate, num_images))
            extractor = extractor_of(self.plan, self.extractors, candidate.timestep)
            rungs.append(from_record(record) if record else ray.get(extractor.probe.remote(candidate, num_images)))
        assert trial.datetime_start and trial.datetime_complete
        return FinishedTrial(
            candidate,
            rungs,
            trial.state == TrialState.PRUNED,
            trial.datetime_start.timestamp(),
            trial.datetime_complete.timestamp(),
        )

    def _affordable(self, study: optuna.Study, budget: float | None) -> bool:
        if budget is None:
            return True
        spent = self.plan.forward_passes(images_at(self.plan, self._finished(study)))
        return spent < budget * (self.plan.rungs[-1] + self.plan.num_val)

    @contextmanager
    def _logging(self, study: optuna.Study, tracker: Tracker) -> Iterator:
        """A function that logs, in the background, every finished trial that MLflow does not have yet."""
        writer = ThreadPoolExecutor(max_workers=1)
        pending = []
        logged: set[int] = set()

        def log_all() -> None:
            for trial in finished_trials(study):
                if trial.number not in logged:
                    tracker.log_trial(_tracked(self.plan, self._finished_trial(trial)))
                    logged.add(trial.number)

        def log() -> None:
            pending.append(writer.submit(log_all))

        try:
            yield log
            log()
        except BaseException:
            writer.shutdown(wait=True, cancel_futures=True)
            raise
        writer.shutdown(wait=True)
        for future in pending:
            future.result()

    def _progress(self) -> Progress:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        return Progress(*columns, TextColumn("{task.fields[note]}"), console=self.console)


class _Watch(tune.Callback):
    """Progress a person sees, and when the trials worked."""

    def __init__(self, progress: Progress, total: int, completed: int, log):
        self.progress, self.log = progress, log
        self.bar = progress.add_task(f"{'search':<13} trials   ", total=total, completed=completed, note="")
        self.best, self.stopped = 0.0, 0
        self.busy: list[tuple[float, float]] = []

    def __getstate__(self) -> dict:
        """Nothing: Tune pickles its callbacks for a restore that a rerun makes needless."""
        return {}

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        self.busy.append((result["fit_started"], result["fit_ended"]))
        self.best = max(self.best, result["val_accuracy"])

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        self.stopped += not trial.last_result["last_rung"]
        self.progress.update(self.bar, advance=1, note=f"best {self.best:.1%}, {self.stopped} stopped early")
        self.log()

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        """Out of retries: the sweep ends here, with the worker's own words."""
        error = trial.get_error()
        cause = error.cause if isinstance(error, RayTaskError) else error
        raise ValueError(f"{trial.config}: {str(cause).strip().splitlines()[-1]}")


def _tracked(plan: Plan, trial: FinishedTrial) -> Trial:
    """A finished trial as MLflow sees it: params that its UI can sort and chart, metrics by number of images."""
    candidate, last = trial.candidate, trial.rungs[-1]
    block = plan.space.block(candidate.block)
    params: dict[str, str | int | float] = {
        "block": block.name,
        "block_position": plan.space.blocks.index(block),
        "stage": block.stage,
        "timestep": candidate.timestep,
        "sigma": round(plan.sigmas[candidate.timestep], 6),
        "pooling": candidate.pooling,
        "head": candidate.head,
        "setting": last.setting,
        "num_features": block.channels * candidate.pooling**2,
    }
    metrics = [
        Metric(name, value, rung.num_images, trial.ended_seconds)
        for rung in trial.rungs
        for name, value in (
            ("val_accuracy", rung.val_accuracy),
            ("val_stderr", rung.stderr),
            ("fit_seconds", rung.fit_seconds),
            ("num_images", rung.num_images),
        )
    ]
    key = plan.result_key(candidate, last.num_images)
    return Trial(key, candidate.name, params, metrics, trial.stopped_early, trial.started_seconds, trial.ended_seconds)
