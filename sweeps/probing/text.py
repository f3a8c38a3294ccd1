"""What a person reads at the end of a sweep, rendered from its findings."""

from shlex import quote

import numpy as np

from ddae.label_free import Confidence, Trust
from ddae.probe import paired_loss
from ddae.units import rounded
from sweeps.cli import aligned
from sweeps.findings.answer import without_text
from sweeps.probing.cost import Cost
from sweeps.probing.findings import Findings, FirstChoice
from sweeps.probing.screening import NUM_LABEL_FREE
from sweeps.probing.space import Space
from sweeps.search.task import Result, Trial

WHAT = {
    "balanced accuracy": ("balanced", "is the mean of the classes' accuracies"),
    "accuracy": ("accuracy", "of the val images are classified correctly"),
}
"""Measure -> name and wording of the fact that gives it where another chooses."""


def report(found: Findings) -> str:
    rows = tied_rows(found)
    more = len(found.answer.tied) - len(rows) + 1
    return "\n".join(
        [
            sure(found, newline=True),
            "",
            *aligned(rows),
            *([f"    and {more} more"] if more else []),
            "",
            *(f"{name:<15}{fact}" for name, fact in facts(found).items()),
            f"{'report':<15}{found.folder / 'report.html'}",
            f"{'trials':<15}{found.tracked}",
            f"{'test it, once':<15}python sweeps/final_test.py --sweep {quote(str(found.folder))}",
            f"{'use it':<15}python sweeps/hand_over.py --sweep {quote(str(found.folder))}",
            *([f"{'atlas':<15}{found.added}"] if found.added else []),
        ]
    )


def sure(found: Findings, newline: bool = False) -> str:
    """How sure the answer is."""
    answer, others = found.answer, found.answer.num_full - 1
    by = f", by {found.task.measure}" * (found.task.measure != "accuracy")
    task, num_val = found.task, len(found.task.val_labels())
    first = "the first " * (num_val < task.num_val)
    how = f"on val ({first}{num_val:,} images, paired bootstrap, 95 %{by})"
    number = f"{task.rungs[-1]:,}" if task.is_bounded else "all"
    fitted = f"cells that were fitted on {number} images"
    says = f"{len(answer.tied)} of the {answer.num_full} {fitted} are statistically tied with the best\n{how}; "
    says += "the best is the answer" if answer.winner is answer.best else "the cheapest is the answer"
    if len(answer.tied) == 1:
        says = f"none of the {fitted} beside it ({others}) is statistically tied with the best, the answer\n{how}"
    if not others:
        says = f"one cell alone was fitted on {number} images; it is the answer"
    says += ", and was then fitted on all images" * task.is_bounded
    return says.replace("\n", "\n" if newline else " ")


def tied_rows(found: Findings) -> list[tuple[str, ...]]:
    """A header, and the cells that are tied with the best, best first; ten, the answer and the cheapest."""
    answer, space = found.answer, found.task.space
    chooses, *others = found.task.measures
    rows: list[tuple[str, ...]] = []
    rows.append(
        ("", "block", "t", "sigma", "pooling", "head", f"val {chooses}", *others, "lost", "forward", "features", "fit")
    )
    marks = {"answer": answer.winner, "cheapest": answer.cheapest}
    for number, trial in enumerate(answer.tied):
        marked = [mark for mark, each in marks.items() if trial is each]
        if number >= 10 and not marked:
            continue
        cell = trial.cell
        rows.append(
            (
                ", ".join(marked),
                cell.block,
                str(cell.timestep),
                rounded(space.sigmas[cell.timestep], 3),
                f"{cell.pooling}x{cell.pooling}",
                cell.head,
                *(accuracy_text(trial.last, measure) for measure in found.task.measures),
                against_best(found, trial),
                f"{space.block(cell.block).flops_share:.2f}",
                f"{space.num_features(cell):,}",
                f"{trial.last.run_seconds:.1f} s",
            )
        )
    return rows


def against_best(found: Findings, trial: Trial) -> str:
    """Points lost against the best, on the same val images."""
    best, weights = found.answer.best, found.task.weights
    if trial is best:
        return ""
    ours, theirs = (each.last.correct * (1 if weights is None else weights) for each in (trial, best))
    return "{:.1f} +- {:.1f}".format(*paired_loss(ours, theirs))


def facts(found: Findings) -> dict[str, str]:
    """What else is to be known, a line each."""
    answer, task, space, cost = found.answer, found.task, found.task.space, found.cost
    on_all = f", fitted on all {task.num_train:,} images and evaluated on all {task.num_val:,}" * task.is_bounded
    stopped = sum(trial.stopped_early for trial in found.tried)
    timesteps = ", ".join(map(str, found.screening.sites))
    in_rounds = f" in rounds of {found.round_size}" if found.round_size else ""
    new = "" if cost.new_passes else "; all of it was in the store"
    return {
        "answer": f"{answer.cell.name} ({answer.result.params['setting']}): {chosen_text(found, answer.result)} on val"
        + on_all,
        "raw pixels": raw_pixels_text(found),
        **images_facts(found),
        "without labels": without_labels(found),
        "cells": f"{len(space.cells):,}; screening left {len(space.cells_at(found.screening.sites))}, at t = "
        f"{timesteps}; {len(found.tried)} tried{in_rounds}, {stopped} stopped early",
        **({"search passes": passes_text(cost, cost.search_passes)} if task.is_bounded else {}),
        **({"final passes": f"{passes_text(cost, cost.final_passes)}, for the answer"} if task.is_bounded else {}),
        **({"began": found.began} if found.began else {}),
        "cost": passes_text(cost, cost.passes, " forward passes") + f"{new}; {cost.head_seconds:.0f} s of heads",
        "time": f"{cost.wall_seconds:.0f} s; during {cost.ray_share:.0%} of it no process was at work (starting and "
        "waiting for Ray)",
    }


def passes_text(cost: Cost, passes: float, what: str = "") -> str:
    """Forward passes beside the training images and the grid."""
    return (
        f"{passes:,.0f}{what}, {passes / cost.num_train:.2f} times the training images and "
        f"{passes / cost.grid_passes:.2f} of the grid"
    )


def raw_pixels_text(found: Findings) -> str:
    if found.raw_pixels is None:
        return "could not be measured"
    merit = found.task.objectives[0].merit
    beaten = merit(found.answer.result) > merit(found.raw_pixels)
    more = "" if beaten else "; the answer does not beat them"
    return f"{chosen_text(found, found.raw_pixels)} under the same head{more}"


def images_facts(found: Findings) -> dict[str, str]:
    """The dataset, what is left out of it and why, and what val images that are in train do to the answer's number."""
    task, result = found.task, found.answer.result
    summary, *others = task.notes or ("",)
    twins, labels = task.twins.get("val", np.zeros(0, dtype=bool)), task.labels["val"]
    facts = {"images": summary, "to know": "; ".join(others)}
    if twins.any():
        facts["without copies"] = without_text(result.correct, labels, twins, "val", "train", task.measure)
    majority = f"always saying the largest class is right on {100 * np.bincount(labels).max() / len(labels):.1f} %"
    for measure in task.measures[1:]:
        name, what = WHAT[measure]
        facts[name] = f"{accuracy_text(result, measure)} % {what}; {majority} of val"
    return {name: fact for name, fact in facts.items() if fact}


def without_labels(found: Findings) -> str:
    """What the label-free ranking would have chosen, and how far it agrees with ridge in the first round."""
    choice = found.first_choice(found.label_free.ranking)
    agreement: Trust = found.label_free.trust(found.screening.accuracy)["consensus"]
    screened = list(found.screening.rounds[0])
    everywhere = len(screened) == len(found.task.space.timesteps)
    where = "all sites" if everywhere else f"the sites at t = {', '.join(map(str, screened))}"
    return (
        f"{choice.name} would have been chosen: {lost_text(choice, found)}; Spearman with ridge "
        f"{agreement.spearman:.2f} over {where}, {agreement.spearman_within_timestep:.2f} over the blocks at one "
        f"timestep; {how_sure_of(found, choice)}"
    )


def how_sure_of(found: Findings, choice: FirstChoice) -> str:
    num_images = min(NUM_LABEL_FREE, found.task.num_train)
    return how_sure(found.label_free.confidence, found.task.space, (choice.block, choice.timestep), num_images)


def how_sure(sure: Confidence, space: Space, site: tuple[str, int], num_images: int) -> str:
    """What the first choice of the label-free ranking does when its images are resampled."""
    at = space.position(*site)
    best, worst = int(sure.best_rank[at]), int(sure.worst_rank[at])
    ranks = f"rank {best}" if best == worst else f"ranks {best} to {worst}"
    return (
        f"with its {num_images:,} images resampled {sure.num_resamples} times, {site[0]}/{site[1]} stays first in "
        f"{sure.ranks_first[at]:.0%}, and has {ranks} of {sure.ranks_first.size} in 90 % of them"
    )


def lost_text(choice: FirstChoice, found: Findings) -> str:
    if choice.lost is None:
        return "ridge did not screen it"
    points, stderr = choice.lost
    num_images = found.screening.rules.rounds[0]
    return f"{points:.1f} +- {stderr:.1f} {points_of(found)} lost under ridge on {num_images:,} images"


def points_of(found: Findings) -> str:
    return "points" if found.task.measure == "accuracy" else f"points of {found.task.measure}"


def chosen_text(found: Findings, result: Result) -> str:
    """What chooses, in percent, by its name where that is not accuracy."""
    measure = found.task.measure
    return f"{accuracy_text(result, measure)} %{f' {measure}' * (measure != 'accuracy')}"


def accuracy_text(result: Result, measure: str = "accuracy") -> str:
    """Val accuracy, or the balanced one, in percent, with its standard error."""
    metric = f"val_{measure.replace(' ', '_')}"
    accuracy, stderr = result.metrics[metric], result.metrics[metric.replace("accuracy", "stderr")]
    return f"{100 * accuracy:.1f} +- {100 * stderr:.1f}"
