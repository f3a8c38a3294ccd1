"""Writes what a fine-tuning sweep has found into its folder, and logs it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from shlex import quote
from typing import Any

from ddae.report import page
from ddae.report.page import Page, Section, Table
from ddae.report.training import accuracy_curves
from ddae.units import rounded
from storage.secrets import hidden
from storage.tracking import Tracker
from sweeps.cli import aligned
from sweeps.findings.folder import read_test, test_text
from sweeps.findings.publish import Publication
from sweeps.findings.publish import publish as publish_sweep
from sweeps.findings.table import write_csv
from sweeps.findings.versions import versions
from sweeps.finetune import Finetune
from sweeps.finetuning.findings import Findings, Outcome
from sweeps.finetuning.task import FinetuneTask
from sweeps.flags import as_flags, command_of
from sweeps.probing.source import with_whole_paths
from sweeps.search.task import Trial

WORDS = {word: page.WORDS[word] for word in ("block", "timestep, t", "pooling", "head", "cell, trial")} | {
    "finetune, scratch, frozen": "The network is trained whole from its pre-trained weights, or from random ones, or "
    "stays as it is, and the head alone is trained.",
    "learning rate, weight decay": "How far a step of training goes, and how strongly it pulls the weights to zero.",
    "head start": "Training begins with an untrained head (fresh), or with one fitted on frozen features (probe).",
    "augment": "How a training image is changed each time it is seen: flipped and cropped, cropped, or not at all.",
    "seconds": "What the training took, with val.",
    **{word: page.WORDS[word] for word in ("val, test", "\N{PLUS-MINUS SIGN}")},
}
HEADER = (
    "labels", "start", "val accuracy", "learning rate", "weight decay", "head start", "augment", "cut after", "t",
    "seconds",
)  # fmt: skip


def publish(found: Findings, config: Finetune, tracker: Tracker, trials: Sequence[tuple[FinetuneTask, Trial]]) -> None:
    """trials: all of them, those of other seeds too."""
    publication = Publication(
        report(found),
        draw=lambda: sections(found),
        page=lambda drawn: page_of(found, config, drawn),
        tables={"trials.csv": lambda path: write_csv(path, found.trials)},
        trials=trials,
        metrics={**found.answer.result.metrics, "wall_seconds": found.wall_seconds},
        note=lambda: answer_text(found),
        results=lambda: results(found, config),
    )
    publish_sweep(publication, found.folder, tracker)


def report(found: Findings) -> str:
    """What a person reads at the end."""
    facts_of = {"answer": answer_text(found)} | facts(found) | {"report": str(found.folder / "report.html")}
    commands = {"test it, once": "final_test", "use it": "hand_over"}
    facts_of |= {
        name: f"python sweeps/{script}.py --sweep {quote(str(found.folder))}" for name, script in commands.items()
    }
    lines = [f"{name:<15}{fact}" for name, fact in facts_of.items()]
    return "\n".join(
        [
            f"best on val for every start and number of labels, {how(found)}",
            "",
            *aligned([HEADER, *rows(found)]),
            "",
            *lines,
        ]
    )


def how(found: Findings) -> str:
    num_seeds = len(found.outcomes[0].accuracies)
    seeds, over = (f"{num_seeds} seeds", "them") if num_seeds > 1 else ("one seed", "the val images")
    return f"{seeds} each; +- is the standard error over {over}"


def rows(found: Findings) -> list[tuple[str, ...]]:
    """One an outcome, under HEADER."""
    return [
        (
            f"{cell.num_labels:,}",
            outcome.start,
            percent(outcome),
            f"{cell.learning_rate:g}" if cell.init != "frozen" else "",
            f"{cell.weight_decay:g}" if cell.init != "frozen" else "",
            cell.head_start,
            cell.augment,
            cell.cut,
            str(cell.timestep),
            f"{outcome.seconds:.0f}",
        )
        for outcome in sorted(found.outcomes, key=lambda each: (each.cell.num_labels, -each.accuracy))
        for cell in [outcome.cell]
    ]


def facts(found: Findings) -> dict[str, str]:
    task = found.task
    return {
        "kept": "; ".join(
            f"after {cut}: {kept.num_parameters / 1e6:.2f}M parameters, {kept.share_of_parameters:.0%} of the network, "
            f"and {kept.share_of_forward:.0%} of a forward pass"
            for cut, kept in found.kept.items()
        ),
        "read": f"pooled to {task.pooling} x {task.pooling}, under the head {task.head}, images "
        f"{'noised at the timestep' if task.noised else 'without noise'}",
        "images": "; ".join(found.notes),
        **balanced_fact(found),
        "trials": found.tracked,
        "time": f"{found.wall_seconds:.0f} s",
    }


def balanced_fact(found: Findings) -> dict[str, str]:
    """Balanced accuracy of the answer, where classes are uneven."""
    metrics = found.answer.result.metrics
    if "val_balanced_accuracy" not in metrics:
        return {}
    accuracy, stderr = (100 * metrics[f"val_balanced_{name}"] for name in ("accuracy", "stderr"))
    return {"balanced": f"{accuracy:.1f} +- {stderr:.1f} % is the mean of the classes' accuracies"}


def page_of(found: Findings, config: Finetune, drawn: Sequence[Section]) -> Page:
    answer, task = found.answer, found.task
    cell, metrics = answer.cell, answer.result.metrics
    name = task.label(cell)
    return Page(
        title=f"{config.backbone}, cut and trained as a classifier of {task.source.name}",
        cell=f"{cell.init}, cut after {cell.cut}, told timestep {cell.timestep}, on {cell.num_labels:,} labels "
        f"({answer.result.params['setting']})",
        accuracy=f"{100 * metrics['val_accuracy']:.1f} +- {100 * metrics['val_stderr']:.1f}",
        test=test_text(read_test(found.folder), found.folder, name),
        facts=facts(found),
        tied=Table(HEADER, rows(found)),
        sections=drawn,
        command=hidden(command_of(replace(config, sweep=None), "finetune")),
        versions=versions(model=task.source.key.backbone[:12], images=task.source.key.images[:12]),
        says="of the val images are classified correctly by the network",
        words=WORDS,
    )


def sections(found: Findings) -> list[Section]:
    """Accuracy against the number of labels, and against each of cut and timestep where several were tried."""
    figures = found.folder / "figures"
    counts = sorted({outcome.cell.num_labels for outcome in found.outcomes})
    figure = accuracy_curves(curves(found), "labelled images", figures / "labels.png", log=len(counts) > 1)
    alt = "val accuracy against the number of labelled images, one line a start"
    said = " ".join(standing(found, count) for count in dict.fromkeys((counts[0], counts[-1])))
    how_to_read = f"Best of a search on val, {how(found)}."
    drawn = [Section("How many labels does it need?", said, how_to_read, figure, alt)]
    axes = {
        "cut": ("Where should the network be cut?", "share of the forward pass that is kept"),
        "timestep": ("Which timestep should it be told?", "timestep that is told"),
    }
    for axis, (title, label) in axes.items():
        points = by_axis(found, axis)
        if max(map(len, points.values()), default=0) > 1:
            figure = accuracy_curves(points, label, figures / f"{axis}.png")
            said = "; ".join(f"{name}: {spread(line)}" for name, line in points.items())
            own = f"Each the best of a search of its own, {how(found)}."
            drawn.append(Section(title, f"{said}.", own, figure, f"accuracy against {label}"))
    return drawn


def standing(found: Findings, count: int) -> str:
    """The outcomes on so many labels in a sentence, best first."""
    outcomes = [outcome for outcome in found.outcomes if outcome.cell.num_labels == count]
    ranked = sorted(outcomes, key=lambda each: -each.accuracy)
    return f"{count:,} labels: {', '.join(f'{each.start} {percent(each)} %' for each in ranked)}."


def spread(line: list[tuple[float, float, float]]) -> str:
    """How much a choice matters, from its points (number, accuracy, standard error)."""
    lowest, highest = (choose(line, key=lambda point: point[1]) for choose in (min, max))
    points = 100 * (highest[1] - lowest[1])
    return f"{points:.1f} points between the best ({rounded(highest[0])}) and the worst ({rounded(lowest[0])})"


def answer_text(found: Findings) -> str:
    answer = found.answer
    metrics = answer.result.metrics
    accuracy = f"{100 * metrics['val_accuracy']:.1f} +- {100 * metrics['val_stderr']:.1f}"
    return f"{found.task.label(answer.cell)}: {accuracy} % on val"


def percent(outcome: Outcome) -> str:
    return f"{100 * outcome.accuracy:.1f} +- {100 * outcome.stderr:.1f}"


def curves(found: Findings) -> Mapping[str, list[tuple[float, float, float]]]:
    """start -> (labelled images, accuracy, standard error), of its best cut and timestep."""
    best: dict[str, dict[int, Outcome]] = defaultdict(dict)
    for outcome in sorted(found.outcomes, key=lambda each: each.accuracy):
        best[outcome.start][outcome.cell.num_labels] = outcome
    return {
        start: [(count, outcome.accuracy, outcome.stderr) for count, outcome in sorted(outcomes.items())]
        for start, outcomes in sorted(best.items())
    }


def by_axis(found: Findings, axis: str) -> Mapping[str, list[tuple[float, float, float]]]:
    """What stays the same -> (where it is on the axis, accuracy, standard error). axis: cut or timestep."""
    lines: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    own = [outcome for outcome in found.outcomes if outcome.start == outcome.cell.init]
    other = "timestep" if axis == "cut" else "cut"
    several = len({getattr(outcome.cell, other) for outcome in own}) > 1
    for outcome in own:
        cell = outcome.cell
        same = f", {other} {getattr(cell, other)}" if several else ""
        place = found.kept[cell.cut].share_of_forward if axis == "cut" else float(cell.timestep)
        lines[f"{outcome.start}, {cell.num_labels:,} labels{same}"].append((place, outcome.accuracy, outcome.stderr))
    return {name: sorted(points) for name, points in lines.items()}


def results(found: Findings, config: Finetune) -> dict[str, Any]:
    """All numbers, as JSON knows them."""
    answer = found.answer
    return {
        "task": found.task.name,
        "flags": as_flags(with_whole_paths(config)),
        "answer": {"cell": asdict(answer.cell), **answer.result.metrics, **answer.result.params},
        "outcomes": [
            asdict(outcome) | {"accuracy": outcome.accuracy, "stderr": outcome.stderr} for outcome in found.outcomes
        ],
        "kept": {cut: asdict(kept) for cut, kept in found.kept.items()},
        "wall_seconds": found.wall_seconds,
    }
