"""The answer of a sweep, read off its records."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ddae.label_free import LABELLED, SCORES, Trust, rank, trust
from ddae.probe import Candidate, ProbeResult, tied_with_best
from sweeps.tuning.plan import Plan
from sweeps.tuning.race import Race


@dataclass(frozen=True)
class FinishedTrial:
    candidate: Candidate
    rungs: list[ProbeResult]
    """One result a rung, fewest images first."""
    stopped_early: bool

    @property
    def started_seconds(self) -> float:
        """Since the epoch."""
        return self.rungs[0].ended_seconds - self.rungs[0].fit_seconds

    @property
    def ended_seconds(self) -> float:
        return self.rungs[-1].ended_seconds


@dataclass(frozen=True)
class LabelFree:
    """Scores that saw no label; arrays are [blocks, timesteps]."""

    ranking: np.ndarray
    """Higher is better."""
    scores: dict[str, np.ndarray]

    @staticmethod
    def of(plan: Plan, scores: list[dict[str, dict[str, float]]]) -> "LabelFree":
        """scores: block -> score -> value, one a timestep of the plan, in its order."""
        cells = [at_timestep[block.name] for block in plan.space.blocks for at_timestep in scores]
        shape = len(plan.space.blocks), len(plan.space.timesteps)
        tables = {name: np.array([cell[name] for cell in cells]).reshape(shape) for name in cells[0]}
        return LabelFree(rank(cells).numpy().reshape(shape), tables)

    @property
    def merits(self) -> dict[str, np.ndarray]:
        """Of the ranking and of every score alone; higher is better."""
        every = {**SCORES, **LABELLED}
        return {"consensus": self.ranking, **{name: every[name].merit(table) for name, table in self.scores.items()}}

    def trust(self, accuracy: np.ndarray) -> dict[str, Trust]:
        """Of the ranking and of every score alone, against accuracies, [blocks, timesteps], NaN where there is none."""
        return {name: trust(merit, accuracy) for name, merit in self.merits.items()}


@dataclass(frozen=True)
class Answer:
    winner: ProbeResult
    """The cheapest of the cells that cannot be told from the best."""
    best: ProbeResult
    """Of the highest val accuracy."""
    tied: list[ProbeResult]
    """All that cannot be told from it, cheapest first."""
    num_full: int
    """Candidates that reached the last rung."""


def choose(plan: Plan, trials: list[FinishedTrial]) -> Answer:
    """The best cell on val among those fitted on all images; a tie goes to the cheapest."""
    full = [trial.rungs[-1] for trial in trials if not trial.stopped_early]
    if not full:
        raise ValueError("no trial reached the last rung; raise --num-trials")
    ties = tied_with_best(np.stack([result.correct for result in full]))
    tied = [result for result, tie in zip(full, ties, strict=True) if tie]
    tied.sort(key=lambda result: plan.space.cost(result.candidate))
    best = max(tied, key=lambda result: result.val_accuracy)
    return Answer(tied[0], best, tied, len(full))


@dataclass(frozen=True)
class Tested:
    """What final_test.json records: the cell, fitted again, on the test images."""

    cell: str
    setting: str
    num_train: int
    num_test: int
    test_accuracy: float
    test_stderr: float
    val_accuracy: float
    date: str


def read_test(folder: Path) -> Tested | None:
    """What final_test.py has recorded of the sweep in a folder, if it has."""
    record = folder / "final_test.json"
    if not record.exists():
        return None
    try:
        return Tested(**json.loads(record.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{record}, the record that the test set has been looked at, is damaged; restore it, "
            "or delete it to look again"
        ) from error


def best_accuracies(plan: Plan, trials: list[FinishedTrial]) -> np.ndarray | None:
    """Val accuracy of the best pooling and head of every (block, timestep), on all images; None where a cell lacks
    such a trial, as in any search but the grid."""
    names = [block.name for block in plan.space.blocks]
    table = np.full((len(names), len(plan.space.timesteps)), -np.inf)
    for trial in trials:
        if not trial.stopped_early:
            at = names.index(trial.candidate.block), plan.space.timesteps.index(trial.candidate.timestep)
            table[at] = max(table[at], trial.rungs[-1].val_accuracy)
    return table if np.isfinite(table).all() else None


def best_cells(plan: Plan, table: np.ndarray, num_cells: int = 1) -> list[tuple[str, int]]:
    """(block, timestep) of the highest numbers of a [blocks, timesteps] table, highest first."""
    places = np.unravel_index(np.argsort(-table, axis=None, kind="stable")[:num_cells], table.shape)
    return [(plan.space.blocks[b].name, plan.space.timesteps[t]) for b, t in zip(*places, strict=True)]


def warm_start(plan: Plan, race: Race) -> list[Candidate]:
    """Cells to try first: every pooling and head at the best place that the race has left, then the middle pooling
    with the first head at the others."""
    best, *others = race.ranked()
    first = plan.space.candidates_at({best[1]: (best[0],)})
    middle = plan.space.poolings[len(plan.space.poolings) // 2]
    return [*first, *(Candidate(*place, middle, plan.space.heads[0]) for place in others)]


@dataclass(frozen=True)
class Cost:
    passes: float
    """Full forward passes of one image that the search needed."""
    grid_passes: float
    num_train: int
    new_passes: float
    """Those of them run just now; the store held the others."""
    head_seconds: float
    """Of ridge at the looks and of the trials' heads, summed over processes."""
    wall_seconds: float
    ray_share: float
    """Of the wall time, in which neither an extractor, nor a trial, nor the driver itself worked."""


def share_outside(intervals: list[tuple[float, float]], start: float, end: float) -> float:
    """Share of [start, end] that no interval covers."""
    covered, reached = 0.0, start
    for first, last in sorted(intervals):
        first, last = max(first, reached), min(last, end)
        if last > first:
            covered += last - first
            reached = last
    return 1 - covered / (end - start)


def paired_loss(chosen: np.ndarray, winner: np.ndarray) -> tuple[float, float]:
    """(points lost, their standard error) of one probe's right answers against another's on the same images."""
    deficit = winner.astype(float) - chosen.astype(float)
    return float(100 * deficit.mean()), float(100 * deficit.std() / len(deficit) ** 0.5)


def answer_text(plan: Plan, answer: Answer, facts: Mapping[str, str]) -> str:
    """What a person reads at the end."""
    rows = tied_rows(plan, answer)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    more = len(answer.tied) - len(rows) + 1
    return "\n".join(
        [
            f"{len(answer.tied)} of {answer.num_full} fully fitted cells cannot be told from the best (^) on val "
            f"({plan.num_val:,} images,\npaired bootstrap, 95 %); the cheapest of them is the answer (*)",
            "",
            *table,
            *([f"    and {more} more"] if more else []),
            "",
            *(f"{name:<15}{fact}" for name, fact in facts.items()),
        ]
    )


def tied_rows(plan: Plan, answer: Answer) -> list[tuple[str, ...]]:
    """A header, and the cells that cannot be told from the best, cheapest first; ten, and the best."""
    rows: list[tuple[str, ...]] = []
    rows.append(("", "block", "t", "sigma", "pooling", "head", "val accuracy", "forward", "features"))
    for result in [r for place, r in enumerate(answer.tied) if place < 10 or r is answer.best]:
        cell, block = result.candidate, plan.space.block(result.candidate.block)
        rows.append(
            (
                "*" * (result is answer.winner) + "^" * (result is answer.best),
                cell.block,
                str(cell.timestep),
                f"{plan.sigmas[cell.timestep]:.3g}",
                f"{cell.pooling}x{cell.pooling}",
                cell.head,
                accuracy_text(result),
                f"{block.flops_share:.2f}",
                f"{block.channels * cell.pooling**2:,}",
            )
        )
    return rows


def answer_facts(
    plan: Plan,
    answer: Answer,
    trials: list[FinishedTrial],
    baseline: ProbeResult,
    race: Race,
    label_free: LabelFree,
    cost: Cost,
) -> dict[str, str]:
    """What is to be known of it, in a line each."""
    winner, space = answer.winner, plan.space
    stopped = sum(trial.stopped_early for trial in trials)
    left = len(space.candidates_at(race.places))
    timesteps = ", ".join(map(str, race.places))
    new = "" if cost.new_passes else "; all of it was in the store"
    beaten = "" if winner.val_accuracy > baseline.val_accuracy else "; the answer does not beat them"
    return {
        "answer": f"{winner.candidate.name} ({winner.setting}): {accuracy_text(winner)} % on val",
        "raw pixels": f"{accuracy_text(baseline)} % under the same head{beaten}",
        "without labels": without_labels(plan, winner.candidate, race, label_free),
        "cells": f"{len(space.candidates):,}; the looks left {left}, at t = {timesteps}; {len(trials)} "
        f"tried, {stopped} stopped early",
        "cost": f"{cost.passes:,.0f} forward passes, {cost.passes / cost.num_train:.2f} times the training "
        f"images and {cost.passes / cost.grid_passes:.2f} of the grid{new}; {cost.head_seconds:.0f} s of heads",
        "time": f"{cost.wall_seconds:.0f} s, of which Ray {cost.ray_share:.0%} (no process at work)",
    }


def without_labels(plan: Plan, winner: Candidate, race: Race, label_free: LabelFree) -> str:
    """What the ranking would have chosen, and how far it agrees with ridge at the first look."""
    look = race.looks[0]
    chosen, lost = first_choice(plan, race, label_free.ranking, winner)
    trusted = label_free.trust(race.accuracy(plan))["consensus"]
    where = "all places" if len(look) == len(plan.space.timesteps) else f"the places at t = {', '.join(map(str, look))}"
    cost = f"{lost} points lost under ridge on {plan.looks[0]:,} images" if lost else "ridge did not look there"
    return (
        f"{chosen} would have been chosen: {cost}; "
        f"Spearman with it {trusted.spearman:.2f} over {where}, {trusted.spearman_within_timestep:.2f} over the "
        "blocks at one timestep"
    )


def first_choice(plan: Plan, race: Race, merit: np.ndarray, winner: Candidate) -> tuple[str, str]:
    """The place of the highest number of a [blocks, timesteps] table, and the points of accuracy, with their standard
    error, that it loses against the winner's under ridge at the first look; empty where that did not look there."""
    [(block, timestep)] = best_cells(plan, merit)
    look, lost = race.looks[0], ""
    if timestep in look:
        points, stderr = paired_loss(look[timestep][block], look[winner.timestep][winner.block])
        lost = f"{points:.1f} +- {stderr:.1f}"
    return f"{block}/{timestep}", lost


def to_json(result: ProbeResult) -> dict:
    """Without the per-image answers."""
    return {name: value for name, value in asdict(result).items() if name != "correct"}


def accuracy_text(result: ProbeResult) -> str:
    return f"{100 * result.val_accuracy:.1f} +- {100 * result.stderr:.1f}"
