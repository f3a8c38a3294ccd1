"""The sections of report.html: each has a figure, and a sentence that is written from its data."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import confusion_matrix

from ddae.label_free import spearman
from ddae.report import figures
from ddae.report.page import Section, Table
from ddae.report.style import shortened
from ddae.units import counted, rounded
from sweeps.probing.findings import Findings
from sweeps.probing.screening import best_three
from sweeps.probing.text import how_sure_of, lost_text, points_of
from sweeps.search.axes import as_values
from sweeps.search.task import Objective, Trial

MAX_CLASSES = 30
"""More make a confusion matrix that nobody can read."""
MAX_PAIRS = 20
"""How many pairs of classes that are confused are listed instead."""
FEW = 3
"""Fewer pairs of trials, or sites, tell nothing."""


def draw(found: Findings, folder: Path, names: Collection[str] = ()) -> tuple[dict[str, Section], list[str]]:
    """Sections that the sweep has data for, by name, and what could not be drawn, and why; figures are also written as
    PNG files. names: of those that are wanted; all if not given."""
    drawn, undrawn = dict[str, Section](), list[str]()
    for name in names or NAMES:
        try:
            if section := SECTIONS[name](found, folder / f"{name}.png"):
                drawn[name] = section
        except Exception as error:  # the answer does not depend on a picture
            undrawn.append(f"the picture {folder / name}.png could not be drawn ({type(error).__name__}: {error})")
    return drawn, undrawn


def where(found: Findings, path: Path) -> Section:
    """Block x timestep."""
    space, screened, measure = found.task.space, found.screening.accuracy, found.task.measure
    measured, num_screened = found.best_accuracies(), found.screening.rules.rounds[0]
    rings: set[tuple[str, int]] = set()
    if measured is not None:
        table, label = measured, f"val {measure} (%)"
        number = f"the val {measure} of a site's best pooling and head"
        title = f"best pooling and head on {found.task.num_train:,} images\nstar: the answer"
    else:
        table, label, rings = screened, f"{measure} (%)", set(found.screening.ranked)
        doubt = 100 * found.screening.stderr
        number = f"a rough first estimate of {measure}: +- {doubt:.0f} points, and slightly optimistic"
        title = f"screening: ridge on {num_screened:,} images, one left out\n"
        title += "o: left at the end of screening, star: the answer"
        title += "\nblank: left out by the label-free ranking" * bool(np.isnan(screened).any())
    answer = found.cell.block, found.cell.timestep
    figure = figures.heat_map(100 * table, space.block_names, space.sigmas, label, title, path, rings, answer)
    timesteps = [f"timestep {t} (sigma {rounded(sigma)})" for t, sigma in space.sigmas.items()]
    says = []
    for others, one, values in (
        ("blocks", timesteps, table.mean(0)),
        ("timesteps", [f"block {name}" for name in space.block_names], np.nanmean(table, 1)),
    ):
        best, worst = np.nanargmax(values), np.nanargmin(values)
        if best != worst:
            says.append(
                f"averaged over the {others}, {one[best]} is best ({percent(values[best], 1)}) and "
                f"{one[worst]} worst ({percent(values[worst], 1)})"
            )
    return Section(
        f"{measure.capitalize()} by block and timestep",
        sentence(says or ["all blocks and timesteps that were searched are equally good"]),
        "Rows are blocks in the order in which an image passes them; noise grows to the right. Each number is "
        f"{number}.",
        figure,
        f"Heat map of {measure}, {len(space.blocks)} blocks by {len(space.sigmas)} timesteps.",
    )


def screening(found: Findings, path: Path) -> Section | None:
    """Which timesteps were dropped after which round; None where none could be."""
    rules, rounds, sites = found.screening.rules, found.screening.rounds, found.screening.sites
    timesteps = list(rounds[0])
    if rules.exhaustive or len(timesteps) == 1:
        return None
    lines = [
        [
            (num_images, best_three([right.mean() for right in answers[t].values()]))
            for num_images, answers in zip(rules.rounds, rounds, strict=True)
            if t in answers
        ]
        for t in timesteps
    ]
    names, is_dropped = [f"t = {t}" for t in timesteps], [t not in sites for t in timesteps]
    after = [set(answers) for answers in rounds[1:]] + [set(sites)]
    says = [
        f"after {num_images:,} images {timesteps_text(dropped)} {'was' if len(dropped) == 1 else 'were'} dropped"
        for num_images, answers, stayed in zip(rules.rounds, rounds, after, strict=True)
        if (dropped := [t for t in answers if t not in stayed])
    ]
    says.append(
        f"{timesteps_text(list(sites))} stayed to the end, with {sum(map(len, sites.values()))} of "
        f"{'its' if len(sites) == 1 else 'their'} {len(sites) * len(found.task.space.blocks)} sites"
    )
    mark, how = ("mark", "") if len(rounds) == 1 else ("line", ", on more images in each round")
    return Section(
        "How the timesteps were screened",
        sentence(says),
        f"Each {mark} is a timestep, judged by its three best blocks under ridge{how}. Where there is a cross the "
        "timestep was dropped, and no more images passed the network at it.",
        figures.courses(lines, is_dropped, names, f"{found.task.measure} of the three best blocks (%)", path),
        f"Lines of {found.task.measure} against number of images, one a timestep.",
    )


def rungs(found: Findings, path: Path) -> Section | None:
    """The metric against number of images, and where trials were stopped; None where all were fitted on all images."""
    all_rungs, trials, merit = found.task.rungs, found.tried, found.task.objectives[0].merit
    if len(all_rungs) == 1:
        return None
    lines = [[(rung, merit(result)) for rung, result in trial.results.items()] for trial in trials]
    stopped = [trial.stopped_early for trial in trials]
    star = next(number for number, trial in enumerate(trials) if trial is found.answer.winner)
    full = [line for line, is_stopped in zip(lines, stopped, strict=True) if not is_stopped]
    gain = 100 * np.mean([line[-1][1] - line[0][1] for line in full])
    standing = 1 + sum(line[0][1] > lines[star][0][1] for line in lines)
    return Section(
        f"{found.task.measure.capitalize()} against the number of training images",
        f"{sum(stopped)} of {counted(len(trials), 'trial', 'trials')} {'was' if sum(stopped) == 1 else 'were'} stopped "
        f"at {all_rungs[0]:,} images; {len(full)} went on to {all_rungs[-1]:,}, for {gain:.1f} {points_of(found)} more "
        f"on average; the answer was number {standing} at {all_rungs[0]:,}.",
        f"Each line is a trial: its head is fitted to convergence on {all_rungs[0]:,} images, and on {all_rungs[-1]:,} "
        "only if it is among the best of the trials before it.",
        figures.courses(lines, stopped, [""] * len(lines), f"val {found.task.measure} (%)", path, star),
        f"Lines of val {found.task.measure} against number of training images, one a trial.",
    )


def choices(found: Findings, path: Path) -> Section | None:
    """Pooling and head, each with all else equal; None where there was no choice."""
    effects, references, says = {}, {}, []
    for axis, values in (("pooling", found.task.space.poolings), ("head", found.task.space.heads)):
        if len(values) > 1:
            reference = getattr(found.cell, axis)
            points = paired_points(found.tried, axis, reference, found.task.objectives[0])
            references[axis] = choice_name(reference)
            others = {choice_name(value): points[value] for value in values if value != reference}
            says += [f"{axis} {choice} {against(of, references[axis])}" for choice, of in others.items()]
            effects[axis] = {choice: of for choice, of in others.items() if len(of)}
    if not any(effects.values()):
        return None
    chosen = (
        ""
        if found.screening.rules.exhaustive
        else " The search tries what looks good, so the pairs are few and not a random sample."
    )
    effects = {axis: each for axis, each in effects.items() if each}
    return Section(
        "Which pooling and which head",
        sentence(says),
        "Each dot is a pair of trials that differ in nothing else, on the most images that both were fitted on; the "
        f"diamond is their mean with its standard error; the line at 0 is the answer's choice.{chosen}",
        figures.paired_effects(effects, references, found.task.measure, path),
        f"Differences in {found.task.measure} between pairs of trials, by pooling and by head.",
    )


def paired_points(
    trials: Sequence[Trial], axis: str, reference: object, objective: Objective
) -> Mapping[object, np.ndarray]:
    """choice -> points of the objective by which it is better than the reference, one for every pair of trials that
    differ in the axis alone, on the most images that both were fitted on."""
    alike: dict[tuple, dict[object, dict[int, float]]] = defaultdict(dict)
    for trial in trials:
        values = as_values(trial.cell)
        choice = values.pop(axis)
        accuracies = {rung: objective.merit(result) for rung, result in trial.results.items()}
        alike[tuple(values.values())][choice] = accuracies
    points: dict[object, list[float]] = defaultdict(list)
    for by_choice in alike.values():
        if reference in by_choice:
            for choice, accuracies in by_choice.items():
                most = max(accuracies.keys() & by_choice[reference].keys())
                points[choice].append(100 * (accuracies[most] - by_choice[reference][most]))
    return defaultdict(lambda: np.zeros(0), {choice: np.array(each) for choice, each in points.items()})


def choice_name(value: object) -> str:
    return f"{value} x {value}" if isinstance(value, int) else str(value)


def against(points: np.ndarray, reference: str) -> str:
    """What pairs of trials say of a choice, as the rest of a sentence."""
    pairs = f"{len(points)} pair{'s' * (len(points) != 1)}"
    if not len(points):
        return f"was never tried where {reference} was, all else equal"
    if len(points) < FEW:
        return f"was tried too seldom to compare it with {reference} ({pairs})"
    mean, error = points.mean(), points.std(ddof=1) / len(points) ** 0.5
    if abs(mean) <= 2 * error:
        return f"is statistically tied with {reference} ({mean:.1f} +- {error:.1f} points, {pairs})"
    return f"is {abs(mean):.1f} +- {error:.1f} points {'better' if mean > 0 else 'worse'} than {reference} ({pairs})"


def costs(found: Findings, path: Path) -> Section:
    """The metric against what a feature costs to use."""
    answer, space, full, measure = found.answer, found.task.space, found.full, found.task.measure
    share = np.array([space.block(trial.cell.block).flops_share for trial in full])
    width = np.array([space.num_features(trial.cell) for trial in full])
    metric = found.task.objectives[0].metric
    accuracy, stderr = (
        np.array([trial.last.metrics[name] for trial in full])
        for name in (metric, metric.replace("accuracy", "stderr"))
    )
    chosen = answer.winner, answer.best, answer.cheapest
    winner, best, cheapest = (next(i for i, trial in enumerate(full) if trial is each) for each in chosen)
    other = best if winner != best else cheapest
    points = 100 * (accuracy[other] - accuracy[winner])
    compared = (
        "no cell that is tied with it is cheaper"
        if other == winner
        else f"{full[other].cell.name}, the {'cheapest' if winner == best else 'best'} of those tied with it, needs "
        f"{share[other]:.2f} and {width[other]:,} for {abs(points):.1f} points {'less' if winner == best else 'more'}"
    )
    heads = [trial.cell.head for trial in full]
    each_cost = {"share of a forward pass": share, "numbers per image": width}
    return Section(
        f"{measure.capitalize()} against cost",
        f"The answer needs {share[winner]:.2f} of a forward pass and {width[winner]:,} numbers per image; {compared}.",
        f"Every mark is a cell that was fitted on {found.task.rungs[-1]:,} images; no other is both "
        "cheaper and better than one on the line. A pass stops after the cell's block, and the head reads that many "
        "numbers.",
        figures.cost_scatter(accuracy, stderr, each_cost, heads, winner, measure, path),
        f"Val {measure} against share of a forward pass, and against numbers per image.",
    )


def samples(found: Findings, path: Path) -> Section | None:
    """Images as they are, and as the network was given them; None where there are none, as for those below."""
    if not found.examples:
        return None
    task, examples, t = found.task, found.examples, found.cell.timestep
    names = [shortened(examples.classes[label]) for label in task.labels["val"][: len(examples.clean)]]
    latents = "; these are latents, of which three channels are shown as colours" if task.source.encoder else ""
    return Section(
        "What the network saw",
        f"At timestep {t} the noise is {rounded(task.space.sigmas[t])} times as strong as the image{latents}.",
        "Above val images as they are, below with the very noise under which their features were read.",
        figures.pictures([examples.clean, examples.noised], [names, [f"t = {t}"] * len(names)], path),
        f"{len(names)} val images, clean and noised.",
    )


def neighbours(found: Findings, path: Path) -> Section | None:
    """Which training images lie nearest."""
    if not found.examples:
        return None
    near, classes = found.examples.neighbours, found.examples.classes
    title = "Nearest neighbours"
    if near is None:
        return Section(title, "The answer's features are not in the store any more, so there is nothing to compare.")
    alike = near.labels == near.query_labels[:, None]
    captions = [
        [
            shortened(classes[query]),
            *(f"{'✓' if label == query else '✗'} {shortened(classes[label], 11)}" for label in labels),
        ]
        for query, labels in zip(near.query_labels, near.labels, strict=True)
    ]
    rows = [[query, *nearest] for query, nearest in zip(near.queries, near.nearest, strict=True)]
    wrong = {(row, 1 + column) for row, column in np.argwhere(~alike)}
    frequency = [np.bincount(found.task.labels[split], minlength=len(classes)) for split in ("train", "val")]
    by_chance = float(np.prod([each / each.sum() for each in frequency], axis=0).sum())
    return Section(
        title,
        f"{percent(near.share_alike)} of the {near.labels.shape[1]} nearest training images of {near.num_queries:,} "
        f"val images are of the same class; by chance it would be {percent(by_chance)}.",
        "On the left are val images, one per class; beside each are the training images with the nearest features, "
        f"of {near.num_searched:,}; no head is involved. A cross and a dashed frame mark images of another class.",
        figures.pictures(rows, captions, path, wrong),
        f"{len(captions)} val images, each with its nearest training images.",
    )


def confusions(found: Findings, path: Path) -> Section | None:
    """Which classes the answer confuses on val."""
    if not found.examples:
        return None
    labels, classes, predicted = found.task.labels["val"], found.examples.classes, found.examples.predicted
    title = "Confusion matrix"
    if predicted is None:
        return Section(title, "Not drawn: its features are gone, or its head takes long to fit again.")
    counts = confusion_matrix(labels, predicted, labels=range(len(classes)))
    of_class = counts.sum(1)
    shares = counts / np.maximum(of_class, 1)[:, None]
    known = np.where(of_class > 0, shares.diagonal(), np.nan)
    best, worst = np.nanargmax(known), np.nanargmin(known)
    wrong = np.where(np.eye(len(classes), dtype=bool), 0, counts)
    order = np.unravel_index(np.argsort(-wrong, axis=None, kind="stable")[:MAX_PAIRS], wrong.shape)
    pairs = [(classes[a], classes[b], wrong[a, b], of_class[a]) for a, b in zip(*order, strict=True) if wrong[a, b]]
    says = [
        f"the class {of} is most often mistaken for {other}: {counted(n, 'time', 'times')} in {total}"
        for of, other, n, total in pairs[:1]
    ]
    says.append(
        f"the class {classes[best]} is recognised best ({percent(known[best])}), {classes[worst]} worst "
        f"({percent(known[worst])})"
        if known[best] > known[worst]
        else f"all classes are recognised equally well ({percent(known[best])})"
    )
    if len(classes) > MAX_CLASSES:
        rows = [(of, other, f"{n} of {total}", percent(n / total)) for of, other, n, total in pairs]
        table = Table(("true class", "predicted class", "val images", "share"), rows)
        return Section(title, sentence(says), "The most frequent confusions.", table=table)
    figure = figures.confusion(shares, classes, path)
    how = "Rows are true classes, and numbers percent of their val images; the diagonal is what is correct."
    return Section(title, sentence(says), how, figure, f"Confusion matrix of {len(classes)} classes.")


def scores(found: Findings, path: Path) -> Section | None:
    """Choices without labels against accuracy; None where there are too few sites to rank."""
    label_free, screened, measure = found.label_free, found.screening.accuracy, found.task.measure
    if np.isfinite(screened).sum() < FEW:
        return None
    agreement, rows = label_free.trust(screened), []
    for name, merit in label_free.merits.items():
        choice, one = found.first_choice(merit), agreement[name]
        lost = "" if choice.lost is None else "{:.1f} +- {:.1f}".format(*choice.lost)
        rows.append((name, f"{one.spearman:.2f}", f"{one.spearman_within_timestep:.2f}", choice.name, lost))
    choice, correlation = found.first_choice(label_free.ranking), agreement["consensus"].spearman
    space = found.task.space
    places = space.position(choice.block, choice.timestep), space.position(found.cell.block, found.cell.timestep)
    return Section(
        "What would have been chosen without labels",
        f"Without labels {choice.name} would have been chosen: {lost_text(choice, found)}; over "
        f"{np.isfinite(screened).sum():,} sites the ranking agrees with {measure} by a Spearman of {correlation:.2f}. "
        + sentence([how_sure_of(found, choice)]),
        f"Scores without labels, of every block and timestep, against {measure} of ridge on "
        f"{found.screening.rules.rounds[0]:,} images. Points lost (regret) are those of a score's first choice against "
        "the answer's site under that ridge; below 0 it gains some.",
        figures.score_scatter(label_free.ranking, screened, space.timesteps, correlation, measure, path, *places),
        f"{measure.capitalize()} against the label-free ranking, one mark a block and timestep.",
        Table(("score", "Spearman", "at one timestep", "first choice", "points lost"), rows),
    )


def plane(found: Findings, path: Path) -> Section | None:
    """Alignment and uniformity."""
    screened, tables, measure = found.screening.accuracy, found.label_free.scores, found.task.measure
    if np.isfinite(screened).sum() < FEW or not {"alignment", "uniformity"} <= set(tables):
        return None
    says = []
    for name in ("alignment", "uniformity"):
        correlation = spearman(tables[name], screened)
        verb = (
            f"grows with {'lower' if correlation < 0 else 'higher'}" if abs(correlation) > 0.2 else "hardly depends on"
        )
        says.append(f"{measure} {verb} {name} (Spearman {correlation:.2f})")
    answer = found.task.space.position(found.cell.block, found.cell.timestep)
    return Section(
        "Alignment and uniformity",
        sentence(says),
        "Every mark is a block at a timestep. Good features are where both are low, says the DDAE paper; along a "
        f"dashed line {measure} is the same by the trend.",
        figures.alignment_uniformity(tables["alignment"], tables["uniformity"], screened, answer, measure, path),
        f"Uniformity against alignment, coloured by {measure}, with the fitted trend.",
    )


def timesteps_text(timesteps: Sequence[int]) -> str:
    """timestep 10; timesteps 0, 10 and 30"""
    *others, last = map(str, timesteps)
    return f"timesteps {', '.join(others)} and {last}" if others else f"timestep {last}"


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def sentence(says: list[str]) -> str:
    """One sentence of several main clauses."""
    return "; ".join(says)[:1].upper() + "; ".join(says)[1:] + "."


SECTIONS: dict[str, Callable[[Findings, Path], Section | None]] = {
    "block_timestep": where,
    "screening": screening,
    "rungs": rungs,
    "pooling_head": choices,
    "cost": costs,
    "samples": samples,
    "neighbours": neighbours,
    "confusion": confusions,
    "label_free": scores,
    "alignment_uniformity": plane,
}
"""In the order of the page."""
NAMES, OF_EXAMPLES = tuple(SECTIONS), ("samples", "neighbours", "confusion")
