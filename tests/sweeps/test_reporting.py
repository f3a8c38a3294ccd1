"""The page of searches of every shape, from random numbers; of a real sweep it is in test_commands.py."""

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ddae.backbones import Block, Settings
from ddae.features import FeatureKey
from ddae.probe import Candidate, ProbeResult
from ddae.report import render, with_test
from sweeps.tuning import outcome, reporting, sections
from sweeps.tuning.outcome import Cost, FinishedTrial, LabelFree
from sweeps.tuning.plan import Plan
from sweeps.tuning.portrait import Neighbours, Portrait
from sweeps.tuning.race import Race
from sweeps.tuning.space import Space

NASTY = '<script>alert("$1$")</script>', "a & b", "$\\frac$", "線"
NUM_VAL = 300


def findings(
    num_blocks=5, timesteps=(0, 10, 100), poolings=(1, 2), heads=("linear", "mlp-256"), classes=NASTY, grid=False
):
    rng = np.random.default_rng(0)
    blocks = tuple(Block(f"up.{place}", place, "up", 8, 8, (place + 1) / num_blocks) for place in range(num_blocks))
    space = Space(blocks, timesteps, poolings, heads)
    labels = {"train": np.arange(800) % len(classes), "val": np.arange(NUM_VAL) % len(classes)}
    plan = Plan(
        name=NASTY[0], backbone="model", dataset="images", data_root="data", settings=Settings(), encoder="",
        store="store", key=FeatureKey("weights", "images", 0, 0.2, 0, 0, 4), space=space,
        looks=(50,) if grid else (50, 200), rungs=(800,) if grid else (200, 800), exhaustive=grid, keep=0.5,
        finalists=1, labels=labels, num_classes=len(classes), sigmas={t: t / 100 + 0.01 for t in timesteps}, seed=0,
    )  # fmt: skip
    places = space.places if grid else {timesteps[-1]: tuple(block.name for block in blocks)}
    looks = [{t: {b.name: rng.random(num) < 0.7 for b in blocks} for t in timesteps} for num in plan.looks]
    looks[1:] = [{t: look[t] for t in places} for look in looks[1:]]

    def trial(place, cell):
        num_rungs = len(plan.rungs) if place % 3 == 0 else 1
        rungs = []
        for num_images in plan.rungs[:num_rungs]:
            correct = rng.random(NUM_VAL) < 0.5 + 0.4 * num_images / 800
            rungs.append(ProbeResult(cell, num_images, float(correct.mean()), 0.02, "penalty=1", correct, 0.1, 9.0))
        return FinishedTrial(cell, rungs, num_rungs < len(plan.rungs))

    trials = [trial(place, cell) for place, cell in enumerate(space.candidates_at(places))]
    scores = {name: rng.random((num_blocks, len(timesteps))) for name in ("alignment", "uniformity", "contrast")}
    picture = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    shown = np.sort(np.unique(labels["val"], return_index=True)[1])[:5]
    near = Neighbours(
        [picture] * len(shown), labels["val"][shown], [[picture] * 5] * len(shown),
        rng.integers(0, len(classes), (len(shown), 5)), 800, NUM_VAL, 0.5,
    )  # fmt: skip
    predicted = np.where(rng.random(NUM_VAL) < 0.8, labels["val"], 0)
    portrait = Portrait(classes, [picture] * 5, [picture] * 5, near, predicted)
    label_free = LabelFree(-scores["alignment"], scores)
    return sections.Findings(plan, outcome.choose(plan, trials), trials, Race(looks, places), label_free, portrait)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """(findings, HTML)."""
    found = findings()
    return found, page_of(found, tmp_path_factory.mktemp("figures"))[1]


def facts(found, baseline_accuracy=0.1):
    baseline = replace(
        found.answer.winner, candidate=Candidate("pixels", 0, 8, "linear"), val_accuracy=baseline_accuracy
    )
    cost = Cost(100, 1000, 800, 100, 1.0, 2.0, 0.1)
    return outcome.answer_facts(found.plan, found.answer, found.trials, baseline, found.race, found.label_free, cost)


def page_of(found, folder):
    drawn = sections.draw(found, folder)
    test = reporting.test_text(None, folder, found.winner.name)
    return drawn, render(reporting.page(found, drawn, facts(found), NASTY[0], "python x.py --dataset '<i>'", test))


@pytest.mark.parametrize(("lead", "beaten"), [(0.1, True), (0.0, False), (-0.1, False)])
def test_an_answer_that_raw_pixels_match_says_so(shown, lead, beaten):
    found, _ = shown
    said = facts(found, found.answer.winner.val_accuracy - lead)["raw pixels"]
    assert said.endswith("does not beat them") != beaten


class Seen(HTMLParser):
    """Tags and attributes of a page, and its text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def check_alone(html):
    """Nothing is fetched and nothing runs."""
    seen = Seen(html)
    assert not seen.tags & {"script", "link", "iframe", "object", "embed", "base"}
    for name, value in seen.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert value.startswith(("#", "data:image/png;base64,"))
    assert "url(http" not in html and "@import" not in html
    return seen


ALL = {
    "Where in the network, and at how much noise", "How the timesteps raced", "Which trials were worth all images",
    "Which pooling and which head", "What accuracy costs", "What the network saw", "What the feature finds alike",
    "What it takes for what", "What would have been chosen without labels", "Alignment and uniformity",
}  # fmt: skip
UNLABELLED = {"What would have been chosen without labels", "Alignment and uniformity"}


@pytest.mark.parametrize(
    ("shape", "absent"),
    [
        ({"grid": True, "poolings": (1,)}, {"How the timesteps raced", "Which trials were worth all images"}),
        (
            {"num_blocks": 1, "timesteps": (10,), "poolings": (1,), "heads": ("knn",), "classes": ("no", "yes")},
            {"How the timesteps raced", "Which pooling and which head", *UNLABELLED},
        ),
        (
            {"num_blocks": 37, "timesteps": tuple(range(0, 1000, 50)), "classes": tuple(map(str, range(1000)))},
            set(),
        ),
    ],
    ids=["grid", "one place", "many"],
)
def test_every_shape_of_search_has_its_page(shape, absent, tmp_path):
    found = findings(**shape)
    sections, html = page_of(found, tmp_path)
    assert {section.title for section in sections} == ALL - absent
    assert {path.stem for path in tmp_path.glob("*.png")} >= {"block_timestep", "cost", "samples", "neighbours"}
    for path in tmp_path.glob("*.png"):
        assert np.asarray(Image.open(path).convert("L")).std() > 5
    seen = check_alone(html)
    assert found.winner.block in seen.text and "±" in seen.text and "nan" not in seen.text.lower().split()
    assert len(html) < 2_000_000


def test_names_are_text_and_nothing_else(shown):
    _, html = shown
    seen = check_alone(html)
    assert "<script" not in html
    for text in (*NASTY, "--dataset '<i>'", *ALL):
        assert text in seen.text


def test_the_test_accuracy_takes_its_place(shown, tmp_path):
    found, html = shown
    final = outcome.Tested(found.winner.name, "penalty=1", 800, 2000, 0.876, 0.007, 0.89, "today")
    tested = with_test(html, reporting.test_text(final, tmp_path, found.winner.name))
    assert "have not been looked at" in html and "have not been looked at" not in tested
    assert "87.6 ± 0.7\xa0% (2,000 images), measured once, on today." in Seen(tested).text
    assert tested == with_test(tested, reporting.test_text(final, tmp_path, found.winner.name))
    assert "<i>" not in with_test(html, "<i>\\1")
    assert "which was the answer then" in reporting.test_text(final, tmp_path, "another")


def test_pairs_differ_in_one_choice_alone():
    def trial(cell, *accuracies):
        rungs = [
            ProbeResult(Candidate(*cell), num, accuracy, 0.1, "", np.ones(1, bool), 0, 0)
            for num, accuracy in zip((200, 800), accuracies, strict=False)
        ]
        return FinishedTrial(Candidate(*cell), rungs, len(rungs) == 1)

    trials = [
        trial(("mid", 0, 1, "linear"), 0.5, 0.7),
        trial(("mid", 0, 2, "linear"), 0.6, 0.9),
        trial(("mid", 0, 2, "mlp"), 0.1),
        trial(("mid", 0, 1, "mlp"), 0.3, 0.4),
        trial(("mid", 5, 2, "mlp"), 0.2),
    ]
    points = sections.paired_points(trials, "pooling", 1)
    assert sorted(points[2]) == pytest.approx([-20, 20])  # mlp at 200 images, linear at 800
    assert sections.paired_points(trials, "head", "linear")["mlp"] == pytest.approx([-30, -50])
    assert not len(points[4])
