"""The cells that are searched, and what the features they need cost."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from ddae.backbones import Block
from ddae.heads import HEADS, find_head
from ddae.probe import Candidate

Places = dict[int, tuple[str, ...]]
"""timestep -> names of the blocks there that are still in the race, in the order the data meets them."""


@dataclass(frozen=True)
class Need:
    """Features that must stand in the store: the first num_images of a split, at every one of the blocks."""

    timestep: int
    split: str
    num_images: int
    blocks: tuple[str, ...]
    draw: int = 0


@dataclass(frozen=True)
class Space:
    """block x timestep x pooling x head, without the poolings that a block's map or a head is too small for."""

    blocks: tuple[Block, ...]
    timesteps: tuple[int, ...]
    poolings: tuple[int, ...]
    heads: tuple[str, ...]

    @property
    def places(self) -> Places:
        """Every block at every timestep."""
        return dict.fromkeys(self.timesteps, tuple(block.name for block in self.blocks))

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        return self.candidates_at(self.places)

    def candidates_at(self, places: Places) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(block.name, timestep, pooling, head)
            for timestep, names in places.items()
            for block in self.blocks
            if block.name in names
            for pooling in self.poolings
            for head in self.heads
            if find_head(head)[0].min_grid <= pooling <= block.size
        )

    def block(self, name: str) -> Block:
        return next(block for block in self.blocks if block.name == name)

    def cost(self, candidate: Candidate) -> tuple[float, int, int, tuple[int, ...]]:
        """What breaks a tie: share of a forward pass, numbers an image, place of the head in HEADS, its sizes."""
        block = self.block(candidate.block)
        head, sizes = find_head(candidate.head)
        return block.flops_share, block.channels * candidate.pooling**2, list(HEADS.values()).index(head), sizes

    def pass_share(self, blocks: Iterable[str]) -> float:
        """Share of a full forward pass that these blocks cost: it stops after the deepest of them."""
        return max(self.block(name).flops_share for name in blocks)

    def forward_passes(self, needs: Iterable[Need]) -> float:
        """Full forward passes of one image that fill all needs, when an image passes once at each (timestep, split,
        noise draw), down to the deepest block that anybody needs of it."""
        columns: dict[tuple[int, str, int], list[tuple[int, float]]] = {}
        for need in needs:
            column = columns.setdefault((need.timestep, need.split, need.draw), [])
            column.append((need.num_images, self.pass_share(need.blocks)))
        total = 0.0
        for column in columns.values():
            share = 0.0
            steps = [*sorted(column, reverse=True), (0, 0.0)]
            for (num_images, needed), (fewer, _) in pairwise(steps):
                share = max(share, needed)
                total += share * (num_images - fewer)
        return total
