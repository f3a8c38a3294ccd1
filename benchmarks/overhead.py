"""What Ray Tune adds to a trial, against the same function called in a loop, and what that is made of.

python benchmarks/overhead.py            # about 6 minutes

A trial burns 0.2 CPU-seconds. "Added" is the time that a slot spends between two of them, with the ledger that each
result goes into. How much longer the trial itself takes than in the loop is listed apart, and so is starting Ray and
the first actor. Every variant but the last changes one thing of how a sweep runs its Task: a class trainable in reused
actors, no checkpoint at the end, and our searcher.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import record
import tyro
from ray import tune
from toy import Toy, burn, stands_ready, toy_space

from sweeps.cluster.session import ray_session
from sweeps.cluster.tune import Group, Run, TaskTrial, TuneSearcher, Watch, placement
from sweeps.search.halving import HalvingSearch
from sweeps.search.task import Resources

SPACE = toy_space(num_blocks=8, timesteps=(0, 10, 30, 60, 120, 250, 500))


@dataclass(frozen=True)
class Variant:
    slots: int = 1
    trainable: str = "class"
    reuse_actors: bool = True
    searcher: bool = True
    """Ours; else Tune's own random search."""
    checkpoint_at_end: bool | None = False
    """None is Tune's default, which saves a class trainable when it ends."""
    share_of_trials: float = 1


AS_A_SWEEP = Variant()
VARIANTS = {
    "as a sweep runs": AS_A_SWEEP,
    "two slots": replace(AS_A_SWEEP, slots=2),
    "no searcher": replace(AS_A_SWEEP, searcher=False),
    "checkpoint at the end": replace(AS_A_SWEEP, checkpoint_at_end=None),
    "function trainable, reused actors": replace(AS_A_SWEEP, trainable="function"),
    "class trainable, new actors": replace(AS_A_SWEEP, reuse_actors=False, share_of_trials=0.2),
    "stock: function, new actors, no searcher": Variant(
        trainable="function", reuse_actors=False, searcher=False, checkpoint_at_end=None, share_of_trials=0.2
    ),
}


COLUMNS = {
    "added": "added_ms",
    "searcher": "searcher_ms",
    "driver": "driver_cpu_ms",
    "longer": "steps_longer_ms",
    "start": "fit_to_first_step_ms",
    "end": "last_step_to_return_ms",
}
LEGEND = """
added     a slot's time between two trials; the goal is below 400
searcher  a trial's asking and telling            driver       a trial's CPU time in the driver
longer    a trial, than in the loop               start, end   fit() to the first trial, the last one to its return"""


@dataclass(frozen=True)
class Overhead:
    num_trials: int = 30
    work_seconds: float = 0.2
    repeats: int = 3


def busy_function(config: dict, tasks: Sequence[tuple[Toy, str]]) -> None:
    """The same work as Tune's users write it."""
    [result] = tasks[0][0].run(config["group"].cells, 1, [])
    tune.report({"records": [(0, result.as_record())], "warnings": [], "mistake": "", "lost": ""})


class Clock(Watch):
    """When each step ran, by the worker's clock, and the driver's CPU time when it heard of it."""

    def __init__(self) -> None:
        super().__init__([])
        self.steps: list[dict] = []
        self.driver_cpu: list[float] = []

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        super().on_trial_result(iteration, trials, trial, result, **info)
        [(_, record)] = result["records"]
        self.steps.append(
            {"pid": result["pid"], "started": record["started_seconds"], "ended": record["ended_seconds"]}
        )
        self.driver_cpu.append(time.process_time())


def timed(method: Callable) -> Callable:
    def call(self, *args, **kwargs):
        started = time.perf_counter()
        try:
            return method(self, *args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - started

    return call


class TimedSearcher(TuneSearcher):
    seconds = 0.0
    suggest = timed(TuneSearcher.suggest)
    on_trial_complete = timed(TuneSearcher.on_trial_complete)


def run(variant: Variant, config: Overhead, loop_seconds: float) -> dict[str, float]:
    """One Tune run; loop_seconds: what a trial's work takes in a plain loop."""
    num_trials = max(4, round(config.num_trials * variant.share_of_trials))
    task, clock, searcher = Toy(SPACE, (1,), config.work_seconds), Clock(), None
    trainable = TaskTrial if variant.trainable == "class" else busy_function
    with tempfile.TemporaryDirectory() as store, tempfile.TemporaryDirectory() as folder:
        if variant.searcher:
            one = Run(HalvingSearch(task, num_trials, round_size=4), store, stands_ready)
            searcher = TimedSearcher([one], lambda: Resources(num_cpus=variant.slots))
        groups = [Group(0, (cell,), 1) for cell in task.cells[:num_trials]]
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(trainable, tasks=[(task, store)]), placement),
            param_space=None if searcher else {"group": tune.grid_search(groups), "resources": Resources(num_cpus=1)},
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=num_trials if searcher else 1,
                max_concurrent_trials=None if searcher else variant.slots,
                reuse_actors=variant.reuse_actors,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                verbose=0,
                callbacks=[clock],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=variant.checkpoint_at_end),
            ),
        )
        called = time.time()
        tuner.fit()
        returned = time.time()
    steps = sorted(clock.steps, key=lambda step: step["started"])
    slots: dict[int, list[dict]] = {}
    for step in steps:
        slots.setdefault(step["pid"] if variant.slots > 1 else 0, []).append(step)
    inside = sum(step["ended"] - step["started"] for step in steps)
    whole = sum(slot[-1]["ended"] - slot[0]["started"] for slot in slots.values())
    return {
        "added_ms": 1000 * (whole - inside) / (num_trials - len(slots)),
        "steps_longer_ms": 1000 * (inside / num_trials - loop_seconds),
        "driver_cpu_ms": 1000 * (clock.driver_cpu[-1] - clock.driver_cpu[0]) / (num_trials - len(slots)),
        "searcher_ms": 1000 * searcher.seconds / num_trials if searcher else 0,
        "fit_to_first_step_ms": 1000 * (steps[0]["started"] - called),
        "last_step_to_return_ms": 1000 * (returned - steps[-1]["ended"]),
    }


def loop(config: Overhead) -> float:
    """Seconds a trial of the same function called in a loop."""
    started = time.perf_counter()
    for _ in range(config.num_trials):
        burn(config.work_seconds)
    return (time.perf_counter() - started) / config.num_trials


def main(config: Overhead) -> None:
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    loops: list[float] = []
    started = time.perf_counter()
    with ray_session():
        ray_seconds = time.perf_counter() - started
        run(replace(AS_A_SWEEP, share_of_trials=0), config, 0)
        for _ in range(config.repeats):
            loops.append(loop(config))
            for name, variant in VARIANTS.items():
                runs[name].append(run(variant, config, loops[-1]))
    results = {name: {key: median(run[key] for run in of) for key in of[0]} for name, of in runs.items()}
    print(f"the loop: {1000 * median(loops):.0f} ms a trial; ray.init: {ray_seconds:.1f} s")
    print(f"{'milliseconds, medians of the runs':<41}  " + "".join(f"{title:>9}" for title in COLUMNS))
    for name, r in results.items():
        print(f"{name:<41}  " + "".join(f"{r[key]:9.1f}" for key in COLUMNS.values()))
    print(LEGEND)
    record.write("overhead", {"loop_ms": 1000 * median(loops), "ray_init_s": ray_seconds, "variants": results})


if __name__ == "__main__":
    main(tyro.cli(Overhead, description=__doc__))
