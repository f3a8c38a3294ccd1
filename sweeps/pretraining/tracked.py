"""A training in MLflow while it runs; it does not wait for MLflow, and goes on without."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from storage.secrets import hidden
from storage.tracking import Tracker, tracking_uri
from sweeps.cluster.loop import TrainingProgress

log = logging.getLogger("sweeps")

POINT_SECONDS = 5.0
"""Between two points of the curves."""
PATIENCE_SECONDS = 10
"""How long a training that ends or is interrupted waits for what is being logged, before it says so or ends."""


class TrackedTraining:
    """Logs loss, learning rate, speed and sample grids to one run, which a rerun goes on with; the server is first
    asked in the background. A server that does not answer is one warning."""

    def __init__(
        self, experiment: str, key: str, name: str, params: Mapping[str, object], rate: Callable[[int], float],
        pictures: Path,
    ):  # fmt: skip
        """rate: the learning rate at a step. pictures: folder of the sample grids, step-N.png."""
        self.opened, self.params, self.rate, self.pictures = (experiment, key, name), params, rate, pictures
        self.tracker: Tracker | None = None
        self.points: list[tuple[str, float, int, float]] = []
        self.trouble = ""
        self._drawn: set[str] = set()
        self._latest = -POINT_SECONDS
        self._some, self._over = threading.Event(), threading.Event()
        self._writer = threading.Thread(target=self._write, daemon=True)

    def show(self, progress: TrainingProgress) -> None:
        """Take what the training reports."""
        now = time.monotonic()
        if not progress.images_per_second or now - self._latest < POINT_SECONDS:
            return
        self._latest = now
        step = progress.num_steps - 1
        values = {
            "loss": progress.loss,
            "learning_rate": self.rate(step),
            "images_per_second": progress.images_per_second,
        }
        self.points += [(name, value, step, time.time()) for name, value in values.items()]
        self._some.set()

    def __enter__(self) -> "TrackedTraining":
        self._writer.start()
        self._some.set()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._end_writer(waits=error is None)
        if error is not None and self.tracker and not self._writer.is_alive():
            self.tracker.__exit__(kind, error, traceback)

    def _end_writer(self, waits: bool) -> None:
        self._over.set()
        self._some.set()
        self._writer.join(PATIENCE_SECONDS)
        if waits and self._writer.is_alive():
            log.warning(f"waiting for MLflow at {hidden(tracking_uri())}")
            self._writer.join()

    def finish(self, losses: Sequence[float], metrics: Mapping[str, float], artifacts: Sequence[Path]) -> str:
        """Log what the curves lack and how the training ended; returns why that cannot be done, or nothing."""
        self._end_writer(waits=True)
        try:
            tracker = self._open()
            with tracker.hurried():
                self._log_new(tracker)
                done = tracker.last_step("loss")
                stride = max(1, len(losses) // 200)
                steps = {*range(stride - 1, len(losses), stride), len(losses) - 1}
                tracker.log_points(
                    [
                        (name, value, step, time.time())
                        for step in sorted(steps)
                        if step > done
                        for mean in [sum(losses[max(0, step - 99) : step + 1]) / min(step + 1, 100)]
                        for name, value in (("loss", mean), ("learning_rate", self.rate(step)))
                    ]
                )
                tracker.finish(metrics, [path for path in artifacts if path.is_file()])
        except (ValueError, OSError) as error:
            return str(error)
        return ""

    def _write(self) -> None:
        last = False
        while not last and self._some.wait():
            self._some.clear()
            last = self._over.is_set()
            try:
                tracker = self._open()
                with tracker.hurried() if last else nullcontext():
                    self._log_new(tracker)
            except (ValueError, OSError) as error:
                if not self.trouble:
                    log.warning(f"the training goes on, and is not in MLflow: {error}")
                self.trouble = str(error)

    def _open(self) -> Tracker:
        if not self.tracker:
            tracker = Tracker(tracking_uri(), *self.opened)
            tracker.log_params(self.params)
            self.tracker = tracker.__enter__()
        return self.tracker

    def _log_new(self, tracker: Tracker) -> None:
        new = list(self.points)
        tracker.log_points(new)
        del self.points[: len(new)]
        for path in sorted(self.pictures.glob("step-*.png")):
            if path.name not in self._drawn:
                tracker.log_file(path, "samples")
                self._drawn.add(path.name)
