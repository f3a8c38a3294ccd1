"""What every head looks like to the probe."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


class StackedHead(nn.Module):
    """S fits of one head that differ only in their setting (learning rate, penalty, ...), computed in one pass.

    forward: features [N, C, g, g] -> class scores [S, N, K].
    """

    def __init__(self, settings: tuple[str, ...]):
        super().__init__()
        self.settings = settings

    def only(self, setting: str) -> "StackedHead":
        """Return the fit of this one setting: S = 1."""
        raise NotImplementedError

    def probabilities(self, scores: Tensor) -> Tensor:
        """Turn the scores that forward returns into class probabilities of the same shape."""
        return scores.softmax(-1)


Fit = Callable[..., StackedHead]
"""fit(features float32 [N, C, g, g], labels int64 [N], num_classes, seed, *sizes, kept) fits a head close to
convergence, for all its settings at once; `sizes` are the structural sizes, where the head has any. Features may be
Streamed. `kept`, a Kept, is where a fit that takes long keeps its state and finds it again."""
Empty = Callable[..., StackedHead]
"""empty(features [N, C, g, g], num_classes, *sizes) builds the head of one setting without fitting it, for
load_state_dict to fill; features are on the meta device, where only their shape exists."""
Parts = Callable[..., tuple[nn.Module, Callable[[], nn.Module]]]
"""parts(features, num_classes, *sizes) gives a module that the features pass first, and a function that builds the
network behind it."""
Memory = Callable[..., tuple[int, int]]
"""memory(shape [N, C, g, g], num_classes, *sizes) -> bytes that a fit needs beside features that are held; beside
streamed ones."""


@dataclass(frozen=True)
class Head:
    """A family of heads."""

    fit: Fit
    empty: Empty
    memory: Memory
    sizes: tuple[tuple[int, ...], ...] = ((),)
    """Sizes that a search tries by default, in the papers' notation after the name: (64, 64) is cnn-64-64."""
    min_grid: int = 1
    """The smallest pooled grid that the head makes sense on."""
    largest: int = 2**20
    """The largest size that the head takes."""
    more_sizes: bool = False
    """Whether the head takes more sizes than the default ones have, as an MLP takes more hidden layers."""
    takes_all: bool = False
    """Whether the fitted head holds all training features."""
    parts: Parts | None = None
    """What it is made of, where it is a network that is trained by gradient descent; a Recipe can then take the place
    of its own."""
    version: int = 1
    """Raise it when `fit` gives another result for the same features: stored results carry it in their key."""


__all__ = ["Empty", "Fit", "Head", "Memory", "Parts", "StackedHead"]
