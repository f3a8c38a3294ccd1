"""The state of a fit that takes long, kept on its way."""

import io
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

log = logging.getLogger("sweeps")  # a worker passes on what is said there

SECONDS = 60
"""How long a fit goes on before its state is kept for the first time, and again."""


class Checkpoint(Protocol):
    """Where bytes are kept."""

    def load(self) -> bytes | None: ...

    def save(self, state: bytes) -> None: ...


class Kept:
    """The state of one fit in a checkpoint, so that it goes on after a kill; without one it is kept nowhere.

    name: what decides the fit; the state of another one is not taken for it.
    """

    def __init__(self, checkpoint: Checkpoint | None = None, name: str = ""):
        self.checkpoint, self.name = checkpoint, name
        self._saved_at, self._is_saved = time.monotonic(), False

    def part(self, number: int) -> "Kept":
        """The same for one of several fits after each other; after a kill those before it are fitted again."""
        return Kept(self.checkpoint, f"{self.name} part {number}")

    def load(self) -> dict[str, Any] | None:
        """The state that was kept; None where there is none."""
        kept = self.checkpoint.load() if self.checkpoint else None
        state = torch.load(io.BytesIO(kept), map_location="cpu", weights_only=True) if kept else None
        is_own = state is not None and state["name"] == self.name
        self._is_saved = is_own
        return state["state"] if state and is_own else None

    def save(self, state: Callable[[], dict[str, Any]]) -> None:
        """Keep state(), which is asked for where the last time is SECONDS ago."""
        if self.checkpoint and time.monotonic() - self._saved_at >= SECONDS:
            buffer = io.BytesIO()
            torch.save({"name": self.name, "state": state()}, buffer)
            try:
                self.checkpoint.save(buffer.getvalue())
                self._is_saved = True
            except OSError as error:
                log.warning(f"the state of a long fit is not kept ({error.strerror or error}); a kill would lose it")
            self._saved_at = time.monotonic()

    def done(self) -> None:
        """The fit has ended; its state is needed no more."""
        if self.checkpoint and self._is_saved:
            self.checkpoint.save(b"")
