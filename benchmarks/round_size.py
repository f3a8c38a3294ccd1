"""Regret against the number of cells that Optuna proposes at once.

    python benchmarks/round_size.py          # the shipped model and images, 546 cells: about an hour

The default search, which screens first, and one over the whole space, of 40 trials each, are played in rounds of
several sizes, on fits that are made once and kept, as search_cost.py makes them, which goes first on the same --store.
Regret: accuracy of the grid's best cell minus that of the answer, in points, on images that chose
nothing; the difference to rounds of 4 is paired by seed. Steps: how often the search waits for fits that it asked for
together, which is what a sweep takes on a cluster with a slot for each of them.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context

import record
import torch
import tyro
from play import JUDGES, Play
from search_cost import choose_from_grid, mean_and_error, wait

from sweeps.flags import ModelAndData
from sweeps.probing.screening import ScreeningRules, choose_rungs
from sweeps.probing.space import Cell
from sweeps.probing.sweep import set_up
from sweeps.probing.task import ProbeTask
from sweeps.search.task import REDUCTION

CASES = "screening first", "whole space"
NUM_TRIALS = 40
SIZES = 4, 8, 16, 40


@dataclass(frozen=True)
class RoundSize(ModelAndData):
    poolings: tuple[int, ...] = (1, 2, 4)
    heads: tuple[str, ...] = ("linear", "mlp")
    seeds: int = 6
    processes: int = 2
    name: str = "round_size"
    """Of the file in results/."""


@dataclass(frozen=True)
class Played:
    case: str
    round_size: int
    seed: int
    answer: str
    regret: dict[str, float]
    """By each of JUDGES, in points."""
    steps: int
    num_cells: int
    """Among which the trials were proposed."""


def play_one(task: ProbeTask, case: str, round_size: int, seed: int, best_of_grid: Cell) -> Played:
    play, rungs, screening = Play(task, seed), choose_rungs(task.num_train, task.num_classes), None
    if case == CASES[0]:
        screening, rungs = play.screen(ScreeningRules(rungs[:-1])), task.rungs
    else:
        rungs = tuple(task.num_train // REDUCTION**power for power in (2, 1, 0))
    play.trials("optuna", rungs, NUM_TRIALS, screening, round_size)
    cells = task.space.cells_at(screening.sites) if screening else task.space.cells
    answer, steps = play.answer(), -(-min(NUM_TRIALS, len(cells)) // round_size) * len(rungs)
    return Played(case, round_size, seed, answer.name, play.regret(answer, best_of_grid), steps, len(cells))


def summary(played: Sequence[Played], of_four: Sequence[Played]) -> dict:
    """Mean and standard error over the seeds of the regret, and of its difference to rounds of 4."""
    regret = {judge: mean_and_error([one.regret[judge] for one in played]) for judge in JUDGES}
    pairs = list(zip(played, of_four, strict=True))
    against = {judge: mean_and_error([a.regret[judge] - b.regret[judge] for a, b in pairs]) for judge in JUDGES}
    return {"regret": regret, "minus_rounds_of_4": against, "steps": max(one.steps for one in played)}


def main(config: RoundSize) -> None:
    task, _, dataset = set_up(config, config.poolings, config.heads)
    task = replace(task, labels={**task.labels, "test": dataset.labels("test")})
    with ProcessPoolExecutor(config.processes, get_context("spawn"), torch.set_num_threads, (1,)) as workers:
        grid = wait("grid's choice", [workers.submit(choose_from_grid, task, seed) for seed in range(config.seeds)])
        jobs = [
            workers.submit(play_one, task, case, size, seed, best)
            for seed, best in enumerate(grid)
            for case in CASES
            for size in SIZES
        ]
        played = wait("searches", jobs)
    rows = {}
    for case in CASES:
        of = {size: [one for one in played if (one.case, one.round_size) == (case, size)] for size in SIZES}
        rows[case] = {size: summary(of[size], of[SIZES[0]]) for size in SIZES}
        print(f"{case}\n  round  steps  regret on unseen val, test; minus that of rounds of 4")
        for size, row in rows[case].items():
            numbers = [row[what][judge] for what in ("regret", "minus_rounds_of_4") for judge in JUDGES]
            print(f"  {size:5}  {row['steps']:5}  {'  '.join('{:5.2f} +- {:4.2f}'.format(*each) for each in numbers)}")
    record.write(
        config.name, {"cells": len(task.space.cells), "cases": rows, "played": [asdict(one) for one in played]}
    )


if __name__ == "__main__":
    main(tyro.cli(RoundSize, description=__doc__))
