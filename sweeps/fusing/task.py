"""The Task of fusion: a cell is a set of frozen features, read together by one head."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ddae.fusion import Members, at_timesteps, members_of, name_of
from ddae.heads import FUSIONS, HEADS, find_head
from sweeps.probing.task import ProbeTask, Read
from sweeps.search.task import Axis, Value


@dataclass(frozen=True, order=True)
class FusedCell:
    """Which features, and the pooling and the head that they share."""

    fused: str
    """name_of(members)"""
    pooling: int
    head: str

    @property
    def name(self) -> str:
        return f"{self.fused}/{self.pooling}/{self.head}"

    @property
    def members(self) -> Members:
        return members_of(self.fused)


@dataclass(frozen=True)
class FusionTask(ProbeTask):
    """space, sites: of the sweep whose features are fused."""

    sets: tuple[Members, ...] = ()
    """What may be read together."""
    heads: tuple[str, ...] = ()
    name: str = "fuse"
    cells: tuple[FusedCell, ...] = field(init=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        cells = tuple(
            FusedCell(name_of(members), pooling, head)
            for members in self.sets
            for pooling in self.space.poolings
            for head in self.heads
            if find_head(head, [1])[0].min_grid <= pooling <= min(self.space.block(block).size for block, _ in members)
        )
        families = {id(head): family for family, head in (HEADS | FUSIONS).items()}
        kinds = tuple(families[id(find_head(head, [1])[0])] for head in self.heads)
        axes = {
            "fused": Axis(tuple(map(name_of, self.sets))),
            "pooling": Axis(self.space.poolings),
            "head": Axis(self.heads, kinds),
        }
        object.__setattr__(self, "cells", cells)
        object.__setattr__(self, "axes", axes)

    def passes(self, cell: Read) -> float:
        """Full forward passes an image."""
        return sum(self.space.pass_share(blocks) for blocks in at_timesteps(cell.members).values())

    def num_features(self, cell: Read) -> int:
        """Numbers an image."""
        return sum(self.channels(cell)) * cell.pooling**2

    def params(self, cell: Read) -> Mapping[str, Value]:  # type: ignore[override]
        return {
            "fused": name_of(cell.members),
            "num_blocks": len(cell.members),
            "passes": round(self.passes(cell), 4),
            "pooling": cell.pooling,
            "head": cell.head,
            "num_features": self.num_features(cell),
        }
