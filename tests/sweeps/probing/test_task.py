from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from ddae.backbones import Block, Settings
from ddae.features import FeatureKey
from ddae.heads import HEADS, StackedHead
from ddae.probe import Fitted
from ddae.streaming import Streamed
from storage.feature_store import FeatureStore
from sweeps.probing import task as task_module
from sweeps.probing.source import FeatureSource, Need
from sweeps.probing.space import Cell, Space
from sweeps.probing.task import ProbeTask
from sweeps.search.task import Resources

BLOCK = Block("mid", 1, "mid", channels=8, size=4, flops_share=0.25)
CELL = Cell("mid", 0, 1, "linear")
KEY = FeatureKey("weights", "images", split_seed=0, val_fraction=0.2, noise_seed=0, pooling=4)
SOURCE = FeatureSource("digits", "model", "digits", "data", Settings(), "", "store", KEY)
LABELS = {"train": np.zeros(800, dtype=np.int64), "val": np.zeros(200, dtype=np.int64)}


def task_of(blocks=(BLOCK,), poolings=(1, 2), heads=("linear", "mlp", "attention-1", "attention-2"), **more):
    space = Space(blocks, {0: 0.01, 10: 0.05}, poolings, heads)
    return ProbeTask(SOURCE, space, space.sites, LABELS, num_classes=10, rungs=(200, 800), **more)


def keys(task):
    return {(cell, rung): task.key(cell, rung) for cell in task.cells for rung in task.rungs}


@pytest.mark.parametrize("family", ["linear", "mlp", "attention"])
def test_another_version_of_a_head_changes_the_keys_of_its_own_cells_alone(family, monkeypatch):
    before = keys(task_of())
    assert len(set(before.values())) == len(before)
    monkeypatch.setitem(HEADS, family, replace(HEADS[family], version=HEADS[family].version + 1))
    after = keys(task_of())
    changed = {cell.head for cell, rung in before if before[cell, rung] != after[cell, rung]}
    same = {cell.head for cell, rung in before if before[cell, rung] == after[cell, rung]}
    assert changed == {head for head in task_of().space.heads if head.startswith(family)}
    assert not changed & same


def test_a_key_is_of_all_that_decides_a_result():
    task, cell = task_of(), Cell("mid", 0, 1, "linear")
    others = [
        replace(task, seed=1),
        replace(task, views=2),
        *(replace(task, source=replace(SOURCE, key=replace(KEY, **change))) for change in (
            {"backbone": "other"}, {"images": "other"}, {"split_seed": 1}, {"noise_seed": 1}, {"pooling": 8},
            {"draw": 1},
        )),
    ]  # fmt: skip
    assert len({task.key(cell, 200), task.key(cell, 800), *(other.key(cell, 800) for other in others)}) == 2 + 8
    elsewhere = replace(task, source=replace(SOURCE, store="other", data_root="other", name="other"))
    assert elsewhere.key(cell, 800) == task.key(cell, 800)
    fewer = replace(task, sites={0: ("mid",)})
    assert fewer.key(cell, 800) == task.key(cell, 800)


def test_views_of_train_and_val_as_it_is_must_stand_in_the_store():
    task, cell = task_of((BLOCK, replace(BLOCK, name="up.0.0")), views=3), Cell("mid", 10, 1, "linear")
    blocks = ("mid", "up.0.0")  # one pass serves both
    views = [Need(10, "train", 200, blocks, draw=0, view=view) for view in range(3)]
    assert task.needs(cell, 200) == [*views, Need(10, "val", 200, blocks)]
    alone = replace(task, sites={})
    assert {need.blocks for need in alone.needs(cell, 200)} == {("mid",)}


def test_cells_of_one_block_and_timestep_share_a_read():
    task = task_of()
    reads = {task.reads(cell, 200) for cell in task.cells}
    assert reads == {(("mid", 0),), (("mid", 10),)}


def test_blocks_without_a_cell_at_a_pooling_are_not_screened_at_it():
    task = task_of(poolings=(1, 2, 4), heads=("attention-1", "cnn-8-8"))
    assert task.screening_poolings("mid") == (2, 4)
    wide = task_of((replace(BLOCK, channels=1000),), poolings=(1, 2, 4), heads=("linear",))
    assert wide.screening_poolings("mid") == (1,)


def test_mlflow_is_told_a_cell_and_what_follows_from_it():
    assert task_of().params(Cell("mid", 10, 2, "mlp")) == {
        "block": "mid", "block_position": 0, "stage": "mid", "timestep": 10, "sigma": 0.05, "pooling": 2, "head": "mlp",
        "num_features": 32,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("views", 0, "views=0 must be 1 or more, and 1000 at most; 1 is every image as it is"),
        ("views", 1001, "views=1001 must be 1 or more, and 1000 at most; 1 is every image as it is"),
        ("seed", -1, "seed=-1 must be 0 or more, and 4,294,967,295 at most"),
    ],
)
def test_a_number_beyond_its_range_is_one_line(name, value, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        task_of(**{name: value})


UNEVEN = {"train": np.arange(800) % 8 // 7, "val": np.arange(200) % 8 // 7}


def fitted(correct):
    return Fitted(StackedHead(("penalty=1",)), 0, correct, np.zeros(len(correct), dtype=int))


def test_even_classes_keep_their_keys_and_columns():
    task, cell = replace(task_of(), labels={"train": np.arange(800) % 2, "val": np.arange(200) % 2}), CELL
    assert task.key(cell, 800) == task_of().key(cell, 800)
    assert list(task.result(fitted(np.ones(200, bool)), 0).metrics) == ["val_accuracy", "val_stderr"]


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_uneven_classes_are_measured_by_balanced_accuracy_too(metric):
    task = replace(task_of(metric=metric), labels=UNEVEN)
    assert task.key(CELL, 800) != task_of().key(CELL, 800)
    result = task.result(fitted(UNEVEN["val"] == 0), 0)
    assert result.metrics["val_accuracy"] == 0.875 and result.metrics["val_balanced_accuracy"] == 0.5
    assert task.objectives[0].merit(result) == (0.875 if metric == "accuracy" else 0.5)
    right = task.counted(UNEVEN["train"] == 0)
    assert right.mean() == pytest.approx(0.875 if metric == "accuracy" else 0.5)


def test_what_chooses_is_part_of_the_key():
    tasks = [replace(task_of(metric=metric), labels=UNEVEN) for metric in ("accuracy", "balanced_accuracy")]
    assert len({task.key(CELL, 800) for task in tasks}) == 2


CELLS = [replace(CELL, pooling=pooling, head=head) for pooling in (1, 2) for head in ("linear", "mlp")]


@pytest.fixture
def stored(tmp_path):
    """A task whose features stand in a store: the mean over space carries the class."""
    rng = np.random.default_rng(0)
    labels = {split: rng.integers(10, size=len(each)) for split, each in LABELS.items()}
    task = replace(task_of(), source=replace(SOURCE, store=str(tmp_path)), labels=labels)
    store = FeatureStore(tmp_path)
    for split, numbers in labels.items():
        maps = rng.standard_normal((len(numbers), 8, 4, 4)) + np.eye(10)[numbers][:, :8, None, None]
        column = task.source.column(Need(0, split, len(numbers), ("mid",)), "mid")
        store.write(column, 0, maps.reshape(len(numbers), -1).astype(np.float16))
    return task


def run(task, cells=CELLS):
    return list(task.run(cells, 800, [None] * len(cells)))


@pytest.mark.parametrize("megabytes", [1, 1000])
def test_features_that_fit_no_memory_are_streamed(stored, megabytes, monkeypatch):
    monkeypatch.setattr("ddae.heads.linear.SCORES_AT_ONCE", 1000)
    small = replace(stored, memory_bytes=megabytes * 10**6)
    if megabytes == 1:
        monkeypatch.setattr(ProbeTask, "fit_bytes", lambda *args: (2 * 10**6, 10**5))
    held, found = run(stored), run(small)
    assert all("features" not in one.params for one in held)
    assert all(("features" in one.params) == (megabytes == 1) for one in found)
    for cell, one, other in zip(CELLS, held, found, strict=True):
        assert abs(one.metrics["val_accuracy"] - other.metrics["val_accuracy"]) <= (0.03 if "mlp" in cell.head else 0)
        assert one.params["setting"] == other.params["setting"] or "mlp" in cell.head


def test_what_a_fit_takes_grows_with_images_poolings_and_heads():
    for small, large in pairwise(CELLS):
        held, streamed = task_of().fit_bytes(small, 800)
        assert task_of().fit_bytes(small, 1600)[0] > held
        assert task_of().fit_bytes(small, 1600)[1] == streamed
        assert task_of(views=2).fit_bytes(small, 800)[0] > held
        assert small.head != large.head or task_of().fit_bytes(large, 800)[0] > held


@pytest.fixture
def num_read(monkeypatch):
    """Counts the rows that are read."""
    counts, rows_of = Counter(), Streamed._rows

    def counted(self, spans):
        counts["rows"] += sum(stop - start for start, stop in spans)
        return rows_of(self, spans)

    monkeypatch.setattr(Streamed, "_rows", counted)
    return counts


RIDGE, LINEAR, WIDE = replace(CELL, head="ridge"), CELL, replace(CELL, head="ridge", pooling=2)


def test_a_pooling_that_fits_the_memory_is_held_beside_one_that_is_streamed(stored, num_read, monkeypatch):
    monkeypatch.setattr("ddae.heads.linear.SCORES_AT_ONCE", 1000)
    expected = run(stored, [RIDGE, WIDE, LINEAR])
    assert num_read["rows"] == 1000  # all poolings and heads from one read of train and val
    num_read.clear()
    found = run(replace(stored, memory_bytes=260_000), [RIDGE, WIDE, LINEAR])
    assert num_read["rows"] == 1000 + (2 * 800 + 200)  # both at 1x1, and the other
    assert [one.right for one in found] == [one.right for one in expected]
    assert ["features" in one.params for one in found] == [False, True, False]


def test_features_that_have_no_room_side_by_side_are_held_one_after_the_other(stored, num_read, monkeypatch):
    monkeypatch.setattr("ddae.heads.linear.SCORES_AT_ONCE", 1000)
    expected = run(stored, [RIDGE, LINEAR, WIDE])
    num_read.clear()
    task = replace(stored, memory_bytes=430_000)
    assert task.together([RIDGE, LINEAR, WIDE], 800) == [RIDGE, LINEAR]
    found = run(task, [RIDGE, LINEAR, WIDE])
    assert num_read["rows"] == 2 * 1000
    assert [one.right for one in found] == [one.right for one in expected]
    assert not any("features" in one.params for one in found)


def test_a_head_that_needs_more_than_another_is_streamed_alone(stored, monkeypatch):
    """Logistic regression copies its features, and a network does not."""
    monkeypatch.setattr("ddae.heads.linear.SCORES_AT_ONCE", 1000)
    cells = [replace(CELL, head=head) for head in ("mlp-8", "linear", "mlp-16")]
    more = replace(stored, labels={**stored.labels, "train": np.zeros(100_000, dtype=np.int64)}, memory_bytes=9_000_000)
    assert [more.check_memory(cell, 100_000) for cell in cells] == [True, False, True]
    assert more.together(cells, 100_000) == [cells[0], cells[2]] and more.together(cells[1:], 100_000) == cells[1:2]


def test_a_memory_that_is_too_small_is_one_line(stored):
    with pytest.raises(ValueError, match=r"a fit takes .* and may have 1 MB: raise --memory, or take smaller poolings"):
        run(replace(stored, memory_bytes=10**6))


NO_ROOM = [
    torch.OutOfMemoryError("CUDA out of memory\nTried"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("where", ["fit_probe", "hold"])
@pytest.mark.parametrize("error", NO_ROOM, ids=lambda error: type(error).__name__)
def test_a_device_without_memory_gets_half_once(stored, error, where, monkeypatch, caplog):
    expected, left, sound = run(stored, CELLS[:1]), 1, getattr(task_module, where)

    def failing(*args):
        nonlocal left
        left -= 1
        if left >= 0:
            raise error
        return sound(*args)

    monkeypatch.setattr(task_module, where, failing)
    [found] = run(stored, CELLS[:1])
    assert found.params["features"] == "streamed"
    assert found.metrics == expected[0].metrics
    assert len(caplog.messages) == 1 and "again with half of it" in caplog.messages[0]
    left = 10
    if where == "fit_probe":
        message = r"^cpu has too little memory: (CUDA out of memory|MemoryError|.*can't allocate.*)$"
        with pytest.raises(ValueError, match=message):
            run(stored, CELLS[:1])


def test_another_error_of_a_fit_is_none_of_memory(stored, monkeypatch):
    def failing(*args):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(task_module, "fit_probe", failing)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(stored, CELLS[:1])


def test_heads_go_where_the_networks_are_and_hold_what_the_flags_say():
    on_gpus = task_of(gpus_per_fit=0.25, memory_bytes=10**9)
    assert on_gpus.resources(CELL, 200) == Resources(1, 0.25, 0)
    assert task_of(memory_bytes=10**9).resources(CELL, 200) == Resources(1, 0, 10**9)
    settings = {device: replace(SOURCE, settings=Settings(device=device)) for device in ("cuda", "mps", "cpu")}
    assert [each.fits_on for each in settings.values()] == ["cuda", "cpu", "cpu"]
    assert replace(on_gpus, source=settings["cuda"]).device == "cuda"
    assert replace(task_of(), source=settings["cuda"]).device == "cpu"
