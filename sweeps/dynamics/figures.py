"""The sections of a page on feature learning, with their figures."""

from collections.abc import Mapping
from typing import Any

from ddae.report.dynamics import against_snr, image_read_outs, losses, training_courses
from ddae.report.page import Section, Table
from sweeps.dynamics.findings import LEAST, Findings
from sweeps.dynamics.images import NAMES, image_header, image_lines, measured
from sweeps.dynamics.task import PatchCell

SHOWN = 0.75, 6.75
"""n SNR^2 of the paper's Figure 2."""


def sections(found: Findings) -> list[Section]:
    """The pictures, in the order in which they are read."""
    drawn = [_along(found), *_others(found), _at_the_end(found), _losses(found)]
    return drawn + ([_images(found)] if found.image_trials else [])


def courses(found: Findings, *objectives: str) -> dict[str, dict[str, list[Any]]]:
    """objective -> name of an n SNR^2 -> the course of each seed that did not diverge."""
    pairs = dict.fromkeys(found.near(snr) for snr in SHOWN)
    names = {pair: f"n SNR^2 = {found.patches.relative_snr(PatchCell('', *pair, 0)):.3g}" for pair in pairs}
    by_pair: dict[str, dict[str, list[Any]]] = {}
    for objective in objectives:
        for pair in pairs:
            cells = [PatchCell(objective, *pair, seed) for seed in found.patches.seeds]
            seeds = [course for cell in cells if (course := found.course(cell)) is not None]
            by_pair.setdefault(objective, {})[names[pair]] = seeds
    return by_pair


def _two(found: Findings) -> tuple[str, ...]:
    """The objectives of the paper, or those that there are."""
    trained = found.patches.trained
    return tuple(name for name in trained if name in ("diffusion", "classifier")) or trained


def _along(found: Findings) -> Section:
    orders = ", ".join(f"{name} {one.order}" for name, one in found.summaries.items() if one.order)
    return Section(
        "How do signal and noise grow?",
        f"The order p of early growth, dx/dt ~ x^p, is {orders}: 0 is linear, 1 exponential.",
        "The largest inner product of a filter with the signals, and with the noises; a line a seed.",
        training_courses(courses(found, *_two(found)), found.folder / "figures" / "courses.png"),
        "inner products of filters with signal and noise against step",
    )


def _others(found: Findings) -> list[Section]:
    rest = [name for name in found.patches.trained if name not in _two(found)]
    if not rest:
        return []
    balances = ", ".join(f"{name} {100 * found.summaries[name].balance.mean:.1f} %" for name in rest)
    figure = training_courses(courses(found, *rest), found.folder / "figures" / "others.png")
    return [
        Section(
            "Is it the noise, or that nothing is classified?",
            f"Balance at the end: {balances}.",
            "A classifier that is trained on noised samples, and the denoiser's network without noise.",
            figure,
            "inner products of filters with signal and noise against step, for other objectives",
        )
    ]


def _at_the_end(found: Findings) -> Section:
    points: dict[str, dict[str, list[tuple[float, float, int]]]] = {"growth_ratio": {}, "ratio": {}}
    for metric, lines in points.items():
        for trial in found.trials:
            if (ratio := trial.last.metrics.get(metric)) is not None:
                place = round(found.snr(trial), 3)
                lines.setdefault(trial.cell.objective, []).append((place, ratio, trial.cell.num_samples))
    crossings = [f"{name} at {one.crossing}" for name, one in found.summaries.items() if one.crossing]
    ends = ", ".join(f"{name} {one.least:.2g} to {one.largest:.2g}" for name, one in found.summaries.items())
    flips = f" It passes 1 for {', '.join(crossings)}." if crossings else ""
    return Section(
        "What decides between signal and noise?",
        f"Signal over noise at the end: {ends}.{flips}",
        f"A mark a training, a line the mean; below {LEAST:g} drawn there. n and |mu| are varied apart: marks of other "
        "n at one n SNR^2.",
        against_snr(points["growth_ratio"], points["ratio"], LEAST, found.folder / "figures" / "ratio.png"),
        "signal over noise against n SNR^2, early and at the end",
    )


def _losses(found: Findings) -> Section:
    along = courses(found, *found.patches.trained)
    halves = [
        f"{name} {' and '.join(f'{100 * half_way(seeds[0]):.0f} %' for seeds in by_snr.values() if seeds)}"
        for name, by_snr in along.items()
        if any(by_snr.values())
    ]
    return Section(
        "How does the loss fall?",
        f"Half of the fall is behind a network after this share of its steps: {', '.join(halves)}.",
        "The first seed that did not diverge. The denoiser's loss is that above saying that there is no noise.",
        losses(along, found.folder / "figures" / "loss.png"),
        "loss against step",
    )


def half_way(course: Any) -> float:
    """The share of its steps after which half of the loss's fall is behind a training."""
    loss, steps = course["loss"], course["steps"]
    return float(steps[int((loss <= (loss[0] + loss[-1]) / 2).argmax())] / max(1, steps[-1]))


def _images(found: Findings) -> Section:
    assert found.images
    trained = found.images.trained
    panels: dict[str, dict[str, Any]] = {}

    def add(panel: str, objective: str, metric: str, label: str) -> None:
        if line := [(snr, one.mean, one.stderr) for snr, one in measured(found, objective, metric)]:
            panels.setdefault(panel, {})[label] = line

    for metric in ("own_noise_accuracy", "other_noise_accuracy", "val_accuracy"):
        add("accuracy of the classifier (%)", "classifier", metric, NAMES[metric].removeprefix("accuracy, "))
    for metric in (name for name in NAMES if name.startswith("gain")):
        add("gain of the denoiser (%)", "diffusion", metric, NAMES[metric].removeprefix("gain, "))
    for objective in trained:
        add("probe of hidden units, accuracy (%)", objective, "probe_accuracy", objective)
    add("probe of hidden units, accuracy (%)", trained[0], "untrained_probe_accuracy", f"{trained[0]}, untrained")
    return Section(
        "And with images in the place of signals?",
        said(panels),
        "Every image stands beside a patch of noise of its own. Redrawn noise shows whether the classifier has learned "
        "noise; gain is how much of the squared error of saying that there is no noise a denoiser removes, of the "
        "patches it was trained on and of new ones.",
        image_read_outs(panels, found.folder / "figures" / "images.png"),
        "read-outs against n SNR^2 for images of two classes",
        Table(image_header(found), image_lines(found)),
    )


def said(panels: Mapping[str, Mapping[str, Any]]) -> str:
    """The first and the last n SNR^2 of every line."""
    ends = []
    for panel, lines in panels.items():
        texts = (f"{name} {100 * line[0][1]:.3g} to {100 * line[-1][1]:.3g}" for name, line in lines.items())
        ends.append(f"{panel.partition(' (')[0].partition(',')[0]}: {', '.join(texts)}")
    return f"From the least to the largest n SNR^2, in %: {'; '.join(ends)}."
