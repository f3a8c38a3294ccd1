"""Writes what an ablation has found into its folder, and logs it."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ddae.report import page
from ddae.report.noise_curves import noise_curves
from ddae.report.page import Page, Section, Table
from ddae.report.training import along_training
from storage.secrets import hidden
from storage.tracking import Tracker
from sweeps.ablation.findings import Findings, statements
from sweeps.cli import aligned
from sweeps.findings.publish import Publication, trial_tables
from sweeps.findings.publish import publish as publish_sweep
from sweeps.findings.versions import versions
from sweeps.flags import as_flags, command_of
from sweeps.noise_ablation import NoiseAblation
from sweeps.probing.source import absolute

HEADER = "configuration", "steps", "val accuracy", "at", "FD", "FD from real", "real-real FD"
WORDS = {word: page.WORDS[word] for word in ("block", "timestep, t", "sigma", "pooling", "cell, trial")} | {
    "FD": "Fréchet distance between samples and real images under the extractor; lower is better. Its floor is that "
    "between as many real images and other real ones.",
    "from real": "Samples that begin at noised real images: a schedule whose last timestep holds some of the image "
    "never saw noise alone.",
    "amplitude left": "The factor of the image at the noisiest timestep.",
    "\N{PLUS-MINUS SIGN}": page.WORDS["\N{PLUS-MINUS SIGN}"],
}


def publish(found: Findings, config: NoiseAblation, tracker: Tracker) -> None:
    publication = Publication(
        report(found),
        draw=lambda: sections(found),
        page=lambda drawn: page_of(found, config, drawn),
        tables=trial_tables(found),
        trials=[(found.task, trial) for trial in found.tried],
        metrics={"wall_seconds": found.wall_seconds},
        note=lambda: answer_text(found),
        results=lambda: results(found, config),
    )
    publish_sweep(publication, found.folder, tracker)


def flags_of(config: NoiseAblation) -> dict[str, Any]:
    """As plain YAML and JSON know them, for any working folder."""
    out = config.out.absolute()
    return as_flags(
        replace(config, dataset=absolute(config.dataset), out=out, store=str(Path(config.store).absolute()))
    )


def answer_text(found: Findings) -> str:
    if not (best := found.best):
        return "every network diverged; lower --learning-rate"
    name = max(best, key=lambda name: best[name].metrics["val_accuracy"])
    metrics = best[name].metrics
    return f"{name} has the best features: {percent(metrics)} % on val, mean of {found.task.probing.num_seeds} seeds"


def percent(metrics: Any) -> str:
    return f"{100 * metrics['val_accuracy']:.1f} +- {100 * metrics['val_stderr']:.1f}"


def report(found: Findings) -> str:
    """What a person reads at the end."""
    said = [(sentence, holds, numbers) for sentence, holds, numbers in statements(found)]
    facts = {"answer": answer_text(found), "best in both": ", ".join(found.front)}
    if found.diverged:
        facts["diverged"] = ", ".join(found.diverged)
    facts |= {
        "report": str(found.folder / "report.html"),
        "trials": found.tracked,
        "time": f"{found.wall_seconds:.0f} s",
    }
    lines = [*aligned([HEADER, *rows(found)]), "", *aligned(schedule_rows(found)), ""]
    lines += [f"{sentence} {holds.capitalize()} here: {numbers}" for sentence, holds, numbers in said]
    return "\n".join([*lines, "", *(f"{name:<14}{fact}" for name, fact in facts.items())])


def rows(found: Findings) -> list[tuple[str, ...]]:
    """Every configuration along its training."""
    return [
        (
            name,
            f"{steps:,}",
            percent(result.metrics),
            f"{result.params['block']}, t = {result.params['timestep']}, sigma {result.params['sigma']:.2g}",
            f"{result.metrics['fd']:.4g} +- {result.metrics['fd_stderr']:.2g}",
            f"{result.metrics['fd_from_real']:.4g}",
            f"{result.metrics['fd_floor']:.2g}",
        )
        for name, course in found.courses.items()
        for steps, result in course
    ]


def schedule_rows(found: Findings) -> list[tuple[str, ...]]:
    """What each schedule leaves of the image, and its range of noise."""
    header = "configuration", "timesteps", "amplitude left", "least sigma", "most sigma"
    names = "timesteps", "amplitude_left", "sigma_least", "sigma_most"
    return [header, *((name, *(f"{result.params[each]:.3g}" for each in names)) for name, result in found.last.items())]


def page_of(found: Findings, config: NoiseAblation, drawn: Sequence[Section]) -> Page:
    best = found.best
    name = max(best, key=lambda name: best[name].metrics["val_accuracy"]) if best else ""
    return Page(
        title=f"The noise of pre-training on {config.dataset}",
        cell=name or "no network",
        accuracy=percent(best[name].metrics) if best else "0",
        test="The test images have not been classified.",
        facts={"answer": answer_text(found), "time": f"{found.wall_seconds:.0f} s", "trials": found.tracked},
        tied=Table(("Xiang et al. 2023", "here", "numbers"), statements(found)),
        sections=drawn,
        command=hidden(command_of(config, "noise_ablation")),
        versions=versions(images=found.task.images[:12]),
        says="of the val images are classified correctly by the best features, at",
        words=WORDS,
    )


def sections(found: Findings) -> list[Section]:
    figures = found.folder / "figures"
    lines = {
        name: [(r.metrics["fd"], r.metrics["val_accuracy"], r.metrics["val_stderr"]) for _, r in course]
        for name, course in found.courses.items()
    }
    header, *schedules = schedule_rows(found)
    return [
        Section(
            "Do networks that generate better recognise better?",
            answer_text(found) + ".",
            "A line for each configuration, a dot for each snapshot, the last one filled; bars are standard errors. No "
            f"snapshot is better in both than {', '.join(found.front)}.",
            along_training(lines, figures / "generation.png"),
            "val accuracy against FD along training",
            Table(HEADER, rows(found)),
        ),
        Section(
            "At which noise level are the features best?",
            "The same sigma is another t in each schedule.",
            "Leave-one-out accuracy of ridge regression on training images at the best block, of the last snapshot.",
            noise_curves(
                {name: found.sigma_curve(name) for name in found.last}, {}, figures / "sigma.png", "accuracy (%)"
            ),
            "accuracy against sigma, a line for each configuration",
            Table(tuple(header), schedules),
        ),
    ]


def results(found: Findings, config: NoiseAblation) -> dict[str, Any]:
    """All numbers, as JSON knows them."""
    best = max(found.tried, key=lambda trial: trial.last.metrics["val_accuracy"])
    return {
        "task": found.task.name,
        "flags": flags_of(config),
        "answer": {"cell": asdict(best.cell), **best.last.metrics},
        "best_in_both": found.front,
        "cells": [{**asdict(t.cell), **t.last.metrics, **t.last.params} for t in found.tried],
        "statements": [list(each) for each in statements(found)],
        "wall_seconds": found.wall_seconds,
    }
