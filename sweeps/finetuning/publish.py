"""Writes what a fine-tuning sweep has found into its folder, and logs it."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ddae.report.training import accuracy_curves
from storage.tracking import Tracker
from sweeps.cli import aligned
from sweeps.findings.folder import write_results
from sweeps.findings.table import write_csv
from sweeps.finetuning.findings import Findings, Outcome
from sweeps.flags import ModelAndData, as_flags

FILES = "report.txt", "trials.csv", "config.yaml"


def publish(found: Findings, config: ModelAndData, tracker: Tracker) -> None:
    """results.json is written last: a sweep that has it is done."""
    folder = found.folder
    (folder / "report.txt").write_text(report(found))
    write_csv(folder / "trials.csv", found.trials)
    (folder / "figures").mkdir(exist_ok=True)
    counts = {outcome.cell.num_labels for outcome in found.outcomes}
    accuracy_curves(curves(found), "labelled images", folder / "figures" / "labels.png", log=len(counts) > 1)
    for axis, label in (("cut", "share of the forward pass that is kept"), ("timestep", "timestep that is told")):
        if len(points := by_axis(found, axis)) and max(map(len, points.values())) > 1:
            accuracy_curves(points, label, folder / "figures" / f"{axis}.png")
    tracker.finish(
        {**found.answer.result.metrics, "wall_seconds": found.wall_seconds},
        [*sorted((folder / "figures").glob("*.png")), *(folder / name for name in FILES)],
        answer_text(found),
    )
    write_results(folder, results(found, config))


def report(found: Findings) -> str:
    """What a person reads at the end."""
    rows = [("labels", "start", "val accuracy", "learning rate", "decay", "head", "cut after", "t", "seconds")]
    for outcome in sorted(found.outcomes, key=lambda each: (each.cell.num_labels, -each.accuracy)):
        cell, trained = outcome.cell, outcome.cell.init != "frozen"
        rows.append(
            (
                f"{cell.num_labels:,}",
                cell.init,
                percent(outcome),
                f"{cell.learning_rate:g}" if trained else "",
                f"{cell.weight_decay:g}" if trained else "",
                cell.head_start,
                cell.cut,
                str(cell.timestep),
                f"{outcome.seconds:.0f}",
            )
        )
    num_seeds = len(found.outcomes[0].accuracies)
    task = found.task
    how = f"{num_seeds} seeds each; +- is the standard error over them" if num_seeds > 1 else "one seed each"
    return "\n".join(
        [
            f"best on val for every start and number of labels, {how}; pooled to {task.pooling} x {task.pooling}, "
            f"under {task.head}",
            "",
            *aligned(rows),
            "",
            *(
                f"kept           after {cut} {kept.num_parameters / 1e6:.2f}M parameters "
                f"({kept.share_of_parameters:.0%} of the network), {kept.share_of_forward:.0%} of a forward pass"
                for cut, kept in found.kept.items()
            ),
            f"answer         {answer_text(found)}",
            f"figure         {found.folder / 'figures' / 'labels.png'}",
            f"trials         {found.tracked}",
            f"time           {found.wall_seconds:.0f} s",
            f"test it, once  python sweeps/final_test.py --sweep {found.folder}",
            f"use it         python sweeps/hand_over.py --sweep {found.folder}",
        ]
    )


def answer_text(found: Findings) -> str:
    answer = found.answer
    metrics = answer.result.metrics
    accuracy = f"{100 * metrics['val_accuracy']:.1f} +- {100 * metrics['val_stderr']:.1f}"
    return f"{found.task.label(answer.cell)}: {accuracy} % on val"


def percent(outcome: Outcome) -> str:
    return f"{100 * outcome.accuracy:.1f} +- {100 * outcome.stderr:.1f}"


def curves(found: Findings) -> Mapping[str, list[tuple[float, float, float]]]:
    """start -> (labelled images, accuracy, standard error)."""
    lines: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for outcome in found.outcomes:
        lines[outcome.cell.init].append((outcome.cell.num_labels, outcome.accuracy, outcome.stderr))
    return {name: sorted(points) for name, points in lines.items()}


def by_axis(found: Findings, axis: str) -> Mapping[str, list[tuple[float, float, float]]]:
    """start and number of labels -> (where it is on the axis, accuracy of the best trial there, standard error)."""
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for task, trials in found.searches:
        best: dict[Any, Any] = {}
        for trial in (trial for trial in trials if trial.state == "finished"):
            value, result = getattr(trial.cell, axis), trial.last
            if value not in best or result.metrics["val_accuracy"] > best[value].metrics["val_accuracy"]:
                best[value] = result
        place = (lambda cut: found.kept[cut].share_of_forward) if axis == "cut" else float
        points = [(place(v), r.metrics["val_accuracy"], r.metrics["val_stderr"]) for v, r in best.items()]
        lines[f"{task.inits[0]}, {task.num_labels[0]:,} labels"] = sorted(points)
    return lines


def results(found: Findings, config: ModelAndData) -> dict[str, Any]:
    """All numbers, as JSON knows them."""
    answer = found.answer
    return {
        "task": found.task.name,
        "flags": as_flags(config),
        "answer": {"cell": asdict(answer.cell), **answer.result.metrics, **answer.result.params},
        "outcomes": [
            asdict(outcome) | {"accuracy": outcome.accuracy, "stderr": outcome.stderr} for outcome in found.outcomes
        ],
        "kept": {cut: asdict(kept) for cut, kept in found.kept.items()},
        "wall_seconds": found.wall_seconds,
    }
