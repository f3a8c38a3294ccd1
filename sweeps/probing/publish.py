"""Writes what a probing sweep has found into its folder, and logs it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ddae.report.page import WORDS, Page, Section, Table
from ddae.units import rounded
from storage.secrets import hidden
from storage.tracking import Tracker
from sweeps.findings.folder import read_test, test_text
from sweeps.findings.publish import Publication, trial_tables
from sweeps.findings.publish import publish as publish_sweep
from sweeps.findings.versions import versions
from sweeps.flags import ModelAndData, as_flags, command_of
from sweeps.probing import text
from sweeps.probing.findings import Findings
from sweeps.probing.note import note
from sweeps.probing.source import with_whole_paths
from sweeps.search.task import Result, Trial

SAYS = {
    "accuracy": "of the val images are classified correctly by the feature at",
    "balanced accuracy": "is the mean of the classes' accuracies on val (balanced accuracy) by the feature at",
}
"""What the page's number is."""


def publish(
    found: Findings, drawn: Sequence[Section], config: ModelAndData, tracker: Tracker, undrawn: Sequence[str]
) -> None:
    """undrawn: what the report lacks, and why."""
    answer, cost, raw_pixels = found.answer, found.cost, found.raw_pixels.metrics if found.raw_pixels else {}
    publication = Publication(
        text.report(found),
        draw=lambda: drawn,
        page=lambda drawn: page(found, drawn, config),
        tables=trial_tables(found),
        trials=[(found.task, trial) for trial in found.fitted],
        metrics={
            **answer.result.metrics,
            **{f"raw_pixels_{name}": value for name, value in raw_pixels.items() if name.endswith("accuracy")},
            **found.more_metrics,
            "search_passes": cost.search_passes,
            "final_passes": cost.final_passes,
            "forward_passes": cost.passes,
            "share_of_grid": cost.passes / cost.grid_passes,
            "wall_seconds": cost.wall_seconds,
        },
        note=lambda: note(found),
        results=lambda: results(found, config),
        undrawn=undrawn,
    )
    publish_sweep(publication, found.folder, tracker)


def page(found: Findings, drawn: Sequence[Section], config: ModelAndData) -> Page:
    task, cell, answer = found.task, found.cell, found.answer
    header, *rows = text.tied_rows(found)
    return Page(
        title=f"The best frozen feature of {config.backbone} on {task.source.name}",
        cell=f"block {cell.block} at timestep {cell.timestep} (sigma {rounded(task.space.sigmas[cell.timestep], 3)}), "
        f"pooled to {cell.pooling} x {cell.pooling}, under the head {cell.head} ({answer.result.params['setting']})",
        accuracy=text.accuracy_text(answer.result, task.measure),
        says=SAYS[task.measure],
        test=test_text(read_test(found.folder), found.folder, cell.name),
        facts={"how sure": text.sure(found)} | {n: fact for n, fact in text.facts(found).items() if n != "answer"},
        tied=Table(header, rows),
        sections=drawn,
        command=hidden(command_of(config, "layer_noise")),
        words={word: meaning for word, meaning in WORDS.items() if task.is_balanced or word != "balanced accuracy"},
        versions=versions(model=task.source.key.backbone[:12], images=task.source.key.images[:12]),
    )


def results(found: Findings, config: ModelAndData) -> dict[str, Any]:
    """All numbers, as JSON knows them."""
    screened = found.screening.accuracy
    return {
        "task": found.task.name,
        "flags": as_flags(with_whole_paths(config)),
        "answer": as_json(found.answer.trial),
        "best": as_json(found.answer.best),
        "cheapest": as_json(found.answer.cheapest),
        "tied": [as_json(trial) for trial in found.answer.tied],
        "raw_pixels": numbers(found.raw_pixels) if found.raw_pixels else None,
        "cost": asdict(found.cost),
        "images": list(found.task.notes),
        "blocks": list(found.task.space.block_names),
        f"ridge_{found.task.metric}": np.where(np.isnan(screened), np.array(None), screened).tolist(),
        "timesteps_at": {
            num_images: list(answers)
            for num_images, answers in zip(found.screening.rules.rounds, found.screening.rounds, strict=True)
        },
        "left": found.screening.ranked,
        "began": found.began,
        **found.label_free.as_json(),
        "label_free_trust": {name: asdict(one) for name, one in found.label_free.trust(screened).items()},
    }


def as_json(trial: Trial) -> dict[str, Any]:
    """A trial without the per-image answers."""
    return {"cell": asdict(trial.cell), "num_images": trial.rung, **numbers(trial.last)}


def numbers(result: Result) -> dict[str, Any]:
    return {**result.metrics, **result.params, "run_seconds": result.run_seconds}
