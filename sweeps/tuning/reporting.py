"""What report.html says of a sweep beside its sections: the answer, how sure it is, and what made it."""

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from ddae.report import Page, Section, Table
from sweeps.tuning import outcome
from sweeps.tuning.outcome import accuracy_text
from sweeps.tuning.plan import Plan
from sweeps.tuning.sections import Findings

ROOT = Path(__file__).parents[2]


def page(
    found: Findings, sections: list[Section], facts: Mapping[str, str], model: str, command: str, test: str
) -> Page:
    """facts: of outcome.answer_facts; model: as the user calls it; test: of test_text."""
    plan, answer, cell = found.plan, found.answer, found.winner
    sure = (
        f"{len(answer.tied)} of {answer.num_full} fully fitted cells cannot be told from the best (^) on "
        f"{plan.num_val:,} val images (paired bootstrap, 95 %); the cheapest of them is the answer (*)"
    )
    header, *rows = outcome.tied_rows(plan, answer)
    return Page(
        title=f"The best frozen feature of {model} on {plan.name}",
        cell=f"block {cell.block} at timestep {cell.timestep} (sigma {plan.sigmas[cell.timestep]:.3g}), pooled to "
        f"{cell.pooling} x {cell.pooling}, under the head {cell.head} ({answer.winner.setting})",
        accuracy=accuracy_text(answer.winner),
        test=test,
        facts={"how sure": sure} | {name: fact for name, fact in facts.items() if name != "answer"},
        tied=Table(header, rows),
        sections=sections,
        command=command,
        versions=versions(plan),
    )


def test_text(tested: outcome.Tested | None, folder: Path, cell: str) -> str:
    if tested is None:
        return f"The test images have not been looked at. Once: python sweeps/final_test.py --sweep {folder}"
    other = "" if tested.cell == cell else f", of {tested.cell}, which was the answer then"
    return (
        f"On test {100 * tested.test_accuracy:.1f} +- {100 * tested.test_stderr:.1f} % "
        f"({tested.num_test:,} images), measured once, on {tested.date}{other}."
    )


def versions(plan: Plan) -> dict[str, str]:
    """Of what made the numbers."""
    packages = "torch", "diffusers", "ray", "optuna", "numpy"
    return {
        "ddae-sweeps": f"{version('ddae-sweeps')}{commit()}",
        "model": plan.key.backbone[:12],
        "images": plan.key.images[:12],
        "Python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def commit() -> str:
    """Of the clone that the code runs from, if it is one."""
    if not (ROOT / ".git").exists():
        return ""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f" ({found.stdout.strip()})"
