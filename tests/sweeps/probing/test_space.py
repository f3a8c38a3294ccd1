from dataclasses import replace

import numpy as np
import pytest

from ddae.backbones import Block
from sweeps.flags import ModelAndData
from sweeps.probing.plan import set_up
from sweeps.probing.source import Need
from sweeps.probing.space import Cell, Space

SHARES = {"mid": 0.25, "up.0.0": 0.5, "up.1.0": 1.0}
BLOCKS = tuple(Block(name, 1, "up", channels=8, size=4, flops_share=share) for name, share in SHARES.items())
SPACE = Space(BLOCKS, {0: 0.01, 10: 0.05, 100: 0.3}, (1, 2), ("linear",))


def test_poolings_larger_than_a_map_are_no_cells():
    blocks = tuple(replace(BLOCKS[0], name=f"up.{i}.0", size=2**i) for i in range(4))
    space = Space(blocks, SPACE.sigmas, (1, 2), ("linear", "attention-1", "attention-2"))
    assert len(space.cells) == 3 * (1 + 2 + 2 + 2) * 1 + 3 * 3 * 2  # attention wants a 2x2 grid at least
    assert all(cell.pooling <= space.block(cell.block).size for cell in space.cells)
    assert space.cells_at({10: ("up.1.0",)}) == tuple(c for c in space.cells if (c.block, c.timestep) == ("up.1.0", 10))


def test_sizes_of_one_head_are_neighbours():
    space = Space(BLOCKS, SPACE.sigmas, (1, 2), ("linear", "attention-1", "attention-2"))
    axes = space.axes
    assert list(axes) == ["block", "timestep", "pooling", "head"]
    assert axes["timestep"].values == (0, 10, 100) and axes["timestep"].numeric
    assert axes["head"].kinds == ("linear", "attention", "attention")
    assert {axes[name].kinds for name in ("block", "timestep", "pooling")} == {None}


def test_a_cell_has_a_name_and_a_size():
    cell = Cell("up.0.0", 10, 2, "linear")
    assert cell.name == "up.0.0/10/2/linear"
    assert SPACE.num_features(cell) == 8 * 2 * 2


def test_the_cheaper_cell_has_the_lower_cost():
    cells = [
        Cell("mid", 10, 2, "attention-1"),
        Cell("up.0.0", 0, 1, "ridge"),
        Cell("up.0.0", 0, 1, "linear"),
        Cell("up.0.0", 0, 2, "linear"),
        Cell("up.0.0", 0, 2, "attention-1"),
        Cell("up.0.0", 0, 2, "attention-2"),
    ]
    backwards = cells[::-1]
    assert sorted(backwards, key=SPACE.cost) == cells


def test_tables_are_blocks_by_timesteps():
    table = SPACE.table({("mid", 10): 0.5, ("up.1.0", 0): 0.75})
    assert table.shape == (3, 3) and np.isnan(table).sum() == 7
    assert (table[0, 1], table[2, 0]) == (0.5, 0.75)
    assert SPACE.ranked(np.nan_to_num(table))[:2] == [("up.1.0", 0), ("mid", 10)]


@pytest.mark.parametrize(
    ("needs", "passes"),
    [
        ([Need(0, "train", 100, ("mid",))], 25),
        ([Need(0, "train", 100, ("mid", "up.1.0"))], 100),
        ([Need(0, "train", 100, ("mid",)), Need(0, "train", 100, ("mid",))], 25),
        ([Need(0, "train", 100, ("mid",)), Need(10, "train", 100, ("mid",))], 50),
        ([Need(0, "train", 100, ("mid",)), Need(0, "train", 100, ("mid",), draw=1)], 50),
        ([Need(0, "train", 100, ("mid",), draw=1), Need(0, "train", 100, ("mid",), view=1)], 50),
        ([Need(0, "train", 40, ("up.1.0",)), Need(0, "train", 100, ("mid",))], 40 + 60 * 0.25),
        ([Need(0, "train", 100, ("up.0.0",)), Need(0, "train", 40, ("mid",))], 50),
    ],
)
def test_an_image_passes_once_and_no_deeper_than_needed(needs, passes):
    assert SPACE.forward_passes(needs) == pytest.approx(passes)
    assert SPACE.forward_passes(reversed(needs)) == pytest.approx(passes)


@pytest.mark.parametrize("names", [("out_4", "mid"), ("mid", "up.1.1")])
def test_blocks_go_by_the_papers_names_too(tiny_model, names):
    space = set_up(ModelAndData(tiny_model, "digits", blocks=names)).task.space
    assert space.block_names == ("mid", "up.1.1")
    assert space.timesteps == (0, 10, 30, 60, 120, 250, 500)
