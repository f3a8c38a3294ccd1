"""The report is of the metric that has chosen."""

import re
from dataclasses import replace

import numpy as np
import pytest

from ddae.heads import StackedHead
from ddae.label_free import SCORES
from ddae.probe import Fitted
from sweeps.findings import folder as records
from sweeps.findings.answer import choose
from sweeps.layer_noise import LayerNoise
from sweeps.probing import note, text
from sweeps.probing.cost import Cost
from sweeps.probing.findings import Findings
from sweeps.probing.publish import page, results
from sweeps.probing.screening import LabelFree, Screening, ScreeningRules
from sweeps.probing.sections import draw, timesteps_text
from sweeps.probing.space import Space
from sweeps.probing.task import ProbeTask
from sweeps.search.task import Trial
from tests.sweeps.probing.test_task import BLOCK, SOURCE

NAMES = "down.0.0", "mid", "up.0.0"
SPACE = Space(
    tuple(replace(BLOCK, name=name, flops_share=0.3 * n + 0.3) for n, name in enumerate(NAMES)),
    {0: 0.01, 10: 0.05, 30: 0.2},
    (1, 2),
    ("linear", "knn"),
)
LABELS = {"train": np.arange(800) % 8 // 7, "val": np.arange(200) % 8 // 7}
BOUND = 0.85
"""Of classes of 7 to 1 where the first is always right: accuracy is above it, and balanced accuracy below."""


def findings(folder, metric="balanced_accuracy", exhaustive=False, space=SPACE, tried=None, prefer="best"):
    """Trials that are always right on the large class, and on up to a third of the images of the small one."""
    rungs = (800,) if exhaustive else (200, 800)
    task = ProbeTask(SOURCE, space, space.sites, LABELS, 2, rungs, notes=("2 classes",), metric=metric)
    rng = np.random.default_rng(0)

    def right(labels, share):
        return (labels == 0) | (rng.random(len(labels)) < share)

    def result(share):
        return task.result(Fitted(StackedHead(("penalty=1",)), 0, right(LABELS["val"], share), LABELS["val"]), 0.0)

    cells = space.cells if tried is None else space.cells[:tried]
    trials = []
    for n, cell in enumerate(cells):
        stopped = not exhaustive and n % 3 == 0
        reached = rungs[:1] if stopped else rungs
        at = {rung: result(0.05 + 0.2 * n / len(cells) + 0.1 * (rung == 800)) for rung in reached}
        trials.append(Trial(cell, at, "stopped" if stopped else "finished"))
    rules = ScreeningRules((200,), exhaustive=exhaustive)
    first = {
        t: {b: task.counted(right(LABELS["train"][:200], 0.1 * n)) for b in space.block_names}
        for n, t in enumerate(space.timesteps)
    }
    screening = Screening(rules, space, (first,), space.sites)
    table = np.arange(len(space.blocks) * len(space.timesteps), dtype=float).reshape(len(space.blocks), -1)
    label_free = LabelFree(table, dict.fromkeys(SCORES, table), np.stack([table] * 3 + [-table]))
    cost = Cost(80, 20, 100, 1000, 800, 100, 1, 1, 0.1)
    answer = choose(task, trials, space.cost, task.weights, prefer)
    return Findings(task, tuple(trials), answer, screening, label_free, result(0.3), None, cost, folder, "in MLflow")


def drawn(found, folder):
    sections, undrawn = draw(found, folder)
    assert not undrawn
    return list(sections.values())


def words(section):
    """All that a section says, in its figure too."""
    from matplotlib.text import Text

    texts = [each.get_text() for each in section.figure.findobj(Text)] if section.figure else []
    return [section.title, section.conclusion, section.how_to_read, section.alt, *texts]


@pytest.mark.parametrize("exhaustive", [False, True])
def test_every_number_is_of_the_metric_that_has_chosen_and_bears_its_name(exhaustive, tmp_path):
    found = findings(tmp_path, exhaustive=exhaustive)
    said = [each for section in drawn(found, tmp_path) for each in words(section)]
    assert len(said) > 100
    for each in said:
        assert len(re.findall("accuracy", each, re.I)) == len(re.findall("balanced accuracy", each, re.I)), each
    for section in drawn(found, tmp_path):
        for axes in section.figure.axes:
            if "accuracy (%)" in axes.get_ylabel() and axes.lines:
                highest = max(np.nanmax(line.get_ydata()) for line in axes.lines)
                assert 40 < highest < 100 * BOUND, (section.title, highest)
            for image in axes.images:
                assert image.get_array().max() < 100 * BOUND


def test_without_it_accuracy_is_not_called_otherwise(tmp_path):
    found = findings(tmp_path, "accuracy")
    assert "balanced" not in " ".join(each for section in drawn(found, tmp_path) for each in words(section))


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_report_page_and_record_lead_with_it(metric, tmp_path):
    found = findings(tmp_path, metric)
    value = found.answer.result.metrics[f"val_{metric}"]
    shown = page(found, [], LayerNoise(metric=metric))
    assert shown.accuracy.startswith(f"{100 * value:.1f} +- ")
    assert ("balanced" in shown.says) == (metric == "balanced_accuracy")
    header = text.tied_rows(found)[0]
    assert ("val balanced accuracy" in header) == (metric == "balanced_accuracy")
    facts, named = text.facts(found), " balanced accuracy" * (metric == "balanced_accuracy")
    assert f"{100 * value:.1f} +- " in facts["answer"] and facts["answer"].endswith(f" %{named} on val")
    raw_pixels = 100 * found.raw_pixels.metrics[f"val_{metric}"]
    assert facts["raw pixels"].startswith(f"{raw_pixels:.1f} +- ") and f" %{named} under" in facts["raw pixels"]
    assert ("accuracy" in facts) == bool(named) != ("balanced" in facts)
    assert np.nanmax(np.array(results(found, LayerNoise(metric=metric))[f"ridge_{metric}"], float)) <= 1


@pytest.mark.parametrize("prefer", ["best", "cheapest"])
def test_what_is_tied_with_the_best_is_shown_with_what_it_saves_and_loses(prefer, tmp_path):
    found = findings(tmp_path, "accuracy", prefer=prefer)
    answer, space = found.answer, found.task.space
    merits = [trial.last.metrics["val_accuracy"] for trial in answer.tied]
    assert merits == sorted(merits, reverse=True) and merits[0] == max(
        t.last.metrics["val_accuracy"] for t in found.full
    )
    assert answer.winner is (answer.tied[0] if prefer == "best" else answer.cheapest)
    assert space.cost(answer.cheapest.cell) == min(space.cost(trial.cell) for trial in answer.tied)
    assert answer.cheapest is not answer.best
    header, *rows = text.tied_rows(found)
    column = [row[header.index("lost")] for row in rows]
    assert column[0] == "" and all(float(lost.split(" +- ")[0]) >= 0 for lost in column[1:])
    marked = {mark: row[header.index("block")] for row in rows for mark in row[0].split(", ")}
    assert marked["answer"] == found.cell.block and marked["cheapest"] == answer.cheapest.cell.block
    assert f"the {prefer} is the answer" in text.sure(found)
    assert results(found, LayerNoise())["cheapest"]["cell"]["block"] == answer.cheapest.cell.block


def test_the_error_of_screening_is_that_of_the_numbers_shown(tmp_path):
    plain = findings(tmp_path, "accuracy").screening
    right = np.concatenate([list(blocks.values()) for blocks in plain.rounds[0].values()])
    accuracy = right.mean(1)
    assert plain.stderr == pytest.approx(np.median((accuracy * (1 - accuracy) / right.shape[1]) ** 0.5))
    assert findings(tmp_path).screening.stderr > plain.stderr


def test_sentences_leave_names_as_they_are(tmp_path):
    """No capital for a timestep's letter, a class or a head, and a verb that fits the number."""
    sections = {section.title: section for section in drawn(findings(tmp_path, "accuracy"), tmp_path)}
    screened = sections["How the timesteps were screened"].conclusion
    assert screened == "Timesteps 0, 10 and 30 stayed to the end, with 9 of their 9 sites."
    chosen = sections["Which pooling and which head"].conclusion
    assert "pooling" in chosen.lower() and "head" in chosen and not re.search(r"T = |Mlp|Linear|Knn", chosen)
    assert timesteps_text([10]) == "timestep 10" and timesteps_text([0, 10]) == "timesteps 0 and 10"


def test_a_choice_that_was_never_paired_has_no_row(tmp_path):
    found = findings(tmp_path, "accuracy", tried=2)  # pooling 1 under both heads
    [section] = [each for each in drawn(found, tmp_path) if each.title.startswith("Which pooling")]
    assert "(0 pairs)" not in " ".join(words(section)) and "pooling 2 x 2 was never tried" in section.conclusion.lower()


@pytest.mark.parametrize(("num", "says"), [(1, "one cell alone was"), (5, "cells that were fitted on all images ")])
def test_how_sure_the_answer_is_in_a_sentence_that_fits(num, says, tmp_path):
    found = findings(tmp_path, "accuracy", exhaustive=True, tried=num)
    assert says in text.sure(found) and " 1 of the" not in f" {text.sure(found)}"


def test_the_test_number_is_of_the_metric_that_has_chosen(tmp_path):
    numbers = {"test_accuracy": 0.9, "test_stderr": 0.01, "val_accuracy": 0.92}
    kept = {"cell": "a", "setting": "", "num_train": 8, "num_test": 200, "date": "today"}
    earlier = records.Tested(**kept, **numbers)  # as final_test.json of version 0.2 is read
    assert records.test_text(earlier, tmp_path, "a") == "On test 90.0 +- 1.0 % (200 images), measured once, on today."
    balanced = {"test_balanced_accuracy": 0.6, "test_balanced_stderr": 0.05, "val_balanced_accuracy": 0.7}
    chosen = records.Tested(**kept, **numbers, **balanced, notes="accuracy 90.0 +- 1.0 %", measure="balanced accuracy")
    assert (chosen.percent, chosen.val_chosen) == ("60.0 +- 5.0 %", 0.7)
    said = "On test 60.0 +- 5.0 % balanced accuracy (200 images), measured once, on today; accuracy 90.0 +- 1.0 %."
    assert records.test_text(chosen, tmp_path, "a") == said
    beside = records.Tested(**kept, **numbers, **balanced)
    assert (beside.percent, beside.val_chosen) == ("90.0 +- 1.0 %", 0.92)


def test_every_column_of_the_tied_cells_is_explained_on_the_page(tmp_path):
    shown = page(findings(tmp_path), [], LayerNoise())
    explained = {word for words in shown.words for word in words.split(", ")}
    columns = {column.removeprefix("val ") for column in shown.tied.header if column} - {"accuracy"}
    assert columns <= explained and "balanced accuracy" in columns


@pytest.mark.parametrize("exhaustive", [True, False])
def test_the_description_in_mlflow_has_the_numbers_of_the_heat_map(exhaustive, tmp_path):
    found = findings(tmp_path, exhaustive=exhaustive, tried=None if exhaustive else 5)
    said, table = note.note(found), note.table(found)
    assert table in said and "get-artifact?path=block_timestep.png&run_uuid={run_id}" in said
    title, _, *lines = table.splitlines()
    assert ("of the best pooling and head on 800" if exhaustive else "under ridge") in title
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert header == ["block", "t = 0", "t = 10", "t = 30"] and [row[0] for row in rows] == list(NAMES)
    values = 100 * (found.best_accuracies() if exhaustive else found.screening.accuracy)
    shown = np.array([[float(cell.strip("*")) for cell in row[1:]] for row in rows])
    assert np.abs(shown - values).max() <= 0.051
    bold = np.array([["*" in cell for cell in row[1:]] for row in rows])
    assert np.array_equal(bold, values == values.max())


def test_a_long_table_leaves_the_worst_blocks_out(tmp_path):
    names = [f"block.{n}" for n in range(300)]
    space = replace(SPACE, blocks=tuple(replace(BLOCK, name=name) for name in names))
    found = findings(tmp_path, space=space, tried=9)
    lines = note.table(found).splitlines()
    assert len("\n".join(lines[4:])) <= note.MAX_LETTERS and "worse blocks are left out" in lines[0]
    best = found.screening.accuracy.max(1)
    kept = [names.index(line.split("|")[1].strip()) for line in lines[4:]]
    assert kept == sorted(kept) and best[kept].min() >= np.delete(best, kept).max()
