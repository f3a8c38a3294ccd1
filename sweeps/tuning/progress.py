"""What a person sees of a sweep under way: one live table, or a plain line now and then where there is no terminal."""

import threading
from collections import deque
from datetime import timedelta
from time import monotonic

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

PLAIN_SECONDS = 30
"""Between two lines of one stage, where there is no terminal."""
RATE_SECONDS = 300
"""So much of the past tells the time left."""


class Count:
    """How much of a total is done, and how long the rest takes at the pace of late."""

    def __init__(self, total: float = 0):
        self.total, self.done = total, 0.0
        self._reached: deque[tuple[float, float]] = deque()

    def reach(self, done: float) -> None:
        """What is reached first is taken for known before."""
        self.done, now = done, monotonic()
        self._reached.append((now, done))
        while now - self._reached[0][0] > RATE_SECONDS and len(self._reached) > 2:
            self._reached.popleft()

    def seconds_to(self, total: float) -> float | None:
        """None where there is no pace yet."""
        if len(self._reached) < 2 or self._reached[-1][1] <= self._reached[0][1]:
            return None
        (began, first), (latest, last) = self._reached[0], self._reached[-1]
        return max(0.0, (total - last) * (latest - began) / (last - first) - (monotonic() - latest))

    def __str__(self) -> str:
        return f"{self.done:,.0f} of {self.total:,.0f}"


class Progress:
    """Shown while it is entered, which it may be again and again.

    least_passes: that the sweep runs at least. grid_passes: the exhaustive grid's.
    """

    def __init__(self, least_passes: float, grid_passes: float, console: Console | None = None):
        self.console = console or Console(stderr=True)
        self.least_passes = least_passes
        self._stage, self._num_stopped, self._best = "start", 0, ""
        self._steps, self._images, self._trials, self._passes = Count(), Count(), Count(), Count(grid_passes)
        self._passes.reach(0)
        self._started = monotonic()

    def stage(self, name: str, num_steps: int = 0, num_images: int = 0) -> None:
        """What begins: so many steps, images to extract."""
        self._stage, self._steps, self._images = name, Count(num_steps), Count(num_images)
        if not self.console.is_terminal:
            self._print()

    def step(self) -> None:
        self._steps.reach(self._steps.done + 1)

    def extracted(self, num_images: int, passes: float) -> None:
        """More images of the stage, and the full forward passes that they cost."""
        self._images.reach(self._images.done + num_images)
        self._passes.reach(self._passes.done + passes)

    def trials(self, num_ended: int, num_trials: int, num_stopped: int, best: str) -> None:
        """Of the search, so far."""
        self._trials.total = num_trials
        self._trials.reach(num_ended)
        self._num_stopped, self._best = num_stopped, best

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self._live = Live(get_renderable=self.table, console=self.console, transient=True)
            self._live.start()
        else:
            self._hidden = threading.Event()
            threading.Thread(target=self._print_on, args=[self._hidden], daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self._live.stop()
        else:
            self._hidden.set()

    def table(self) -> Table:
        """As it stands."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column(no_wrap=True, overflow="ellipsis", min_width=38)
        table.add_column(min_width=10, max_width=30)
        counts = {"stage": self._steps, "images": self._images, "trials": self._trials, "cost": self._passes}
        for name, text in self._rows().items():
            count = counts.get(name)
            bar = ProgressBar(count.total, min(count.done, count.total)) if count and count.total else ""
            table.add_row(name, text or "-", bar)
        return table

    def _rows(self) -> dict[str, str]:
        elapsed = clock(monotonic() - self._started)
        share = self._passes.done / self._passes.total
        return {
            "stage": self._stage + (f", {self._steps}" if self._steps.total else ""),
            "images": f"{self._images} extracted" if self._images.total else "",
            "trials": f"{self._trials}, {self._num_stopped:,} stopped early" if self._trials.total else "",
            "best": self._best,
            "cost": f"{self._passes.done:,.0f} passes, {share:.2f} of the grid",
            "time": f"{elapsed}, {self._left()} left",
        }

    def _left(self) -> str:
        """Of the trials where they have begun, else of what is extracted at least before them."""
        if self._trials.total:
            seconds, word = self._trials.seconds_to(self._trials.total), "about"
        else:
            seconds, word = self._passes.seconds_to(self.least_passes), "at least"
        return "-" if seconds is None else f"{word} {clock(seconds)}"

    def _print(self) -> None:
        line = "; ".join(text for text in self._rows().values() if text)
        self.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _print_on(self, hidden: threading.Event) -> None:
        while not hidden.wait(PLAIN_SECONDS):
            self._print()


def clock(seconds: float) -> str:
    """h:mm:ss"""
    return str(timedelta(seconds=round(seconds)))
