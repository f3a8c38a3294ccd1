"""The science: images in, a number out, on one device."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddae.winner import Winner


def load(folder: str | Path, device: str = "auto") -> "Winner":
    """What sweeps/hand_over.py has saved: a scikit-learn transformer and classifier of images.

    folder: of the sweep, or of the model in it. device: cpu, cuda, or auto: cuda where there is one.
    Raises ValueError where it is damaged, or where the network it refers to is gone or has changed.
    """
    from ddae.winner import load

    return load(Path(folder), device)
