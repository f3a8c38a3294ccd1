"""What a person sees of long work: one live table, or a plain line now and then where there is no terminal."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic

from rich import progress as rich_progress
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 30
"""Between two lines of one stage, where there is no terminal."""
PACE_SECONDS = 300
"""So much of the past tells the time left."""


class Count:
    """How much of a total is done, and at which pace."""

    def __init__(self, total: float = 0):
        self.total, self.done = total, 0.0
        self._past: deque[tuple[float, float]] = deque()

    def reach(self, done: float) -> None:
        """What is reached first took no time: it was done before."""
        self.done, now = done, monotonic()
        self._past.append((now, done))
        while len(self._past) > 2 and self._past[0][0] < now - PACE_SECONDS:
            self._past.popleft()

    def seconds_to(self, total: float) -> float | None:
        """None while there is no pace, and where that is reached."""
        if not self._past or self._past[0][1] == self.done or self.done >= total:
            return None
        (began, before), (latest, _) = self._past[0], self._past[-1]
        seconds = (total - self.done) * (latest - began) / (self.done - before)
        return max(0.0, seconds - (monotonic() - latest))

    def __str__(self) -> str:
        return f"{self.done:,.0f} of {self.total:,.0f}"


class Progress:
    """Shown while it is entered, which it may be again and again.

    least_passes: full forward passes that are run at least. grid_passes: those of the exhaustive grid; 0 where a sweep
    extracts nothing.
    """

    def __init__(self, least_passes: float = 0, grid_passes: float = 0, console: Console | None = None):
        self.console = console or Console(stderr=True)
        self.least_passes = least_passes
        self._stage, self._num_stopped, self._best = "start", 0, ""
        self._steps, self._images, self._trials, self._passes = Count(), Count(), Count(), Count(grid_passes)
        self._began = monotonic()

    def stage(self, name: str, num_steps: int = 0, num_images: int = 0) -> None:
        """What begins, of so many steps, or of so many images to extract."""
        self._stage, self._steps, self._images = name, Count(num_steps), Count(num_images)
        if not self.console.is_terminal:
            self._print()

    def step(self) -> None:
        """One of the stage is done."""
        self._steps.reach(self._steps.done + 1)

    def extracted(self, num_images: int, passes: float) -> None:
        """More images of the stage, and the full forward passes that they cost."""
        self._images.reach(self._images.done + num_images)
        self._passes.reach(self._passes.done + passes)

    def trials(self, num_ended: int, num_trials: int, num_stopped: int, best: str) -> None:
        """Where the search stands."""
        self._trials.total = num_trials
        self._trials.reach(num_ended)
        self._num_stopped, self._best = num_stopped, best

    def __enter__(self) -> "Progress":
        self._left_alone = threading.Event()
        if self.console.is_terminal:
            self._live = Live(get_renderable=self.table, console=self.console, transient=True)
            self._live.start()
        else:
            _now_and_then(self._print, self._left_alone)
        return self

    def __exit__(self, *error: object) -> None:
        self._left_alone.set()
        if self.console.is_terminal:
            self._live.stop()

    def table(self) -> Table:
        """As things stand."""
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        table.add_column(width=20, no_wrap=True)
        counts = {"stage": self._steps, "images": self._images, "trials": self._trials, "cost": self._passes}
        for name, text in self._rows().items():
            count = counts.get(name)
            bar = ProgressBar(count.total, count.done) if count and count.total else ""
            table.add_row(name, Text(text or "-"), bar)
        return table

    def _rows(self) -> dict[str, str]:
        share = self._passes.done / (self._passes.total or 1)
        return {
            "stage": f"{self._stage}, {self._steps}" if self._steps.total else self._stage,
            "images": f"{self._images} extracted" if self._images.total else "",
            "trials": f"{self._trials}, {self._num_stopped:,} stopped early" if self._trials.total else "",
            "best": self._best,
            "cost": f"{self._passes.done:,.0f} passes, {share:.2f} of the grid" if self._passes.total else "",
            "time": clock(monotonic() - self._began),
            "left": self._time_left(),
        }

    def _time_left(self) -> str:
        """For the trials, once they have begun; before, for the passes that come at least. Nothing past that."""
        if self._trials.total:
            seconds, word = self._trials.seconds_to(self._trials.total), "about"
        else:
            seconds, word = self._passes.seconds_to(self.least_passes), "at least"
        return f"{word} {clock(seconds)}" if seconds else ""

    def _print(self) -> None:
        line = "; ".join(f"{name} {text}" for name, text in self._rows().items() if text)
        self.console.print(line, soft_wrap=True, markup=False, highlight=False)


@contextmanager
def bars(console: Console | None = None) -> Iterator[rich_progress.Progress]:
    """Show tasks that are counted in steps; each has a field `note`, which stands beside its bar."""
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[note]}"),
    )
    left_alone = threading.Event()
    console = console or Console(stderr=True)
    with rich_progress.Progress(*columns, console=console) as shown:
        if not console.is_terminal:
            _now_and_then(lambda: console.print(shown.get_renderable()), left_alone)
        try:
            yield shown
        finally:
            left_alone.set()


def _now_and_then(do: Callable[[], None], left_alone: threading.Event) -> None:
    def work() -> None:
        while not left_alone.wait(PLAIN_SECONDS):
            do()

    threading.Thread(target=work, daemon=True).start()


def clock(seconds: float) -> str:
    """h:mm:ss"""
    return str(timedelta(seconds=round(seconds)))
