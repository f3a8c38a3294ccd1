"""The label-free scores of every site of a space, and the ranking that they give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ddae.label_free import LABELLED, SCORES, Trust, rank, trust
from sweeps.probing.source import Need
from sweeps.probing.space import Space

NUM_IMAGES = 32
"""How many images a search's label-free scores see; 256 rank the sites no better (docs/log.md)."""


@dataclass(frozen=True)
class LabelFree:
    """Scores that saw no label, or few; arrays are [blocks, timesteps]."""

    ranking: np.ndarray
    """Higher is better."""
    scores: dict[str, np.ndarray]

    @staticmethod
    def of(space: Space, scores: Sequence[Mapping[str, Mapping[str, float]]]) -> "LabelFree":
        """scores: block -> score -> value, one a timestep of the space, in its order."""
        cells = [at_timestep[name] for name in space.block_names for at_timestep in scores]
        shape = len(space.blocks), len(space.timesteps)
        tables = {name: np.array([cell[name] for cell in cells]).reshape(shape) for name in cells[0]}
        return LabelFree(rank(cells).numpy().reshape(shape), tables)

    @property
    def merits(self) -> dict[str, np.ndarray]:
        """The ranking, as consensus, and every score alone; higher is better."""
        every = {**SCORES, **LABELLED}
        return {"consensus": self.ranking, **{name: every[name].merit(table) for name, table in self.scores.items()}}

    def trust(self, accuracy: np.ndarray) -> dict[str, Trust]:
        """How far the ranking and every score alone agree with accuracies, [blocks, timesteps], NaN where there is
        none."""
        return {name: trust(merit, accuracy) for name, merit in self.merits.items()}


def label_free_needs(space: Space, num_images: int, draw: int) -> list[Need]:
    """The features of one of the two noise draws that the scores compare."""
    return [Need(timestep, "train", num_images, blocks, draw) for timestep, blocks in space.sites.items()]
