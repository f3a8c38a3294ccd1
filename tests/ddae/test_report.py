import numpy as np
import pytest
from PIL import Image

from ddae.report import figures as report
from ddae.report import style
from ddae.report.page import PLUS_MINUS, Section, Table, breakable, typeset


def test_the_pareto_front_is_what_nothing_beats():
    cost, value = np.array([1, 2, 2, 3, 4, 5]), np.array([0.5, 0.4, 0.7, 0.7, 0.9, 0.9])
    assert report.pareto_front(cost, value).tolist() == [0, 2, 4]


def test_long_names_are_shortened_to_one_line():
    assert style.shortened("two\n lines") == "two lines"
    assert style.shortened("a" * 20, 5) == "aaaa…"


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 3)])
def test_figures_of_few_and_equal_numbers(shape, tmp_path):
    same = np.full(shape, 0.5)
    blocks, sigmas = ["a$b$"] * shape[0], {t: float("inf") for t in range(shape[1])}
    path = tmp_path / "figure.png"
    for draw in (
        lambda: report.heat_map(100 * same, blocks, sigmas, "%", "title", path, star=(blocks[0], 0)),
        lambda: report.score_scatter(
            same, same, list(sigmas), float("nan"), "accuracy", path, first=(0, 0), star=(0, 0)
        ),
        lambda: report.alignment_uniformity(same, same, same, (0, 0), "accuracy", path),
        lambda: report.paired_effects(
            {"pooling": {"1 x 1": np.zeros(0), "2 x 2": np.ones(1)}}, {"pooling": "4"}, "accuracy", path
        ),
        lambda: report.cost_scatter(same[0], same[0], {"numbers": same[0]}, ["knn"] * shape[1], 0, "accuracy", path),
        lambda: report.courses([[(64, 0.5)]], [True], ["t = 1"], "%", path),
        lambda: report.confusion(np.eye(2), ["no", "$"], path),
        lambda: report.pictures([[np.zeros((1, 1, 3), np.uint8)]], [["$a"]], path, {(0, 0)}),
    ):
        path.unlink(missing_ok=True)
        draw()
        assert np.asarray(Image.open(path).convert("L")).std() > 5


LONG = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize("path", ["mid", LONG, LONG * 3])
def test_names_of_blocks_lie_within_the_heat_map(path, tmp_path):
    figure = report.heat_map(np.eye(3), [path, "a", "b"], {0: 0.1, 10: 0.2, 999: 348.0}, "%", "t", tmp_path / "f.png")
    renderer = figure.canvas.get_renderer()
    [axes, *_] = figure.axes
    for label in [*axes.get_yticklabels(), *axes.get_xticklabels(), axes.title]:
        box = label.get_window_extent(renderer)
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0
    assert axes.get_window_extent(renderer).width > 0.2 * figure.bbox.width
    assert axes.get_xticklabels()[2].get_text() == "999\n348"


def test_long_names_may_be_broken_in_a_table_and_numbers_may_not():
    assert breakable(f"{LONG}/10").count("<wbr>") == 8
    assert breakable("<b> 1.3 +- 3.5 %") == f"&lt;b&gt; 1.3{PLUS_MINUS}3.5\N{NO-BREAK SPACE}%"
    assert breakable("8% of it") == "8\N{NO-BREAK SPACE}% of it" and typeset("a%20b") == "a%20b"


def test_a_table_of_long_names_takes_both_columns():
    assert Section("title", "says", table=Table(("block",), [(LONG,)])).wide
    assert not Section("title", "says", table=Table(("block",), [("mid/10",)])).wide
