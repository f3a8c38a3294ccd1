"""The cells that are searched, and how many forward passes the features they need cost."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from ddae.backbones import Backbone, Block
from ddae.features import check_timestep, width
from ddae.fusion import Members
from ddae.heads import HEADS, expand, find_head
from sweeps.flags import ModelAndData
from sweeps.probing.source import Need, choose_blocks
from sweeps.search.task import Axis

Sites = Mapping[int, tuple[str, ...]]
"""timestep -> names of blocks, in the order the data meets them."""


@dataclass(frozen=True, order=True)
class Cell:
    """A feature and the head that reads it."""

    block: str
    timestep: int
    pooling: int
    head: str

    @property
    def name(self) -> str:
        return f"{self.block}/{self.timestep}/{self.pooling}/{self.head}"

    @property
    def members(self) -> Members:
        return ((self.block, self.timestep),)


@dataclass(frozen=True)
class Space:
    """block x timestep x pooling x head, without the poolings that a block's map or a head is too small for."""

    blocks: tuple[Block, ...]
    sigmas: Mapping[int, float]
    """timestep -> noise-to-signal ratio."""
    poolings: tuple[int, ...] = (1,)
    heads: tuple[str, ...] = ()

    @property
    def timesteps(self) -> tuple[int, ...]:
        return tuple(self.sigmas)

    @property
    def has_noise(self) -> bool:
        return any(self.sigmas.values())

    @property
    def block_names(self) -> tuple[str, ...]:
        return tuple(block.name for block in self.blocks)

    @property
    def sites(self) -> Sites:
        """Every block at every timestep."""
        return dict.fromkeys(self.timesteps, self.block_names)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        return self.cells_at(self.sites)

    def cells_at(self, sites: Sites) -> tuple[Cell, ...]:
        return tuple(
            Cell(block.name, timestep, pooling, head)
            for timestep, names in sites.items()
            for block in self.blocks
            if block.name in names
            for pooling in self.poolings
            for head in self.heads
            if find_head(head)[0].min_grid <= pooling <= block.size
        )

    @property
    def axes(self) -> dict[str, Axis]:
        """The axes of a cell; a family of heads is a kind, and its sizes are neighbours."""
        families = {id(head): family for family, head in HEADS.items()}
        kinds = tuple(families[id(find_head(head)[0])] for head in self.heads)
        return {
            "block": Axis(self.block_names),
            "timestep": Axis(self.timesteps, numeric=True),
            "pooling": Axis(self.poolings),
            "head": Axis(self.heads, kinds),
        }

    def block(self, name: str) -> Block:
        return next(block for block in self.blocks if block.name == name)

    def num_features(self, cell: Cell) -> int:
        """Numbers an image that the cell's head reads."""
        return self.block(cell.block).channels * cell.pooling**2

    def cost(self, cell: Cell) -> tuple[float, int, int, tuple[int, ...]]:
        """What decides between equals: share of a forward pass, numbers an image, the head's number in HEADS, sizes."""
        head, sizes = find_head(cell.head)
        number = list(HEADS.values()).index(head)
        return self.block(cell.block).flops_share, self.num_features(cell), number, sizes

    def bytes_per_image(self, pooling: int) -> int:
        """What the store holds of one image at one timestep."""
        return sum(2 * width(block, pooling) for block in self.blocks)

    def pass_share(self, blocks: Iterable[str]) -> float:
        """Share of a full forward pass that these blocks cost: it stops after the deepest of them."""
        return max(self.block(name).flops_share for name in blocks)

    def forward_passes(self, needs: Iterable[Need]) -> float:
        """Full forward passes of one image that fill all needs, when an image passes once at each (timestep, split,
        noise draw, view), down to the deepest block that anybody needs of it."""
        columns: dict[tuple[int, str, int, int], list[tuple[int, float]]] = {}
        for need in needs:
            column = columns.setdefault((need.timestep, need.split, need.draw, need.view), [])
            column.append((need.num_images, self.pass_share(need.blocks)))
        total = 0.0
        for column in columns.values():
            share = 0.0
            steps = [*sorted(column, reverse=True), (0, 0.0)]
            for (num_images, needed), (fewer, _) in pairwise(steps):
                share = max(share, needed)
                total += share * (num_images - fewer)
        return total

    def table(self, values: Mapping[tuple[str, int], float]) -> np.ndarray:
        """(block, timestep) -> value, as float [blocks, timesteps], NaN where there is none."""
        rows = [[values.get((name, timestep), np.nan) for timestep in self.timesteps] for name in self.block_names]
        return np.array(rows, dtype=float)

    def position(self, block: str, timestep: int) -> tuple[int, int]:
        """Where a site is in a [blocks, timesteps] table."""
        return self.block_names.index(block), self.timesteps.index(timestep)

    def ranked(self, table: np.ndarray) -> list[tuple[str, int]]:
        """All (block, timestep), highest number of a [blocks, timesteps] table first."""
        rows, columns = np.unravel_index(np.argsort(-table, axis=None, kind="stable"), table.shape)
        return [(self.blocks[row].name, self.timesteps[column]) for row, column in zip(rows, columns, strict=True)]


def check_choices(
    poolings: Iterable[int], heads: Iterable[str] | None = None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Poolings in order, and heads with their sizes. heads: None where none is to be fitted."""
    poolings, names = tuple(sorted(set(poolings))), expand(heads or ())
    for flag, given in (("poolings", poolings), ("heads", heads is None or names)):
        if not given:
            raise ValueError(f"--{flag} is empty; give at least one, or leave the flag out for the default")
    for pooling in poolings:
        if pooling < 1 or stored_pooling(poolings) % pooling:
            raise ValueError(f"pooling={pooling} does not follow exactly from a coarser grid; choose among 1, 2, 4, 8")
    return poolings, names


def stored_pooling(poolings: Iterable[int]) -> int:
    """The grid that features are stored at, from which all these follow."""
    return max(4, *poolings)


def make_space(
    backbone: Backbone, config: ModelAndData, poolings: tuple[int, ...] = (1,), heads: tuple[str, ...] = ()
) -> Space:
    """The space that the flags name, of choices that were checked.

    Raises ValueError for a name or number that the network has not, and for one that no cell can have.
    """
    blocks = choose_blocks(backbone, config.blocks)
    timesteps = sorted(set(config.timesteps or backbone.schedule.defaults))
    for timestep in timesteps:
        check_timestep(backbone, timestep)
    largest = max(block.size for block in blocks)
    for pooling in poolings:
        if pooling > largest:
            raise ValueError(f"pooling={pooling} is larger than every chosen block's map; the largest is {largest}")
    space = Space(blocks, {timestep: backbone.sigma(timestep) for timestep in timesteps}, poolings, heads)
    return without_idle(space, config) if heads else space


def without_idle(space: Space, config: ModelAndData) -> Space:
    """The space without the blocks that are too small for all poolings and heads; one that was named is an error."""
    used = {cell.block for cell in space.cells}
    for block in space.blocks:
        if config.blocks and block.name not in used:
            raise ValueError(f"block={block.name!r} is too small for all poolings and heads; leave it out of --blocks")
    for head in space.heads:
        if not any(cell.head == head for cell in space.cells):
            least = find_head(head)[0].min_grid
            raise ValueError(f"head={head!r} wants a pooling of {least} or more on a map as large; see --poolings")
    return Space(tuple(b for b in space.blocks if b.name in used), space.sigmas, space.poolings, space.heads)
