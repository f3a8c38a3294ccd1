"""How a sweep runs on Ray, and how it goes on: screen, search, answer."""

import itertools
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
from sweeps.tuning.extraction import encodings, fill, start_extractors
from sweeps.tuning.outcome import Cost, FinishedTrial, LabelFree, share_outside
from sweeps.tuning.plan import NUM_LABEL_FREE, REDUCTION, Plan
from sweeps.tuning.race import Race
from sweeps.tuning.searcher import Axes, OptunaSearcher, finished_trials, open_study
from sweeps.tuning.space import Need, Places
from sweeps.tuning.trial import ProbeTrial


@dataclass(frozen=True)
class Search:
    """How candidates are chosen. Raises ValueError for a number that makes no sense."""

    sampler: str
    """optuna, random, or grid: every cell on all images."""
    num_trials: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_trials < 1:
            raise ValueError(f"num_trials={self.num_trials} must be 1 or more; the default is 40")


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

    def look(self) -> Race:
        """Closed-form ridge at every place in the race, on growing numbers of images, until few timesteps are left."""
        plan = self.plan
        race = Race([], plan.space.places)
        for place, num_images in enumerate(plan.looks):
            needs = [Need(t, "train", num_images, blocks) for t, blocks in race.places.items()]
            title = f"look at {num_images:,}"
            self._ensure(needs, title)
            looks = self._each("look", [replace(need, blocks=(b,)) for need in needs for b in need.blocks], title)
            race = race.after(looks, None if plan.exhaustive else plan.num_kept(place))
        return race

    def label_free(self, num_images: int = NUM_LABEL_FREE) -> LabelFree:
        """Every (block, timestep) ranked without labels."""
        needs = self.plan.label_free_needs(num_images)
        for draw in (0, 1):
            self._ensure([replace(need, draw=draw) for need in needs], "label-free")
        scores = self._each("label_free", needs, "label-free")
        return LabelFree.of(self.plan, list(scores.values()))

    def _ensure(self, needs: list[Need], title: str) -> None:
        """Fill the needs; latents first, so that no image is encoded twice."""
        for method, its_needs, note in (
            ("encode", encodings(self.plan, needs), "latents"),
            ("ensure", needs, "forward"),
        ):
            if its_needs:
                self._each(method, its_needs, f"{title}, {note}", self.extractors)

    def _each(self, method: str, needs: list[Need], title: str, workers: list | None = None) -> dict[Need, Any]:
        """The extractors' method of every need: by one of them in turn, or by all (the last one's answer is kept)."""
        turns = itertools.cycle(self.extractors)
        pending = {getattr(worker, method).remote(need): need for need in needs for worker in workers or [next(turns)]}
        results = dict.fromkeys(needs)
        with self._progress() as progress:
            bar = progress.add_task(f"{title:<22}", total=len(pending), note="")
            while pending:
                ready, _ = ray.wait(list(pending))
                results[pending.pop(ready[0])] = ray.get(ready[0])
                progress.advance(bar)
        return results

    def search(
        self, search: Search, race: Race, folder: Path, first: list[Candidate], tracker: Tracker
    ) -> list[FinishedTrial]:
        """Run trials of what the race has left until num_trials have finished or nothing is left.

        folder: keeps the study, from which the same call goes on. first: candidates to try before any other.
        """
        self._ensure(race.val_needs(self.plan), "val")
        grid = search.sampler == "grid"
        candidates = self.plan.space.candidates_at(race.places)
        num_trials = len(candidates) if grid else min(search.num_trials, len(candidates))
        study = open_study(folder / "optuna.journal", "random" if grid else search.sampler, search.seed)
        searcher = OptunaSearcher(self.plan.space, study, candidates, num_trials, first, in_order=grid)
        num_finished = len(finished_trials(study))
        with self._logging(study, race.places, tracker) as log, self._progress() as progress:
            log()
            watch = _Watch(progress, num_trials, num_finished, log)
            if num_finished < num_trials:
                self._tune(searcher, asha(self.plan, study), num_trials - num_finished, race.places, folder, watch)
            self.busy += watch.busy
        return self._finished(study, race.places)

    def baseline(self, head: str) -> ProbeResult:
        """Raw pixels under a head."""
        return ray.get(self.extractors[0].raw_pixels.remote(head))

    def cost(self, race: Race, trials: list[FinishedTrial], started: float) -> Cost:
        """Of the sweep, which began at `started` (seconds since the epoch)."""
        plan = self.plan
        reports = ray.get([extractor.report.remote() for extractor in self.extractors])
        intervals = self.busy + [interval for busy, _, _ in reports for interval in busy]
        needs = [*plan.label_free_needs(), *race.needs(plan), *race.val_needs(plan)]
        for trial in trials:
            needs += plan.trial_needs(trial.candidate, trial.rungs[-1].num_images, race.places)
        now = time.time()
        return Cost(
            passes=plan.space.forward_passes(needs),
            grid_passes=plan.grid_passes,
            num_train=plan.rungs[-1],
            new_passes=sum(num for _, num, _ in reports),
            head_seconds=sum(seconds for _, _, seconds in reports)
            + sum(rung.fit_seconds for trial in trials for rung in trial.rungs),
            wall_seconds=now - started,
            ray_share=share_outside(intervals, started, now),
        )

    def _tune(
        self,
        searcher: OptunaSearcher,
        scheduler: TrialScheduler,
        num_samples: int,
        places: Places,
        folder: Path,
        watch: "_Watch",
    ) -> None:
        trainable = tune.with_parameters(ProbeTrial, plan=self.plan, places=places, extractors=self.extractors)
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

    def _finished(self, study: optuna.Study, places: Places) -> list[FinishedTrial]:
        return [self._finished_trial(trial, places) for trial in finished_trials(study)]

    def _finished_trial(self, trial: optuna.trial.FrozenTrial, places: Places) -> FinishedTrial:
        """The study says which rungs a trial ran, the ledger what they gave; a result that is gone is made again."""
        candidate = Axes(self.plan.space).candidate(trial.params)
        rungs = []
        for num_images in sorted(trial.intermediate_values):
            record = Ledger(f"{self.plan.store}/results").get(self.plan.result_key(candidate, num_images))
            if record is None:
                fill(self.plan, self.extractors, self.plan.trial_needs(candidate, num_images, places))
                rungs.append(ray.get(self.extractors[0].probe.remote(candidate, num_images)))
            else:
                rungs.append(from_record(record))
        assert trial.datetime_start and trial.datetime_complete
        return FinishedTrial(
            candidate,
            rungs,
            trial.state == TrialState.PRUNED,
            trial.datetime_start.timestamp(),
            trial.datetime_complete.timestamp(),
        )

    @contextmanager
    def _logging(self, study: optuna.Study, places: Places, tracker: Tracker) -> Iterator:
        """A function that logs, in the background, every finished trial that MLflow does not have yet."""
        writer = ThreadPoolExecutor(max_workers=1)
        pending = []
        logged: set[int] = set()

        def log_all() -> None:
            for trial in finished_trials(study):
                if trial.number not in logged:
                    tracker.log_trial(_tracked(self.plan, self._finished_trial(trial, places)))
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


def asha(plan: Plan, study: optuna.Study) -> TrialScheduler:
    """ASHA on the number of training images, in units of the first rung; the rungs of earlier sessions are put
    back from the study."""
    rungs = plan.rungs
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


class _Watch(tune.Callback):
    """Progress a person sees, and when the trials worked."""

    def __init__(self, progress: Progress, total: int, completed: int, log):
        self.progress, self.log = progress, log
        self.bar = progress.add_task(f"{'search':<22}", total=total, completed=completed, note="")
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
