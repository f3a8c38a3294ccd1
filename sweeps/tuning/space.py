"""The cells that are searched."""

from dataclasses import dataclass
from functools import cached_property

from ddae.backbones import Block
from ddae.heads import HEADS
from ddae.probe import Candidate


@dataclass(frozen=True)
class Space:
    """block x timestep x pooling x head, without the poolings that a block's map is too small for."""

    blocks: tuple[Block, ...]
    timesteps: tuple[int, ...]
    poolings: tuple[int, ...]
    heads: tuple[str, ...]

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(block.name, timestep, pooling, head)
            for timestep in self.timesteps
            for block in self.blocks
            for pooling in self.poolings
            for head in self.heads
            if pooling <= block.size
        )

    def block(self, name: str) -> Block:
        return next(block for block in self.blocks if block.name == name)

    def cost(self, candidate: Candidate) -> tuple[float, int, int]:
        """What breaks a tie: share of a forward pass, numbers an image, place of the head in HEADS."""
        block = self.block(candidate.block)
        return block.flops_share, block.channels * candidate.pooling**2, list(HEADS).index(candidate.head)

    @property
    def pass_share(self) -> float:
        """Share of a full forward pass that one extraction costs: it stops after the deepest block."""
        return max(block.flops_share for block in self.blocks)
