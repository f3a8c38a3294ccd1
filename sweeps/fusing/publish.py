"""Writes what a fusing sweep has found into its folder, and logs it."""

from collections.abc import Sequence
from dataclasses import asdict
from shlex import quote
from typing import Any

from ddae.fusion import at_timesteps, name_of
from ddae.report import page
from ddae.report.page import Page, Section, Table
from ddae.report.training import accuracy_curves
from storage.tracking import Tracker
from sweeps.cli import aligned
from sweeps.findings.folder import read_test, test_text
from sweeps.findings.publish import Publication, trial_tables
from sweeps.findings.publish import publish as publish_sweep
from sweeps.findings.versions import versions
from sweeps.flags import as_flags, command_of
from sweeps.fuse import Fuse
from sweeps.fusing.findings import Findings, Fused
from sweeps.fusing.selection import Path

HEADER = "", "features", "pooling", "head", "passes an image", "numbers an image", "val", "gain"
WORDS = {word: page.WORDS[word] for word in ("block", "timestep, t", "pooling", "head", "cell, trial")} | {
    "passes an image": "Forward passes of the network; 1 is a full one. Blocks of one timestep share a pass.",
    "gain": "Points above the sweep's answer on the same val images, with its paired standard error.",
    "joint, stacked, average, attentive": "Heads that read several blocks; fuse.py --help says what each does.",
    **{word: page.WORDS[word] for word in ("val, test", "\N{PLUS-MINUS SIGN}")},
}


def publish(found: Findings, config: Fuse, tracker: Tracker) -> None:
    answer = found.answer
    publication = Publication(
        report(found),
        draw=lambda: sections(found),
        page=lambda drawn: page_of(found, config, drawn),
        tables=trial_tables(found),
        trials=[(found.task, trial) for trial in found.tried],
        metrics={
            **answer.trial.last.metrics,
            "gain": answer.gain,
            "gain_stderr": answer.stderr,
            "passes_an_image": answer.passes,
            "wall_seconds": found.wall_seconds,
        },
        note=lambda: answer_text(found),
        results=lambda: results(found, config),
    )
    publish_sweep(publication, found.folder, tracker)


def report(found: Findings) -> str:
    """What a person reads at the end."""
    lines = [f"{name:<15}{fact}" for name, fact in ({"answer": answer_text(found)} | facts(found)).items()]
    folder = quote(str(found.folder))
    return "\n".join(
        [
            "the sweep's answer, and the best sets of each number of timesteps, on all training images",
            "",
            *aligned([HEADER, *rows(found)]),
            "",
            *lines,
            f"{'report':<15}{found.folder / 'report.html'}",
            f"{'test it, once':<15}python sweeps/final_test.py --sweep {folder}",
            f"{'use it':<15}python sweeps/hand_over.py --sweep {folder}",
        ]
    )


def rows(found: Findings) -> list[tuple[str, ...]]:
    """One a member of `best`, under HEADER."""
    return [
        (
            "answer" if each is found.answer else "",
            shortened(found, each),
            str(each.cell.pooling),
            each.cell.head,
            f"{each.passes:.2f}",
            f"{each.num_features:,}",
            found.task.objectives[0].text(each.trial.last),
            "" if each is found.best[0] else points(each),
        )
        for each in found.best
    ]


def points(fused: Fused) -> str:
    return f"{100 * fused.gain:+.1f} +- {100 * fused.stderr:.1f}"


def shortened(found: Findings, fused: Fused) -> str:
    """all 13 blocks at 30, where it is all of them."""
    num_blocks = len(found.task.space.blocks)
    return ", ".join(
        f"{f'all {num_blocks} blocks' if len(blocks) == num_blocks > 1 else '+'.join(blocks)} at {timestep}"
        for timestep, blocks in at_timesteps(fused.cell.members).items()
    )


def answer_text(found: Findings) -> str:
    answer, result = found.answer, found.answer.trial.last
    says = f"{shortened(found, answer)}, {answer.cell.pooling}x{answer.cell.pooling}, {answer.cell.head}: "
    says += f"{found.task.objectives[0].text(result)} on val"
    if found.pays:
        return f"{says}, {points(answer)} points above the sweep's answer on the same images"
    if len(found.best) == 1:
        return f"{says}. No set reached the last rung; raise --num-trials"
    return f"{says}. Fusion does not pay here: no set gains more than its standard error, and the sweep's answer stays"


def facts(found: Findings) -> dict[str, str]:
    task = found.task
    return {
        **{f"joined, t<={path.num_timesteps}": order(path) for path in found.paths},
        "chosen": f"among {len(found.tried)} cells, by val: the gain is that of the best of them, a little too good",
        "images": "; ".join(task.notes),
        "passes": f"{found.new_passes:,.0f} forward passes were run for it",
        "trials": found.tracked,
        "time": f"{found.wall_seconds:.0f} s",
    }


def order(path: Path) -> str:
    """What each feature added as it joined."""
    first, *others = path.joined
    added = "".join(
        f", {each.block}@{each.timestep} {100 * each.gain:+.1f} +- {100 * each.stderr:.1f}" for each in others
    )
    return f"{first.block}@{first.timestep} {100 * first.accuracy:.1f} %{added} (ridge, leave-one-out)"


def page_of(found: Findings, config: Fuse, drawn: Sequence[Section]) -> Page:
    answer, task = found.answer, found.task
    metrics = answer.trial.last.metrics
    value, error = (100 * metrics[f"val_{name}"] for name in (task.metric, task.metric.replace("accuracy", "stderr")))
    return Page(
        title=f"Features of {task.source.backbone.rpartition('/')[2]} together, on {task.source.name}",
        cell=f"{shortened(found, answer)}, pooled to {answer.cell.pooling} x {answer.cell.pooling}, under the head "
        f"{answer.cell.head} ({answer.trial.last.params['setting']})",
        accuracy=f"{value:.1f} +- {error:.1f}",
        test=test_text(read_test(found.folder), found.folder, answer.cell.name),
        facts={"answer": answer_text(found)} | facts(found),
        tied=Table(HEADER, rows(found)),
        sections=drawn,
        command=command_of(config, "fuse"),
        versions=versions(model=task.source.key.backbone[:12], images=task.source.key.images[:12]),
        says="of the val images are classified correctly by",
        words=WORDS,
    )


def sections(found: Findings) -> list[Section]:
    figures, task = found.folder / "figures", found.task
    error_of = task.metric.replace("accuracy", "stderr")

    def point(each: Fused) -> tuple[float, float, float]:
        metrics = each.trial.last.metrics
        return each.passes, metrics[f"val_{task.metric}"], metrics[f"val_{error_of}"]

    single, *sets = found.best
    best = {len(at_timesteps(each.cell.members)): point(each) for each in sorted(sets, key=lambda each: point(each)[1])}
    curves = {"the sweep's answer": [point(single)], "sets": sorted(best.values())}
    bought = accuracy_curves(
        {name: line for name, line in curves.items() if line}, "forward passes an image", figures / "passes.png"
    )
    joined = {
        f"{path.num_timesteps} timestep{'s' * (path.num_timesteps > 1)}": [
            (number, each.accuracy, each.stderr if number > 1 else 0.0) for number, each in enumerate(path.joined, 1)
        ]
        for path in found.paths
    }
    grown = accuracy_curves(
        joined, "features that have joined", figures / "joined.png", measured="leave-one-out accuracy (%)"
    )
    return [
        Section(
            "What does another pass buy?",
            answer_text(found) + ".",
            "Each the best of its number of timesteps, fitted on all training images; bars are standard errors.",
            bought,
            "val accuracy against forward passes an image",
        ),
        Section(
            "Which features add something?",
            "; ".join(f"at most {name}: {order(path)}" for name, path in zip(joined, found.paths, strict=True)),
            "Ridge, leave-one-out, pooled to one grid; bars are the paired standard error of what each added. Behind "
            "the first that adds less than that, nothing is known to help.",
            grown,
            "leave-one-out accuracy against the number of features",
        ),
    ]


def results(found: Findings, config: Fuse) -> dict[str, Any]:
    """All numbers, as JSON knows them."""
    return {
        "task": found.task.name,
        "flags": as_flags(config),
        "answer": as_json(found.answer),
        "pays": found.pays,
        "best": [as_json(each) for each in found.best],
        "paths": [asdict(path) for path in found.paths],
        "new_passes": found.new_passes,
        "wall_seconds": found.wall_seconds,
    }


def as_json(fused: Fused) -> dict[str, Any]:
    cell = {"fused": name_of(fused.cell.members), "pooling": fused.cell.pooling, "head": fused.cell.head}
    numbers = {"passes": fused.passes, "num_features": fused.num_features, "gain": fused.gain, "stderr": fused.stderr}
    return {"cell": cell, **numbers, **fused.trial.last.metrics, **fused.trial.last.params}
