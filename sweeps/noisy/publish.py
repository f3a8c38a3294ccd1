"""Writes what a sweep of noise-conditional classifiers has found into its folder, and logs it."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from ddae.report import page
from ddae.report.noise_curves import noise_curves
from ddae.report.page import Page, Section, Table
from storage.secrets import hidden
from storage.tracking import Tracker
from sweeps.cli import aligned
from sweeps.findings.publish import Publication, trial_tables
from sweeps.findings.publish import publish as publish_sweep
from sweeps.findings.versions import versions
from sweeps.flags import as_flags, command_of
from sweeps.noisy.findings import OWN, Findings
from sweeps.noisy.task import official
from sweeps.noisy_classifier import NoiseConditional
from sweeps.probing.source import with_whole_paths
from sweeps.search.task import Task, Trial

SHOWN = 10
"""So many levels of the grid are in the text; levels.csv and results.json have all."""
WORDS = {word: page.WORDS[word] for word in ("block", "timestep, t", "sigma", "pooling", "head", "cell, trial")} | {
    "shared head": "One head for all noise levels, with one hidden layer.",
    OWN: "A linear head, by ridge or logistic regression, that is fitted at this level alone, on "
    "one noise draw of the same images; the better of both on val.",
    "tau": "An embedding of the noise level that is added to the feature before the head.",
    "uniform-t, log-sigma": "How often a level is trained on: as often as it is nearest to a timestep drawn uniformly, "
    "or every level of the grid alike.",
    "standardise": "Every number of a feature is brought to mean 0 and deviation 1 at its noise level, or none is.",
    "between": "Levels in the middle between those of the grid, which no training of a shared head saw.",
    **{word: page.WORDS[word] for word in ("val, test", "\N{PLUS-MINUS SIGN}")},
}


def publish(found: Findings, config: NoiseConditional, tracker: Tracker) -> None:
    trials: list[tuple[Task, Trial]] = [(found.task, trial) for trial in (*found.tried, *found.recipes.values())]
    publication = Publication(
        report(found),
        draw=lambda: sections(found),
        page=lambda drawn: page_of(found, config, drawn),
        tables={**trial_tables(found), "levels.csv": lambda path: write_levels(path, found)},
        trials=[*trials, *found.baselines.values()],
        metrics={**found.answer.last.metrics, "wall_seconds": found.wall_seconds},
        note=lambda: answer_text(found),
        results=lambda: results(found, config),
        more_files=["noisy_classifier.json"],
    )
    publish_sweep(publication, found.folder, tracker)


def report(found: Findings) -> str:
    """What a person reads at the end."""
    lines = {"answer": answer_text(found)} | facts(found) | {"report": str(found.folder / "report.html")}
    lines["load it"] = f"NoisyClassifier.load({str(found.folder)!r}), of ddae.noisy_classifier"
    lines["guide by it"] = f"python sweeps/guide.py --classifier {quote(str(found.folder))}"
    header, rows = table(found, found.correct, some=True)
    recipes_header, recipes_rows = table(found, found.of_recipes, some=True)
    return "\n".join(
        [
            "val accuracy (%) against the noise level",
            "",
            *aligned([header, *rows]),
            "",
            f"DDAE's recipe, what is changed of it, and a head at each level, at {found.cell.block} pooled to 1 x 1",
            "",
            *aligned([recipes_header, *recipes_rows]),
            "",
            *(f"{name:<15}{fact}" for name, fact in lines.items()),
        ]
    )


def table(
    found: Findings, correct: Mapping[str, np.ndarray], some: bool = False
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: accuracy at each level of the grid, or at some of them, its mean, and the mean over the levels
    between."""
    curves = {name: found.curve(each) for name, each in correct.items()}
    timesteps = list(found.task.grid)
    places = np.unique(np.linspace(0, len(timesteps) - 1, SHOWN).round().astype(int)) if some else range(len(timesteps))
    rows = [
        (
            str(timesteps[place]),
            f"{next(iter(curves.values()))[place][0]:.3g}",
            *(percent(*curve[place][1:]) for curve in curves.values()),
        )
        for place in places
    ]
    means = [found.means(each) for each in correct.values()]
    rows.append(("mean", "grid", *(percent(*mean) for mean, _ in means)))
    if found.task.between:
        rows.append(("mean", "between", *(percent(*inside) if inside else "" for _, inside in means)))
    return ("t", "sigma", *correct), rows


def percent(accuracy: float, stderr: float) -> str:
    return f"{100 * accuracy:.1f} +- {100 * stderr:.1f}"


def answer_text(found: Findings) -> str:
    metrics, name = found.answer.last.metrics, found.task.label(found.cell)
    says = f"{name}: {percent(metrics['val_accuracy'], metrics['val_stderr'])} % on val, the mean over the noise levels"
    return f"{says}; {len(found.tied)} of {len(found.tried)} cells are tied with it" * (len(found.tied) > 1) or says


def facts(found: Findings) -> dict[str, str]:
    task = found.task
    sizes = {name: f"{number / 1e6:.2f}M {name}" for name, number in found.num_parameters.items()}
    return {
        "trained on": f"{task.rungs[-1]:,} images x {len(task.grid)} levels x {task.num_draws} noise draws, "
        f"of {len(task.levels)} noise levels that there are",
        "least noise": collapse_text(found),
        **({"between": between_text(found)} if task.between else {}),
        "parameters": ", ".join(sizes.values()),
        "images": "; ".join(task.probing.notes),
        "chosen": f"among {len(found.tried)} cells by val, on which it is shown: a little too good",
        "passes": f"{found.new_passes:,.0f} full forward passes were run for it",
        "trials": found.tracked,
        "time": f"{found.wall_seconds:.0f} s",
    }


def collapse_text(found: Findings) -> str:
    """What happens at the level of least noise."""
    timestep = next(iter(found.task.grid))
    at = {name: found.curve(correct)[0][1:] for name, correct in found.of_recipes.items()}
    return f"at t = {timestep}: " + ", ".join(f"{name} {percent(*numbers)}" for name, numbers in at.items())


def between_text(found: Findings) -> str:
    """Whether levels that no training saw are classified as well as those that it saw: each against heads that are
    fitted at the level itself."""
    gained = found.correct["shared head"].astype(float) - found.correct[OWN]
    count = len(found.task.grid)
    seen, unseen = (points(each.mean(0)) for each in (gained[:count], gained[count:]))
    return (
        f"at {len(found.task.between)} levels that no training of it saw the shared head is {unseen} points from heads "
        f"that are fitted there; at the {count} that it saw, {seen}"
    )


def points(gained: np.ndarray) -> str:
    """The mean of what is gained on each image, in percent, and its paired standard error."""
    return f"{100 * gained.mean():+.1f} +- {100 * gained.std() / len(gained) ** 0.5:.1f}"


def page_of(found: Findings, config: NoiseConditional, drawn: Sequence[Section]) -> Page:
    cell, metrics = found.cell, found.answer.last.metrics
    return Page(
        title=f"A classifier of noised images: {config.backbone} on {found.task.source.name}",
        cell=f"{cell.block}, pooled to {cell.pooling} x {cell.pooling}, {cell.width}x hidden units, "
        f"{'told' if cell.embedding == 'tau' else 'not told'} the level, trained {cell.noise}, "
        f"{'standardised level by level' if cell.standardise == 'level' else 'features as they are'}",
        accuracy=f"{100 * metrics['val_accuracy']:.1f} +- {100 * metrics['val_stderr']:.1f}",
        test="The test images have not been looked at.",
        facts={"answer": answer_text(found)} | facts(found),
        tied=Table(("cell", "val accuracy", "at the least noise", "between"), tied_rows(found)),
        sections=drawn,
        command=hidden(command_of(config, "noisy_classifier")),
        versions=versions(model=found.task.source.key.backbone[:12], images=found.task.source.key.images[:12]),
        says="of the val images, the mean over all noise levels, are classified correctly by one head at",
        words=WORDS,
    )


def tied_rows(found: Findings) -> list[tuple[str, ...]]:
    rows = []
    for trial in found.tied:
        metrics = trial.last.metrics
        chosen = percent(metrics["val_accuracy"], metrics["val_stderr"])
        rest = (metrics.get(f"val_accuracy_{name}") for name in ("least_noise", "between"))
        shown = ("" if number is None else f"{100 * number:.1f}" for number in rest)
        rows.append((found.task.label(trial.cell), chosen, *shown))
    return rows


def sections(found: Findings) -> list[Section]:
    figures, drawn = found.folder / "figures", []
    asked = {
        "levels": ("How well does it classify at each noise level?", found.correct, answer_text(found)),
        "recipe": ("What becomes of DDAE's recipe at little noise?", found.of_recipes, collapse_text(found)),
    }
    for name, (title, correct, said) in asked.items():
        curves = {who: found.curve(each) for who, each in correct.items()}
        inside = {who: found.curve(each, between=True) for who, each in correct.items()}
        drawn.append(
            Section(
                title,
                f"{said}.",
                "Bars are standard errors over the val images; hollow points are levels that no training of a shared "
                "head saw.",
                noise_curves(curves, inside, figures / f"{name}.png"),
                "val accuracy against sigma, a line for each way to classify",
                Table(*table(found, correct)),
            )
        )
    return drawn


def write_levels(path: Path, found: Findings) -> None:
    """Every number of the curves as CSV: who, sigma, timestep, whether it lies between, accuracy, standard error."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["who", "timestep", "sigma", "between", "accuracy", "stderr"])
        for row in level_rows(found):
            writer.writerow(row.values())


def level_rows(found: Findings) -> list[dict[str, Any]]:
    rows = []
    of_recipe = {f"{name}, 1 x 1": each for name, each in found.of_recipes.items()}
    for who, correct in {**found.correct, **of_recipe}.items():
        for is_between, levels in ((False, found.task.grid), (True, found.task.between)):
            for timestep, (sigma, accuracy, stderr) in zip(levels, found.curve(correct, is_between), strict=True):
                numbers = {"sigma": sigma, "between": is_between, "accuracy": accuracy, "stderr": stderr}
                rows.append({"who": who, "timestep": timestep, **numbers})
    return rows


def results(found: Findings, config: NoiseConditional) -> dict[str, Any]:
    """All numbers, as JSON knows them."""
    answer = found.answer
    return {
        "task": found.task.name,
        "flags": as_flags(with_whole_paths(config)),
        "answer": {"cell": asdict(answer.cell), **answer.last.metrics},
        "tied": [asdict(trial.cell) for trial in found.tied],
        "official": asdict(official(answer.cell.block)),
        "recipes": {name: {"cell": asdict(t.cell), **t.last.metrics} for name, t in found.recipes.items()},
        "baselines": {name: {**t.last.metrics, **t.last.params} for name, (_, t) in found.baselines.items()},
        "levels": level_rows(found),
        "num_parameters": dict(found.num_parameters),
        "new_passes": found.new_passes,
        "wall_seconds": found.wall_seconds,
    }
