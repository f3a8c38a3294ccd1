import io
import re
import time

import pytest
from rich.console import Console

from sweeps import progress
from sweeps.progress import Progress, bars

CELL = "89.4 % down_blocks.1.attentions.0/250/4/mlp-2048-2048-2048"


@pytest.fixture
def wait(monkeypatch):
    """Lets so many seconds pass."""
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def shown(one, width=100):
    """Name -> what its row of the table says."""
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(one.table())
    rows = {}
    for line in console.file.getvalue().splitlines():
        assert len(line) <= width
        name, text = line[:8].strip(), re.sub("[━╸╺]", "", line[8:]).strip()
        rows[name or list(rows)[-1]] = rows.get(name or list(rows)[-1], "") + text
    return rows


def test_nothing_is_told_before_it_is_known(wait):
    one = Progress(least_passes=6000, grid_passes=40_000)
    wait(65)
    assert shown(one) == {
        "stage": "start", "images": "-", "trials": "-", "best": "-", "cost": "0 passes, 0.00 of the grid",
        "time": "0:01:05", "left": "-",
    }  # fmt: skip


def test_a_stage_counts_its_images_and_its_steps():
    one = Progress(6000, 40_000)
    one.stage("look at 300, forward", num_images=2100)
    one.extracted(300, 300)
    one.extracted(300, 150)
    rows = shown(one)
    assert (rows["images"], rows["cost"]) == ("600 of 2,100 extracted", "450 passes, 0.01 of the grid")
    one.stage("look at 300, ridge", num_steps=91)
    one.step()
    rows = shown(one)
    assert (rows["stage"], rows["images"]) == ("look at 300, ridge, 1 of 91", "-")
    assert rows["cost"] == "450 passes, 0.01 of the grid"


def test_what_is_extracted_at_least_takes_as_long_as_what_was(wait):
    one = Progress(1000, 40_000)
    wait(100)  # while Ray starts
    one.extracted(100, 100)
    assert shown(one)["left"] == "-"
    wait(10)
    one.extracted(100, 100)
    assert shown(one)["left"] == "at least 0:01:20"
    wait(5)
    assert shown(one)["left"] == "at least 0:01:15"
    one.extracted(800, 800)
    assert shown(one)["left"] == "-"


def test_trials_that_were_known_before_took_no_time(wait):
    one = Progress(1000, 40_000)
    one.trials(30, 40, 20, CELL)
    assert shown(one)["left"] == "-"
    wait(10)
    one.trials(31, 40, 21, CELL)
    rows = shown(one)
    assert (rows["trials"], rows["left"]) == ("31 of 40, 21 stopped early", "about 0:01:30")


def test_the_pace_is_that_of_late(wait):
    one = Progress(1000, 40_000)
    for place, seconds in enumerate([1] * 400 + [100] * 4):
        wait(seconds)
        one.trials(place + 1, 1000, 0, CELL)
    assert shown(one)["left"] == "about 16:33:20"


@pytest.mark.parametrize("width", [60, 100, 200])
def test_a_long_name_fits(width):
    one = Progress(1000, 40_000)
    one.stage("look at 1,200, ridge", num_steps=91)
    one.trials(12, 40, 5, CELL)
    rows = shown(one, width)
    assert list(rows) == ["stage", "images", "trials", "best", "cost", "time", "left"]
    assert rows["best"].replace(" ", "") == CELL.replace(" ", "")


def test_names_are_no_markup():
    one = Progress(1000, 40_000)
    one.trials(12, 40, 5, "[red]90%[/red]")
    assert shown(one)["best"] == "[red]90%[/red]"


def test_a_terminal_gets_one_table_that_leaves_again():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    one = Progress(1000, 40_000, console)
    for stage in ("first", "second"):
        with one:
            one.stage(stage)
        drawn = console.file.getvalue()
        assert stage in drawn
        assert drawn.endswith("\x1b[2K")  # the last line that it had is erased


def test_no_terminal_gets_a_line_a_stage_and_one_now_and_then(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.05)
    console = Console(file=io.StringIO(), width=80)
    one = Progress(1000, 40_000, console)
    with one:
        one.stage("look at 300, forward", num_images=2100)
        one.extracted(300, 300)
        while console.file.getvalue().count("\n") < 3:
            time.sleep(0.01)
    first, second, *_ = lines = console.file.getvalue().splitlines()
    assert first.startswith("stage look at 300, forward; images 0 of 2,100 extracted; cost 0 passes")
    assert second.startswith("stage look at 300, forward; images 300 of 2,100 extracted; cost 300 passes")
    time.sleep(0.2)
    assert len(console.file.getvalue().splitlines()) <= len(lines) + 1


def test_bars_are_lines_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.05)
    console = Console(file=io.StringIO(), width=80)
    with bars(console) as shown:
        task = shown.add_task("training", total=300, note="")
        shown.update(task, completed=200, note="loss 0.25")
        while "200/300" not in console.file.getvalue():
            time.sleep(0.01)
    [line, *_] = (line for line in console.file.getvalue().splitlines() if "200/300" in line)
    assert line.startswith("training") and line.rstrip().endswith("loss 0.25")
