"""How long the first command takes, against its own work in one plain process: python benchmarks/first_run.py

The command is `python sweeps/layer_noise.py` in an empty folder. The plain process extracts the same features, screens
and scores the same sites and fits the same cells, one after the other, with 1 or with 2 threads. It has no Ray, no
MLflow and no report. Both begin with nothing imported, an empty store and an empty cache, in turn. The ratio is to the
faster plain process.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import record
import tyro

COMMAND = Path(__file__).parents[1] / "sweeps" / "layer_noise.py"
CASES = {
    "the command": [COMMAND],
    "plain, 1 thread": [__file__, "--threads", "1"],
    "plain, 2 threads": [__file__, "--threads", "2"],
}
GOAL_RATIO, GOAL_SECONDS = 1.5, 60


@dataclass(frozen=True)
class FirstRun:
    repeats: int = 3
    threads: int = 0
    """For the plain process alone, which the benchmark starts itself."""


def plain(num_threads: int) -> None:
    """The work of the default sweep in this process."""
    import torch

    from storage.checkpoints import StoredCheckpoint
    from sweeps.layer_noise import LayerNoise
    from sweeps.probing import examples
    from sweeps.probing.plan import set_up_search
    from sweeps.probing.sweep import Search
    from sweeps.search.halving import HalvingSearch
    from sweeps.search.task import Trial

    class Plain(Search):
        def run(self, halving: HalvingSearch, tracker: Any, title: str) -> tuple[Trial, ...]:
            task = halving.task
            while fit := halving.ask():
                self.fill(task.needs(*fit))
                kept = StoredCheckpoint(Path(task.source.store), task.key(fit.cell, task.rungs[-1]))
                [result] = task.run([fit.cell], fit.rung, [kept])
                halving.tell(fit, result)
            return tuple(halving.trials)

    torch.set_num_threads(num_threads)
    config = LayerNoise()
    search = Plain(config, set_up_search(config).task, Here(), None, time.time())
    screening = search.screen(search.rules)
    search.label_free()
    answer = search.answer(screening, search.search(screening))
    examples.raw_pixels(search.task, answer.cell.head)


class Here:
    """A pool whose only worker is this process."""

    def __init__(self) -> None:
        import asyncio

        self.busy: list[tuple[float, float]] = []
        self._loop = asyncio.new_event_loop()

    async def call(self, function, *args):
        return function(*args)

    def submit(self, function, *args) -> Future:
        return self.run(self.call(function, *args))

    def run(self, work: Coroutine) -> Future:
        (done := Future()).set_result(self._loop.run_until_complete(work))
        return done


def seconds_of(command: Sequence[str | Path]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        env |= {"PYTHONPATH": str(COMMAND.parents[1]), "XDG_CACHE_HOME": f"{folder}/cache"}
        subprocess.run([sys.executable, *command], cwd=folder, check=True, capture_output=True, env=env)
        return time.perf_counter() - started


def main(config: FirstRun) -> None:
    if config.threads:
        plain(config.threads)
        return
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(config.repeats):
        for name, command in CASES.items():
            seconds[name].append(seconds_of(command))
            print(f"{name:<17} {seconds[name][-1]:5.1f} s", flush=True)
    medians = {name: median(each) for name, each in seconds.items()}
    faster = min(list(CASES)[1:], key=lambda name: medians[name])
    ratio = record.ratio(seconds, "the command", faster)
    for name, each in seconds.items():
        print(f"{name:<17} {medians[name]:5.1f} s in the median, {min(each):.1f} to {max(each):.1f}")
    print(f"ratio to {faster!r}: {ratio:.2f}; wanted: {GOAL_RATIO} at most, and {GOAL_SECONDS} s for the command")
    record.write("first_run", {"seconds": seconds, "ratio": {faster: ratio}})


if __name__ == "__main__":
    main(tyro.cli(FirstRun, description=__doc__))
