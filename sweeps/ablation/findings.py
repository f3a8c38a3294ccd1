"""What an ablation of the noise of pre-training has found, as numbers, beside the paper's statements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddae.report.figures import pareto_front
from sweeps.ablation.task import AT_SIGMA, AblationTask
from sweeps.findings.answer import table
from sweeps.search.task import Result, Trial, Value


@dataclass(frozen=True)
class Findings:
    task: AblationTask
    tried: tuple[Trial, ...]
    folder: Path
    tracked: str
    """How a person sees the trials in MLflow."""
    wall_seconds: float

    @property
    def trials(self) -> list[dict[str, Value]]:
        """One row a trial, best first; pandas.DataFrame takes it."""
        return table(self.task, self.tried)

    @property
    def courses(self) -> Mapping[str, Sequence[tuple[int, Result]]]:
        """Configuration -> (steps, result), steps growing; without networks that diverged."""
        courses: dict[str, list[tuple[int, Result]]] = {name: [] for name in self.task.trainings}
        for trial in sorted(self.tried, key=lambda trial: trial.cell.steps):
            if "fd" in trial.last.metrics:
                courses[trial.cell.configuration].append((trial.cell.steps, trial.last))
        return {name: course for name, course in courses.items() if course}

    @property
    def best(self) -> Mapping[str, Result]:
        """Configuration -> what its best snapshot came to in accuracy."""
        return {
            name: max((result for _, result in course), key=lambda result: result.metrics["val_accuracy"])
            for name, course in self.courses.items()
        }

    @property
    def last(self) -> Mapping[str, Result]:
        """Configuration -> what its last snapshot came to."""
        return {name: course[-1][1] for name, course in self.courses.items()}

    @property
    def front(self) -> list[str]:
        """The cells of which none is better in both accuracy and FD, the smallest FD first."""
        measured = [trial for trial in self.tried if "fd" in trial.last.metrics]
        fd, accuracy = (np.array([t.last.metrics[name] for t in measured]) for name in ("fd", "val_accuracy"))
        return [self.task.label(measured[number].cell) for number in pareto_front(fd, accuracy)] if measured else []

    @property
    def diverged(self) -> list[str]:
        return [self.task.label(trial.cell) for trial in self.tried if "trouble" in trial.last.params]

    def sigma_curve(self, name: str) -> list[tuple[float, float, float]]:
        """(sigma, leave-one-out accuracy at the best block, its standard error) of the last snapshot."""
        metrics = self.last[name].metrics
        points = {
            float(key.removeprefix(AT_SIGMA)): value for key, value in metrics.items() if key.startswith(AT_SIGMA)
        }
        number = self.task.probing.num_images
        return [(sigma, value, (value * (1 - value) / number) ** 0.5) for sigma, value in sorted(points.items())]


def statements(found: Findings) -> list[tuple[str, str, str]]:
    """(what Xiang et al. 2023 say in section 4.1.1, whether it holds here, in which numbers), of the schedules that
    were tried. A difference holds where it is larger than twice its standard error."""
    best, last = found.best, found.last
    short = [name for name in ("T256", "T64") if name in last]
    said = []
    if "full" in best and len(best) > 1:
        accuracy, stderr = (best["full"].metrics[name] for name in ("val_accuracy", "val_stderr"))
        others = {name: result.metrics for name, result in best.items() if name != "full"}
        ahead = [
            n for n, m in others.items() if m["val_accuracy"] - accuracy > 2 * (m["val_stderr"] ** 2 + stderr**2) ** 0.5
        ]
        said.append(
            ("The full schedule is best at recognition.", verdict(not ahead), _numbers(best, "val_accuracy", 100))
        )
        fd = last["full"].metrics["fd"]
        nearer = [n for n, r in last.items() if n != "full" and fd - r.metrics["fd"] > 2 * r.metrics["fd_stderr"]]
        said.append(("The full schedule is best at generation.", verdict(not nearer), _numbers(last, "fd")))
        most = max(accuracy - metrics["val_accuracy"] for metrics in others.values())
        lost = f"at most {100 * most:+.1f} points are lost against full"
        said.append(("Every schedule keeps its best accuracy within 3 points.", verdict(most < 0.03), lost))
    if short:
        if "T64" in last and len(last) > 1:
            worst = max(last, key=lambda name: last[name].metrics["fd"])
            said.append(("T = 64 generates worst.", verdict(worst == "T64"), f"the largest FD is that of {worst}"))
        starts = {name: (last[name].metrics["fd"], last[name].metrics["fd_from_real"]) for name in short}
        gains = "; ".join(f"{n} {noise:.3g} from noise, {real:.3g} from images" for n, (noise, real) in starts.items())
        helped = all(real < noise for noise, real in starts.values())
        said.append(("(Not of the paper) Noised images as a start mend short schedules.", verdict(helped), gains))
    return said


def verdict(holds: bool) -> str:
    return "holds" if holds else "does not hold"


def _numbers(results: Mapping[str, Result], metric: str, factor: float = 1) -> str:
    ordered = sorted(results, key=lambda name: -results[name].metrics[metric])
    return ", ".join(f"{name} {factor * results[name].metrics[metric]:.3g}" for name in ordered)
