"""Writes what a sweep of feature learning has found into its folder, and logs it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ddae.feature_learning import ORDERS
from ddae.report.page import WORDS as EVERY_WORD
from ddae.report.page import Page, Section, Table
from storage.tracking import Tracker
from sweeps.cli import aligned
from sweeps.dynamics.figures import sections
from sweeps.dynamics.findings import BALANCED, Findings, Measured, Summary, curve
from sweeps.dynamics.images import image_header, image_lines
from sweeps.feature_learning import FeatureLearning
from sweeps.findings.publish import Publication
from sweeps.findings.publish import publish as publish_sweep
from sweeps.findings.table import write_csv
from sweeps.findings.versions import versions
from sweeps.flags import as_flags, command_of
from sweeps.search.study import write_study
from sweeps.search.task import Task, Trial

WORDS = {
    "signal, noise": "The two patches of a sample: what its class has in common, and what is its own.",
    "inner product": "How far a filter points at a patch: the largest over the filters, and the mean over the patches.",
    "balance": "The weaker of both inner products as a share of the stronger.",
    "n SNR^2": "Samples times the square of |mu| / (sigma_xi sqrt(d)), the norm of the signal over that of the noise.",
    "p": "The order of early growth, dx/dt ~ x^p: 0 is a straight line, 1 an exponential, 2 faster than any.",
    "diffusion": "The network tells the noise that was added to a sample; its loss is in closed form.",
    "noised-classifier": "The classifier, trained on samples with fresh noise added at every step.",
    "autoencoder": "The denoiser's network, trained to give back samples without any noise.",
    "\N{PLUS-MINUS SIGN}": f"{EVERY_WORD[chr(0xB1)]} Here over seeds.",
}


def publish(found: Findings, config: FeatureLearning, tracker: Tracker) -> None:
    tables: dict[str, Callable[[Path], object]] = {"trials.csv": lambda path: write_csv(path, found.rows, ".6g")}
    if found.image_rows:
        tables["images.csv"] = lambda path: write_csv(path, found.image_rows, ".6g")
    tables["optuna.log"] = lambda path: write_study(path, found.patches, found.trials)
    trials: list[tuple[Task, Trial]] = [(found.patches, trial) for trial in found.trials]
    if found.images:
        trials += [(found.images, trial) for trial in found.image_trials]
    publication = Publication(
        report(found),
        draw=lambda: sections(found),
        page=lambda drawn: page_of(found, config, drawn),
        tables=tables,
        trials=trials,
        metrics=metrics(found),
        note=lambda: answer_text(found),
        results=lambda: results(found, config),
    )
    publish_sweep(publication, found.folder, tracker)


def report(found: Findings) -> str:
    """What a person reads at the end."""
    lines = {"answer": answer_text(found)} | facts(found) | {"report": str(found.folder / "report.html")}
    images = []
    if found.image_trials:
        images = ["images beside noise, %", "", *aligned([image_header(found), *image_lines(found)]), ""]
    return "\n".join(
        [
            "what theory says, and what was found; +- is the standard error over seeds",
            "",
            *aligned([header(found), *rows(found)]),
            "",
            *images,
            *(f"{name:<15}{fact}" for name, fact in lines.items()),
        ]
    )


def header(found: Findings) -> tuple[str, ...]:
    return ("", "theory", *found.summaries)


def rows(found: Findings) -> list[tuple[str, ...]]:
    """A line a measure, a column an objective, under header()."""
    each = found.summaries.values()
    orders = ", ".join(f"{name} {order}" for name, order in ORDERS.items() if name in found.summaries)
    text: Mapping[str, tuple[str, list[str]]] = {
        "early: p in dx/dt ~ x^p": (orders, [said(one.order) for one in each]),
        "early: signal's growth over noise's": ("0.5 (n SNR^2)^1", [law(one) for one in each]),
        "end: signal over noise, from": ("", [f"{one.least:.3g}" for one in each]),
        "end: to": ("", [f"{one.largest:.3g}" for one in each]),
        "end: its exponent of n SNR^2": ("diffusion 1", [said(one.final_exponent) for one in each]),
        "end: 1 at n SNR^2 =": ("classifier 2", [said(one.crossing, "-") for one in each]),
        "end: balance, %": ("", [percent(one.balance) for one in each]),
        "diverged": ("", [str(one.num_diverged) for one in each]),
    }
    return [(name, theory, *numbers) for name, (theory, numbers) in text.items()]


def said(measured: Measured | None, otherwise: str = "") -> str:
    return otherwise if measured is None else str(measured)


def law(summary: Summary) -> str:
    if summary.growth_factor is None or summary.growth_exponent is None:
        return ""
    return f"{summary.growth_factor.mean:.2g} (n SNR^2)^{summary.growth_exponent.mean:.2f}"


def percent(measured: Measured) -> str:
    return f"{100 * measured.mean:.1f} +- {100 * measured.stderr:.1f}"


def answer_text(found: Findings) -> str:
    by_balance = sorted(found.summaries.items(), key=lambda each: -each[1].balance.mean)
    return "the weaker of signal and noise is, of the stronger, " + ", ".join(
        f"{percent(summary.balance)} % by {name}" for name, summary in by_balance
    )


def facts(found: Findings) -> dict[str, str]:
    task = found.patches
    snrs = [snr for snr, _ in curve(task, [trial for trial in found.trials if "ratio" in trial.last.metrics])]
    lines = {
        "trained": f"{len(found.trials)} times, n SNR^2 from {min(snrs, default=0):.2g} to {max(snrs, default=0):.3g}",
        "balanced": "; ".join(f"{name}: {balanced(found, name)}" for name in found.summaries),
        "same product": "; ".join(f"{name}: {same_product(found, name)}" for name in found.summaries),
        "did not end": ", ".join(
            f"{name} {sum(trial.last.params['ended'] == 'all steps' for trial in found.of(name))}"
            for name in found.summaries
        )
        + f" trainings took all {task.rungs[-1]:,} steps",
        "trials": found.tracked,
        "time": f"{found.wall_seconds:.0f} s",
    }
    return lines


def balanced(found: Findings, objective: str) -> str:
    ratios = [trial.last.metrics.get("ratio", 0) for trial in found.of(objective)]
    inside = sum(1 / BALANCED < ratio < BALANCED for ratio in ratios)
    return f"{inside} of {len(ratios)} within a factor of {BALANCED:g}"


def same_product(found: Findings, objective: str) -> str:
    """How far ratios are apart where n SNR^2 is the same by another n."""
    whole = [trial for trial in found.of(objective) if "ratio" in trial.last.metrics]
    by_snr: dict[float, list[float]] = {}
    for snr, ratio in curve(found.patches, whole):
        by_snr.setdefault(round(snr, 2), []).append(ratio)
    apart = [max(ratios) / min(ratios) for ratios in by_snr.values() if len(ratios) > 1]
    return f"at most {max(apart):.3g} times apart" if apart else "no two n give one n SNR^2"


def metrics(found: Findings) -> dict[str, float]:
    """What MLflow has of the whole sweep."""
    by_objective = {f"balance_{name}": summary.balance.mean for name, summary in found.summaries.items()}
    return {**by_objective, "wall_seconds": found.wall_seconds}


def page_of(found: Findings, config: FeatureLearning, drawn: Sequence[Section]) -> Page:
    first, summary = next(iter(found.summaries.items()))
    task = found.patches
    return Page(
        title="What a small network learns of signal and of noise",
        cell=f"trained as {first}, over n = {listed(task.num_samples)} and |mu| = {listed(task.signal_norms)}",
        accuracy=percent(summary.balance),
        test="Nothing is chosen here, and there is no test set.",
        facts={"answer": answer_text(found)} | facts(found),
        tied=Table(header(found), rows(found)),
        sections=drawn,
        command=command_of(config, "feature_learning"),
        versions=versions(),
        says="of the stronger of signal and noise is what the weaker comes to at the end, on average, in a network",
        words=WORDS,
    )


def listed(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:.3g}" for number in numbers)


def results(found: Findings, config: FeatureLearning) -> dict[str, Any]:
    """All numbers, as JSON knows them."""
    best = max(found.trials, key=lambda trial: trial.last.metrics["balance"])
    return {
        "task": found.patches.name,
        "flags": as_flags(config),
        "answer": {"cell": asdict(best.cell), **best.last.metrics, **best.last.params},
        "summaries": {name: asdict(summary) for name, summary in found.summaries.items()},
        "trials": found.rows,
        "images": found.image_rows,
        "wall_seconds": found.wall_seconds,
    }
