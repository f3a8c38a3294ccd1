"""Features that are read block by block give what held ones give."""

import numpy as np
import pytest
import torch

from ddae.heads import HEADS, Kept, expand, find_head, kept, linear
from ddae.pooling import pool
from ddae.probe import classify, fit_probe
from ddae.scaling import Standardise
from ddae.streaming import Streamed, blocks, hold, hold_bytes, shuffled, std_mean

pytestmark = pytest.mark.usefixtures("one_thread")

CHANNELS, SIDE, CLASSES = 8, 4, 3
NAMES = expand(HEADS)


def planted(num_images, seed=0, signal=1.0):
    """float16 maps [N, C, S, S] whose mean over space carries the class, of unlike scales, and labels."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % CLASSES
    maps = torch.randn(num_images, CHANNELS, SIDE, SIDE, generator=rng)
    maps[torch.arange(num_images), labels] += signal
    maps = maps * torch.linspace(0.5, 2, CHANNELS)[:, None, None] + 1
    return maps.half(), labels


def stream(maps, pooling=SIDE, memory_bytes=400_000):
    """In shards of unlike lengths, and blocks of a few rows."""
    parts = maps.flatten(1).split([100, 17, len(maps) - 117])
    parts = [part.numpy() for part in parts]
    for part in parts:
        part.flags.writeable = False
    return Streamed(parts, CHANNELS, pooling, memory_bytes=memory_bytes)


@pytest.mark.parametrize("pooling", [1, 2, 4])
def test_blocks_are_the_features_in_order(pooling):
    maps, _ = planted(300)
    streamed = stream(maps, pooling)
    assert streamed.shape == (300, CHANNELS, pooling, pooling) and streamed.rows_at_once < 60
    found = list(blocks(streamed, rows_at_once=10))
    assert max(len(each) for _, each in found) == 10
    assert [rows.start for rows, _ in found] == list(np.cumsum([0, *(len(each) for _, each in found)])[:-1])
    assert torch.equal(torch.cat([each for _, each in found]), pool(maps.float(), pooling))


@pytest.mark.parametrize("memory_bytes", [1, 400_000, 10**9])
def test_maps_at_all_poolings_are_copied_from_one_read(memory_bytes):
    maps, _ = planted(300)
    held = {pooling: torch.empty(300, CHANNELS, pooling, pooling) for pooling in (1, 2, 4)}
    hold(stream(maps).parts, CHANNELS, "cpu", held, memory_bytes)
    for pooling, found in held.items():
        assert torch.equal(found, pool(maps.float(), pooling))
    assert 0 <= hold_bytes(memory_bytes) <= max(1, memory_bytes // 4)


@pytest.mark.parametrize("memory_bytes", [1, 200_000, 10**9])
@pytest.mark.parametrize("batch_size", [1, 7, 300])
def test_an_epoch_has_every_row_once_and_its_own_map(batch_size, memory_bytes):
    maps, _ = planted(300)
    streamed = stream(maps, memory_bytes=memory_bytes)
    epoch = list(shuffled(streamed, batch_size, torch.Generator().manual_seed(0)))
    numbers = torch.cat([rows for rows, _ in epoch])
    assert {len(rows) for rows, _ in epoch} == {batch_size} and len(epoch) == 300 // batch_size
    assert len(numbers.unique()) == len(numbers) and (batch_size == 300 or not torch.equal(numbers, numbers.sort()[0]))
    for rows, found in epoch:
        assert torch.equal(found, maps[rows].float())


@pytest.mark.parametrize("skip", [0, 1, 5, 41, 42])
def test_an_epoch_goes_on_where_it_stopped(skip):
    maps, _ = planted(300)
    for features in (maps.float(), stream(maps)):
        whole = list(shuffled(features, 7, torch.Generator().manual_seed(3)))
        rng = torch.Generator().manual_seed(3)
        left = list(shuffled(features, 7, rng, skip))
        assert [rows.tolist() for rows, _ in left] == [rows.tolist() for rows, _ in whole[skip:]]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(left, whole[skip:], strict=True))


@pytest.mark.parametrize("dims", [(0,), (0, 2, 3)])
def test_means_and_deviations_are_those_of_the_whole(dims):
    maps, _ = planted(300)
    maps[:, 3] = 5.0
    for found, expected in zip(std_mean(stream(maps), dims), std_mean(maps.float(), dims), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not Standardise(stream(maps), dims)(maps.float())[:, 3].any()


@pytest.mark.parametrize("name", ["ridge", "linear", "logistic", "knn"])
def test_closed_forms_and_whole_gradients_are_the_same(name, monkeypatch):
    monkeypatch.setattr(linear, "SCORES_AT_ONCE", 500)
    maps, labels = planted(200)
    asked, _ = planted(50, seed=1)
    fit = find_head(name)[0].fit
    held, streamed = (fit(features, labels, CLASSES, 0)(asked.float()) for features in (maps.float(), stream(maps)))
    torch.testing.assert_close(streamed, held, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_head_is_as_good_in_blocks(name):
    (maps, labels), (val, val_labels) = planted(600, signal=2), planted(600, seed=1, signal=2)
    accuracies = [
        fit_probe(name, (train, labels), (held_out, val_labels), CLASSES, 0).correct.mean()
        for train, held_out in ((maps.float(), val.float()), (stream(maps), stream(val)))
    ]
    assert accuracies[0] > 0.8 and abs(accuracies[0] - accuracies[1]) < 0.02


def test_scores_are_taken_of_some_rows_at_a_time(monkeypatch):
    maps, labels = planted(300)
    head = find_head("linear")[0].fit(maps.float(), labels, CLASSES, 0)
    at_once = classify(head, maps.float(), CLASSES)
    monkeypatch.setattr("ddae.probe.SCORES_AT_ONCE", 50)
    assert torch.equal(classify(head, stream(maps), CLASSES), at_once)


def test_neighbours_that_are_streamed_are_taken_along():
    maps, labels = planted(300)
    asked, _ = planted(20, seed=1)
    head = find_head("knn")[0].fit(stream(maps), labels, CLASSES, 0)
    alone = head.only(head.settings[0])
    assert {"known", "labels", "classes"} == set(alone.state_dict())
    torch.testing.assert_close(alone(asked.float()), head(asked.float()))


class Killed(Exception):
    pass


class Memory:
    """A checkpoint in memory, after some of whose savings the process dies."""

    def __init__(self, lives):
        self.lives, self.state, self.saved = lives, None, 0

    def load(self):
        return self.state

    def save(self, state):
        self.state, self.saved = state, self.saved + 1
        if self.saved == self.lives:
            raise Killed


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("name", ["linear", "mlp-16", "attention-1", "bn-linear"])
def test_a_fit_that_is_killed_goes_on_to_the_same_end(name, is_streamed, monkeypatch):
    monkeypatch.setattr(kept, "SECONDS", 0)
    maps, labels = planted(200)
    features, asked = stream(maps) if is_streamed else maps.float(), planted(20, seed=1)[0].float()
    head, sizes = find_head(name)
    undisturbed = head.fit(features, labels, CLASSES, 0, *sizes)(asked)
    memory = Memory(lives=40)
    with pytest.raises(Killed):
        head.fit(features, labels, CLASSES, 0, *sizes, kept=Kept(memory, "this"))
    steps = memory.saved
    again = head.fit(features, labels, CLASSES, 0, *sizes, kept=Kept(memory, "this"))(asked)
    torch.testing.assert_close(again, undisturbed, rtol=1e-6, atol=1e-6)
    assert memory.state == b"" and memory.saved > steps
    other = Memory(lives=-1)
    head.fit(features, labels, CLASSES, 0, *sizes, kept=Kept(other, "this"))
    assert memory.saved == other.saved  # no step was made twice


def test_the_state_of_another_fit_is_not_taken(monkeypatch):
    monkeypatch.setattr(kept, "SECONDS", 0)
    memory = Memory(lives=-1)
    Kept(memory, "that").save(lambda: {"iteration": 59})
    assert Kept(memory, "this").load() is None
    assert Kept(memory, "that").load() == {"iteration": 59}


def test_a_short_fit_keeps_nothing():
    maps, labels = planted(100)
    memory = Memory(lives=1)
    find_head("linear")[0].fit(maps.float(), labels, CLASSES, 0, kept=Kept(memory, "this"))
    assert memory.saved == 0
