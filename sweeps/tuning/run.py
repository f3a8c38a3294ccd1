"""How a sweep runs on Ray, and how it goes on: screen, search, answer."""

import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import ray
from ray import tune
from ray.exceptions import RayActorError, RayError, RayTaskError

from ddae.probe import Candidate, ProbeResult
from storage.results import Ledger
from storage.tracking import Metric, Tracker, Trial, hidden
from sweeps.tuning.evaluation import evaluate, from_record
from sweeps.tuning.extraction import Extraction
from sweeps.tuning.extractor import Work
from sweeps.tuning.outcome import Cost, FinishedTrial, LabelFree, share_outside
from sweeps.tuning.plan import NUM_LABEL_FREE, Plan
from sweeps.tuning.portrait import Portrait
from sweeps.tuning.progress import Progress
from sweeps.tuning.race import Race
from sweeps.tuning.searcher import SHARED, Fit, HalvingSearch, Tried, TuneSearcher
from sweeps.tuning.space import Need, Places
from sweeps.tuning.trial import ProbeTrial

PATIENCE_SECONDS = 10
"""So long an interrupted sweep waits for the trials that are being logged, and another one before it says that it
waits."""

FITS_A_SLOT = 250
"""Of one call of Tune, which keeps 30 KB a fit and takes two seconds to start."""

AXES = "block", "timestep", "pooling", "head"
COLUMNS = "block", "timestep", "sigma", "pooling", "head", "num_images"
"""Params of a trial that MLflow's page of it shows, in charts and in the table."""


@dataclass(frozen=True)
class Search:
    """How candidates are chosen. Raises ValueError for a number that makes no sense."""

    sampler: str
    """optuna, random, or grid: every cell on all images."""
    num_trials: int
    seed: int
    round_size: int
    """Trials that optuna proposes at once."""

    def __post_init__(self) -> None:
        for name, default in (("num_trials", 40), ("round_size", 4)):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more; the default is {default}")


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
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **local)
    except (RayError, ConnectionError) as error:
        raise ValueError(f"Ray does not start, or RAY_ADDRESS={address} lets nobody in: {error}") from error
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, OSError):
            raise error.cause from error
        advice = f"; {SHARED}" if type(error.cause) is LookupError else ""
        raise ValueError(f"{error.cause}{advice}") from error
    except RayActorError as error:  # what an actor's start raised is in its text alone
        raise ValueError(str(error).strip().splitlines()[-1]) from error
    finally:
        ray.shutdown()


def num_slots() -> int:
    """Fits that can run at once on the cluster as it is now."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


class Sweep:
    """A sweep on a running cluster, until the block ends.

    least_passes: full forward passes that it takes at least, where it is no search.
    """

    def __init__(self, plan: Plan, least_passes: float | None = None):
        self.plan = plan
        self.progress = Progress(least_passes or plan.least_and_most()[0], plan.grid_passes)
        self.busy: list[tuple[float, float]] = []
        """Wall-clock intervals in which a process worked."""
        self.passes = self.head_seconds = 0.0
        self.extraction = Extraction(plan, self._heard)

    def __enter__(self) -> "Sweep":
        return self

    def __exit__(self, *error: object) -> None:
        self.extraction.close()

    def _heard(self, work: Work) -> None:
        self.busy.append((work.started_seconds, work.ended_seconds))
        self.passes += work.passes
        if work.method == "extract":
            self.progress.extracted(work.result, work.passes)
        elif work.method != "encode":
            self.progress.step()
        if work.method == "look":
            self.head_seconds += work.ended_seconds - work.started_seconds

    def _begin(self, title: str, needs: list[Need], num_steps: int) -> None:
        self.progress.stage(title, num_steps, sum(need.num_images for need in needs))

    def fill(self, needs: list[Need]) -> None:
        """Wait until they stand in the store."""
        self._begin("extract", needs, 0)
        with self.progress:
            self.extraction.run(self.extraction.fill(needs)).result()

    def look(self, places: Places | None = None) -> Race:
        """Closed-form ridge at every place in the race, on growing numbers of images, until few timesteps are left.

        places: where the race begins; everywhere if not given.
        """
        plan = self.plan
        race = Race([], places or plan.space.places)
        for cut, num_images in enumerate(plan.looks, start=plan.first_cut):
            needs = [Need(t, "train", num_images, blocks) for t, blocks in race.places.items()]
            title = f"look at {num_images:,} images"
            self._begin(title, needs, sum(len(need.blocks) for need in needs))
            with self.progress:
                looks = self.extraction.run(self.extraction.looks(needs)).result()
            race = race.after(looks, None if plan.exhaustive else plan.num_kept(cut))
        return race

    def label_free(self, num_images: int = NUM_LABEL_FREE, num_labels: int = 0) -> LabelFree:
        """Every (block, timestep) ranked without labels, or with so many, of the first of the images."""
        first, second = (self.plan.label_free_needs(num_images, draw) for draw in (0, 1))
        noisier = second[1:] + second[-1:]
        self._begin("label-free", [*first, *second], len(second))
        with self.progress:
            scores = self.extraction.run(self.extraction.label_free(first, second, noisier, num_labels)).result()
        return LabelFree.of(self.plan, scores)

    def search(self, search: Search, race: Race, first: list[Candidate], tracker: Tracker) -> list[FinishedTrial]:
        """Run trials of what the race has left until num_trials have finished or nothing is left.

        first: candidates to try before any other.
        """
        candidates = self.plan.space.candidates_at(race.places)
        grid, optuna = search.sampler == "grid", search.sampler == "optuna"
        halving = HalvingSearch(
            self.plan.space,
            candidates,
            self.plan.rungs,
            len(candidates) if grid else search.num_trials,
            first,
            search.sampler,
            search.seed,
            search.round_size if optuna else None,
        )

        def features(fit: Fit, lost: bool) -> Future:
            needs = self.plan.trial_needs(*fit, race.places)
            if lost:
                self.extraction.forget(needs)
            return self.extraction.run(self.extraction.fill(needs))

        self.progress.stage("search")
        searcher = TuneSearcher(halving, self._known, features, num_slots)
        with self.progress, self._logging(halving, race.places, tracker) as log:
            watch = Watch(self.progress, halving, log)
            watch.update()
            if not halving.ended:
                self._tune(searcher, watch)
                watch.update()
            self.busy += watch.busy
        return [self._finished(one, race.places) for one in halving.tried]

    def baseline(self, head: str) -> ProbeResult:
        """Raw pixels under a head."""
        self.progress.stage("raw pixels")
        with self.progress:
            return self.extraction.run(self.extraction.call("raw_pixels", head)).result()

    def portrait(self, winner: ProbeResult) -> Portrait:
        """A closer look at the answer, for its report."""
        self.progress.stage("report")
        with self.progress:
            call = self.extraction.call("portrait", winner.candidate, winner.fit_seconds)
            return self.extraction.run(call).result()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The driver itself works for as long as the block lasts."""
        began = time.time()
        yield
        self.busy.append((began, time.time()))

    def cost(self, race: Race, trials: list[FinishedTrial], started: float) -> Cost:
        """Of the sweep, which began at `started` (seconds since the epoch)."""
        plan = self.plan
        needs = [*plan.label_free_needs(draw=0), *plan.label_free_needs(), *race.needs(plan), *race.val_needs(plan)]
        for trial in trials:
            needs += plan.trial_needs(trial.candidate, trial.rungs[-1].num_images, race.places)
        now = time.time()
        return Cost(
            passes=plan.space.forward_passes(needs),
            grid_passes=plan.grid_passes,
            num_train=plan.rungs[-1],
            new_passes=self.passes,
            head_seconds=self.head_seconds + sum(rung.fit_seconds for trial in trials for rung in trial.rungs),
            wall_seconds=now - started,
            ray_share=share_outside(self.busy, started, now),
        )

    def _tune(self, searcher: TuneSearcher, watch: "Watch") -> None:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it tells of every process that dies
        tune_fits(tune.with_parameters(ProbeTrial, plan=self.plan), searcher, watch)

    def _recorded(self, candidate: Candidate, num_images: int) -> ProbeResult | None:
        record = Ledger(f"{self.plan.store}/results").get(self.plan.result_key(candidate, num_images))
        return None if record is None else from_record(record)

    def _known(self, fit: Fit) -> float | None:
        result = self._recorded(*fit)
        return None if result is None else result.val_accuracy

    def _finished(self, one: Tried, places: Places) -> FinishedTrial:
        """Its results from the ledger; one that is gone since is made again."""
        rungs = []
        for num_images in self.plan.rungs[: len(one.accuracies)]:
            result = self._recorded(one.candidate, num_images)
            if result is None:
                needs = self.plan.trial_needs(one.candidate, num_images, places)
                self.extraction.run(self.extraction.fill(needs)).result()
                result = evaluate(self.plan, one.candidate, num_images)
            rungs.append(result)
        return FinishedTrial(one.candidate, rungs, one.stopped_early)

    @contextmanager
    def _logging(self, search: HalvingSearch, places: Places, tracker: Tracker) -> Iterator[Callable[[], None]]:
        """A function that has every settled trial that MLflow lacks logged in the background. What cannot be logged is
        tried again with the next one, and at the end, which alone waits for it."""
        settled, ended = threading.Event(), threading.Event()
        num_logged = 0

        def log_all() -> None:
            nonlocal num_logged
            for one in search.settled[num_logged:]:
                tracker.log_trial(_tracked(self.plan, self._finished(one, places)))
                num_logged += 1

        def log_on() -> None:
            while settled.wait() and not ended.is_set():
                settled.clear()
                with suppress(ValueError, OSError):
                    log_all()

        writer = threading.Thread(target=log_on, daemon=True)  # an interrupt does not wait for a server that is away
        writer.start()
        try:
            yield settled.set
        finally:
            ended.set()
            settled.set()
            writer.join(PATIENCE_SECONDS)
            if writer.is_alive() and not sys.exc_info()[0]:
                logging.getLogger("sweeps").warning(f"all is fitted; waiting for MLflow at {hidden(tracker.uri)}")
                writer.join()
        log_all()


class Watch(tune.Callback):
    """What a person sees of the trials, and when they worked."""

    def __init__(self, progress: Progress, search: HalvingSearch, log: Callable[[], None]):
        self.progress, self.search, self.log = progress, search, log
        self.busy: list[tuple[float, float]] = []
        self.num_settled = self.num_stopped = 0
        self.best: Tried | None = None

    def __getstate__(self) -> dict:
        """Nothing: Tune pickles its callbacks for a restore that a rerun makes needless."""
        return {}

    def update(self) -> None:
        for one in self.search.settled[self.num_settled :]:
            self.num_settled += 1
            self.num_stopped += one.stopped_early
            self.best = max(self.best or one, one, key=lambda one: (not one.stopped_early, one.accuracies[-1]))
        best = f"{100 * self.best.accuracies[-1]:.1f} % {self.best.candidate.name}" if self.best else ""
        self.progress.trials(self.num_settled, self.search.num_trials, self.num_stopped, best)
        self.log()

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        for message in result["warnings"]:
            logging.getLogger("sweeps").warning(message)
        if result["mistake"]:
            raise ValueError(f"{trial.config}: {result['mistake']}")

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        self.busy.append((trial.last_result["fit_started"], trial.last_result["fit_ended"]))
        self.update()

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        """What a fit, or its start, raised ends the sweep; one whose process died is tried again."""
        error = trial.get_error()
        if isinstance(error, RayTaskError) or (isinstance(error, RayActorError) and error.actor_init_failed):
            cause = error.cause if isinstance(error, RayTaskError) else error
            raise ValueError(f"{trial.config}: {str(cause).strip().splitlines()[-1]}")


def tune_fits(trainable: type[tune.Trainable], searcher: TuneSearcher, watch: tune.Callback) -> None:
    """Have Tune run what the searcher asks for, until its search has ended. Tune keeps all that it knows of every fit
    until it returns, so it is called again and again."""
    while not searcher.search.ended:
        with tempfile.TemporaryDirectory() as unread:  # Tune's own state; the ledger is what a rerun goes on from
            tune.Tuner(
                tune.with_resources(trainable, {"cpu": 1}),
                tune_config=tune.TuneConfig(
                    search_alg=searcher, num_samples=FITS_A_SLOT * num_slots(), reuse_actors=True
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=unread,
                    verbose=0,
                    callbacks=[watch],
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            ).fit()


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
        "num_images": last.num_images,
    }
    metrics = [
        Metric(name, value, rung.num_images, rung.ended_seconds)
        for rung in trial.rungs
        for name, value in (
            ("val_accuracy", rung.val_accuracy),
            ("val_stderr", rung.stderr),
            ("wall_seconds", rung.fit_seconds),
        )
    ]
    key = plan.result_key(candidate, last.num_images)
    return Trial(key, candidate.name, params, metrics, trial.stopped_early, trial.started_seconds, trial.ended_seconds)
