"""The sections of report.html: a figure each, and under it a sentence that its data have written."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ddae import report
from ddae.label_free import spearman
from ddae.probe import Candidate, standard_error
from ddae.report import Section, Table
from sweeps.tuning import outcome
from sweeps.tuning.outcome import Answer, FinishedTrial, LabelFree
from sweeps.tuning.plan import Plan
from sweeps.tuning.portrait import Portrait
from sweeps.tuning.race import Race, best_three

MAX_CLASSES = 30
"""Of a confusion matrix that can be read."""
MAX_PAIRS = 20
"""Of classes that are confused, listed where there are more."""
FEW = 3
"""Fewer pairs of trials, or places, tell nothing."""


@dataclass(frozen=True)
class Findings:
    """All that a sweep has found."""

    plan: Plan
    answer: Answer
    trials: list[FinishedTrial]
    race: Race
    label_free: LabelFree
    portrait: Portrait

    @property
    def winner(self) -> Candidate:
        return self.answer.winner.candidate

    @property
    def star(self) -> tuple[int, int]:
        """Where the answer is in a [blocks, timesteps] table."""
        names = [block.name for block in self.plan.space.blocks]
        return names.index(self.winner.block), self.plan.space.timesteps.index(self.winner.timestep)


def draw(found: Findings, figures: Path) -> list[Section]:
    """Every section that the sweep has data for; its figures are PNG files, too."""
    sections = (
        where(found, figures / "block_timestep.png"),
        race(found, figures / "race.png"),
        rungs(found, figures / "rungs.png"),
        choices(found, figures / "pooling_head.png"),
        costs(found, figures / "cost.png"),
        samples(found, figures / "samples.png"),
        neighbours(found, figures / "neighbours.png"),
        confusions(found, figures / "confusion.png"),
        scores(found, figures / "label_free.png"),
        plane(found, figures / "alignment_uniformity.png"),
    )
    return [section for section in sections if section is not None]


def where(found: Findings, path: Path) -> Section:
    """Block x timestep."""
    plan, looked = found.plan, found.race.accuracy(found.plan)
    measured = outcome.best_accuracies(plan, found.trials)
    table = looked if measured is None else measured
    names = [block.name for block in plan.space.blocks]
    figure = report.heat_map(
        100 * table,
        names,
        plan.sigmas,
        "accuracy (%)" if measured is None else "val accuracy (%)",
        f"first look: ridge on {plan.looks[0]:,} images, one left out\no: in the race to its end, star: the answer"
        + "\nblank: left out by the label-free ranking" * bool(np.isnan(looked).any())
        if measured is None
        else f"best pooling and head on {plan.rungs[-1]:,} images\nstar: the answer",
        path,
        rings=set(found.race.ranked()) if measured is None else set(),
        star=(found.winner.block, found.winner.timestep),
    )
    timesteps = [f"t = {t} (sigma {sigma:.2g})" for t, sigma in plan.sigmas.items()]
    says = []
    for others, one, values in (("blocks", timesteps, table.mean(0)), ("timesteps", names, np.nanmean(table, 1))):
        best, worst = np.nanargmax(values), np.nanargmin(values)
        if best != worst:
            says.append(
                f"averaged over the {others}, {one[best]} is best ({percent(values[best], 1)}) and "
                f"{one[worst]} worst ({percent(values[worst], 1)})"
            )
    doubt = 100 * standard_error(float(np.nanmedian(table)), plan.looks[0])
    number = (
        f"the first, coarse look at a place: +- {doubt:.0f} points, and a little too good"
        if measured is None
        else "the val accuracy of a place's best pooling and head"
    )
    return Section(
        "Where in the network, and at how much noise",
        sentence(says or ["all places that were searched are alike"]),
        f"Rows are blocks in the order in which the image meets them; noise grows to the right. A number is {number}.",
        figure,
        f"Heat map of accuracy, {len(names)} blocks by {len(plan.sigmas)} timesteps.",
    )


def race(found: Findings, path: Path) -> Section | None:
    """Which timesteps left at which look; None where none could."""
    plan, looks, places = found.plan, found.race.looks, found.race.places
    timesteps = list(looks[0])
    if plan.exhaustive or len(timesteps) == 1:
        return None
    lines = [
        [
            (num_images, best_three([right.mean() for right in look[t].values()]))
            for num_images, look in zip(plan.looks, looks, strict=True)
            if t in look
        ]
        for t in timesteps
    ]
    after = [set(look) for look in looks[1:]] + [set(places)]
    says = [
        f"after {num_images:,} images t = {', '.join(left)} left"
        for num_images, look, stayed in zip(plan.looks, looks, after, strict=True)
        if (left := [str(t) for t in look if t not in stayed])
    ]
    says.append(
        f"t = {', '.join(map(str, places))} stayed to the end, with {sum(map(len, places.values()))} of their "
        f"{len(places) * len(plan.space.blocks)} places"
    )
    return Section(
        "How the timesteps raced",
        sentence(says),
        "Each line is a timestep, judged by its three best blocks under ridge, on more images at each look. Where a "
        "dashed line ends in a cross it left the race, and no more images passed the network at it.",
        report.courses(
            lines,
            [t not in places for t in timesteps],
            [f"t = {t}" for t in timesteps],
            "accuracy of the three best blocks (%)",
            path,
        ),
        "Lines of accuracy against number of images, one a timestep.",
    )


def rungs(found: Findings, path: Path) -> Section | None:
    """Accuracy against number of images, and where trials were stopped; None where all were fitted on all images."""
    plan, trials = found.plan, found.trials
    if len(plan.rungs) == 1:
        return None
    lines = [[(rung.num_images, rung.val_accuracy) for rung in trial.rungs] for trial in trials]
    stopped = [trial.stopped_early for trial in trials]
    star = next(place for place, trial in enumerate(trials) if trial.candidate == found.winner)
    full = [line for line, is_stopped in zip(lines, stopped, strict=True) if not is_stopped]
    gain = 100 * np.mean([line[-1][1] - line[0][1] for line in full])
    place = 1 + sum(line[0][1] > lines[star][0][1] for line in lines)
    return Section(
        "Which trials were worth all images",
        f"{sum(stopped)} of {len(trials)} trials were stopped at {plan.rungs[0]:,} images; {len(full)} went on to "
        f"{plan.rungs[-1]:,}, which gave them {gain:.1f} points on average; the answer was number {place} at "
        f"{plan.rungs[0]:,}.",
        "Each line is a trial: its head is fitted to the end on few images, and on all of them only where it is among "
        "the best of the trials before it.",
        report.courses(lines, stopped, [""] * len(lines), "val accuracy (%)", path, star),
        "Lines of val accuracy against number of training images, one a trial.",
    )


def choices(found: Findings, path: Path) -> Section | None:
    """Pooling and head, each with all else equal; None where there was no choice."""
    effects, references, says = {}, {}, []
    for axis, values in (("pooling", found.plan.space.poolings), ("head", found.plan.space.heads)):
        if len(values) > 1:
            reference = getattr(found.winner, axis)
            points = paired_points(found.trials, axis, reference)
            effects[axis] = {choice_name(value): points[value] for value in values if value != reference}
            references[axis] = choice_name(reference)
            says += [f"{choice} {against(of, references[axis])}" for choice, of in effects[axis].items()]
    if not effects:
        return None
    chosen = "" if found.plan.exhaustive else " The search tries what looks good: pairs are few, and no fair sample."
    return Section(
        "Which pooling and which head",
        sentence(says),
        "A dot is a pair of trials that differ in nothing else, on the most images that both were fitted on; the "
        f"diamond is their mean with its standard error; the line at 0 is the answer's choice.{chosen}",
        report.paired_effects(effects, references, path),
        "Differences in accuracy between pairs of trials, by pooling and by head.",
    )


def paired_points(trials: list[FinishedTrial], axis: str, reference: object) -> Mapping[object, np.ndarray]:
    """choice -> points of val accuracy by which it is better than the reference, one for every pair of trials that
    differ in the axis alone, on the most images that both were fitted on."""
    alike: dict[tuple, dict[object, dict[int, float]]] = defaultdict(dict)
    for trial in trials:
        cell = asdict(trial.candidate)
        choice = cell.pop(axis)
        alike[tuple(cell.values())][choice] = {rung.num_images: rung.val_accuracy for rung in trial.rungs}
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
    """What pairs tell, as the rest of a sentence."""
    pairs = f"{len(points)} pair{'s' * (len(points) != 1)}"
    if len(points) < FEW:
        return f"was tried too seldom to be told from {reference} ({pairs})"
    mean, error = points.mean(), points.std(ddof=1) / len(points) ** 0.5
    if abs(mean) <= 2 * error:
        return f"cannot be told from {reference} ({mean:.1f} +- {error:.1f} points, {pairs})"
    return f"is {abs(mean):.1f} +- {error:.1f} points {'better' if mean > 0 else 'worse'} than {reference} ({pairs})"


def costs(found: Findings, path: Path) -> Section:
    """Accuracy against what a feature costs to use."""
    answer, space = found.answer, found.plan.space
    full = [trial.rungs[-1] for trial in found.trials if not trial.stopped_early]
    blocks = [space.block(result.candidate.block) for result in full]
    share = np.array([block.flops_share for block in blocks])
    width = np.array([b.channels * r.candidate.pooling**2 for b, r in zip(blocks, full, strict=True)])
    winner, best = (next(i for i, r in enumerate(full) if r is each) for each in (answer.winner, answer.best))
    more = 100 * (answer.best.val_accuracy - answer.winner.val_accuracy)
    dearest = (
        "no other fully fitted cell is more accurate"
        if winner == best
        else f"the most accurate cell, {answer.best.candidate.name}, needs {share[best]:.2f} and {width[best]:,} for "
        f"{more:.1f} points more"
    )
    return Section(
        "What accuracy costs",
        f"The answer needs {share[winner]:.2f} of a forward pass and {width[winner]:,} numbers an image; {dearest}.",
        "Every mark is a cell that was fitted on all images; those on the line cannot be had both cheaper and better. "
        "A pass stops after the cell's block, and its head reads so many numbers.",
        report.cost_scatter(
            np.array([result.val_accuracy for result in full]),
            np.array([result.stderr for result in full]),
            {"share of a forward pass": share, "numbers an image": width},
            [result.candidate.head for result in full],
            winner,
            path,
        ),
        "Val accuracy against share of a forward pass, and against numbers an image.",
    )


def samples(found: Findings, path: Path) -> Section:
    """Images as they are, and as the network was given them."""
    plan, portrait, t = found.plan, found.portrait, found.winner.timestep
    names = [portrait.classes[label] for label in plan.labels["val"][: len(portrait.clean)]]
    latents = "; these are latents, of which three channels are shown as colours" if plan.encoder else ""
    return Section(
        "What the network saw",
        f"At t = {t} the noise is {plan.sigmas[t]:.2g} times as strong as the image{latents}.",
        "Above val images as they are, below with the very noise under which their features were read.",
        report.pictures(
            [portrait.clean, portrait.noised],
            [[report.shortened(name) for name in names], [f"t = {t}"] * len(names)],
            path,
        ),
        f"{len(names)} val images, clean and noised.",
    )


def neighbours(found: Findings, path: Path) -> Section:
    """Which training images lie nearest."""
    plan, near, classes = found.plan, found.portrait.neighbours, found.portrait.classes
    title = "What the feature finds alike"
    if near is None:
        return Section(title, "The answer's features are not in the store any more, so there is nothing to compare.")
    alike = near.labels == near.query_labels[:, None]
    captions = [
        [
            report.shortened(classes[query]),
            *(f"{'✓' if label == query else '✗'} {report.shortened(classes[label], 11)}" for label in labels),
        ]
        for query, labels in zip(near.query_labels, near.labels, strict=True)
    ]
    frequency = [np.bincount(plan.labels[split], minlength=len(classes)) for split in ("train", "val")]
    by_chance = float(np.prod([each / each.sum() for each in frequency], axis=0).sum())
    return Section(
        title,
        f"{percent(near.share_alike)} of the {near.labels.shape[1]} nearest training images of {near.num_queries:,} "
        f"val images are of the same class; by chance it would be {percent(by_chance)}.",
        "On the left val images, the first of their class; beside each the training images whose features are nearest, "
        f"of {near.num_searched:,}; no head is involved. A cross and a dashed frame mark another class.",
        report.pictures(
            [[query, *nearest] for query, nearest in zip(near.queries, near.nearest, strict=True)],
            captions,
            path,
            {(row, 1 + column) for row, column in np.argwhere(~alike)},
        ),
        f"{len(captions)} val images, each with its nearest training images.",
    )


def confusions(found: Findings, path: Path) -> Section:
    """What the answer takes val images for."""
    labels, classes, predicted = found.plan.labels["val"], found.portrait.classes, found.portrait.predicted
    title = "What it takes for what"
    if predicted is None:
        return Section(title, "Not drawn: its features are gone, or its head takes long to fit again.")
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    of_class = counts.sum(1)
    shares = counts / np.maximum(of_class, 1)[:, None]
    known = np.where(of_class > 0, shares.diagonal(), np.nan)
    best, worst = np.nanargmax(known), np.nanargmin(known)
    wrong = np.where(np.eye(len(classes), dtype=bool), 0, counts)
    order = np.unravel_index(np.argsort(-wrong, axis=None, kind="stable")[:MAX_PAIRS], wrong.shape)
    pairs = [(classes[a], classes[b], wrong[a, b], of_class[a]) for a, b in zip(*order, strict=True) if wrong[a, b]]
    says = [f"{of} is most often taken for {other}: {n} of {total} times" for of, other, n, total in pairs[:1]]
    says.append(
        f"{classes[best]} is known best ({percent(known[best])}), {classes[worst]} least ({percent(known[worst])})"
    )
    if len(classes) > MAX_CLASSES:
        rows = [(of, other, f"{n} of {total}", percent(n / total)) for of, other, n, total in pairs]
        table = Table(("true class", "taken for", "val images", "share"), rows)
        return Section(title, sentence(says), "The most frequent confusions.", table=table)
    figure = report.confusion(shares, classes, path)
    how = "Rows are true classes, and numbers percent of their val images; the diagonal is what is right."
    return Section(title, sentence(says), how, figure, f"Confusion matrix of {len(classes)} classes.")


def scores(found: Findings, path: Path) -> Section | None:
    """Choices without labels against accuracy; None where there are too few places to rank."""
    plan, label_free, looked = found.plan, found.label_free, found.race.accuracy(found.plan)
    if np.isfinite(looked).sum() < FEW:
        return None
    trusted, rows = label_free.trust(looked), []
    for name, merit in label_free.merits.items():
        one = trusted[name]
        within = f"{one.spearman_within_timestep:.2f}"
        rows.append((name, f"{one.spearman:.2f}", within, *outcome.first_choice(plan, found.race, merit, found.winner)))
    correlation = trusted["consensus"].spearman
    lost = rows[0][4]
    loses = f", which {'gains' if lost[0] == '-' else 'loses'} {lost.lstrip('-')} points" if lost else ""
    row, column = np.unravel_index(label_free.ranking.argmax(), looked.shape)
    return Section(
        "What would have been chosen without labels",
        f"Without labels {rows[0][3]} would have been chosen{loses}; over {np.isfinite(looked).sum():,} "
        f"places the ranking agrees with accuracy by a Spearman of {correlation:.2f}.",
        f"Scores without labels, of every block and timestep, against ridge on {plan.looks[0]:,} images. Points lost "
        "(regret) are those of a score's first choice against the answer's place under that ridge.",
        report.score_scatter(
            label_free.ranking, looked, plan.space.timesteps, correlation, path, (int(row), int(column)), found.star
        ),
        "Accuracy against the label-free ranking, one mark a block and timestep.",
        Table(("score", "Spearman", "at one timestep", "first choice", "points lost"), rows),
    )


def plane(found: Findings, path: Path) -> Section | None:
    """Alignment and uniformity."""
    looked, tables = found.race.accuracy(found.plan), found.label_free.scores
    if np.isfinite(looked).sum() < FEW or not {"alignment", "uniformity"} <= set(tables):
        return None
    says = []
    for name in ("alignment", "uniformity"):
        correlation = spearman(tables[name], looked)
        verb = (
            f"grows with {'lower' if correlation < 0 else 'higher'}" if abs(correlation) > 0.2 else "hardly depends on"
        )
        says.append(f"accuracy {verb} {name} (Spearman {correlation:.2f})")
    return Section(
        "Alignment and uniformity",
        sentence(says),
        "Every mark is a block at a timestep. Good features are where both are low, says the DDAE paper; along a "
        "dashed line accuracy is the same by the trend.",
        report.alignment_uniformity(tables["alignment"], tables["uniformity"], looked, found.star, path),
        "Uniformity against alignment, coloured by accuracy, with the fitted trend.",
    )


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def sentence(says: list[str]) -> str:
    """Of main clauses."""
    text = "; ".join(says)
    return f"{text[:1].upper()}{text[1:]}."
