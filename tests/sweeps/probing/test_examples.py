import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ddae.noise import image_noise
from storage.ledger import Ledger
from sweeps.flags import ModelAndData
from sweeps.probing.examples import find_examples, raw_pixels
from sweeps.probing.extractor import opened
from sweeps.probing.source import Need
from sweeps.probing.space import Cell
from sweeps.probing.sweep import set_up

CELL = Cell("mid", 100, 2, "linear")


@pytest.fixture
def setup(tiny_model, tmp_path):
    flags = ModelAndData(tiny_model, "digits", blocks=("mid",), timesteps=(100,), store=str(tmp_path))
    return set_up(flags, poolings=(2,), heads=("linear",))


def test_examples_are_of_the_cell_that_was_fitted(setup):
    task, backbone, dataset = setup
    extractor = opened(task.source)
    for need in task.needs(CELL, task.num_train):
        extractor.ensure(need)
    [result], passes = task.run([CELL], task.num_train, [None]), extractor.passes
    examples = find_examples(task, CELL, result.run_seconds)

    assert extractor.passes == passes
    assert np.array_equal(examples.predicted == task.labels["val"], result.correct)
    assert examples.classes == tuple("0123456789")
    near = examples.neighbours
    assert near.num_searched == task.num_train and near.num_queries == task.num_val
    assert near.share_alike > 0.3  # by chance 0.1
    assert near.labels.shape == (5, 5) and len(set(near.query_labels)) == 5

    rows = dataset.splits["val"][:5]
    images = dataset.images.read(rows)
    noise = image_noise(rows, backbone.encoder.shape, 100, task.source.key.noise_seed)
    x_t = backbone.noised(backbone.encode(images), noise, 100)
    shown = torch.from_numpy(np.stack(examples.noised))[..., 0].float()
    assert np.corrcoef(shown.flatten(), x_t.flatten())[0, 1] > 0.99
    assert np.array_equal(examples.clean[0], images[0].permute(1, 2, 0))

    assert find_examples(task, CELL, fit_seconds=10_000).predicted is None
    train = Need(100, "train", task.num_train, ("mid",))
    shutil.rmtree(Path(task.source.store, task.source.column(train, "mid")))
    without = find_examples(task, CELL, result.run_seconds)
    assert without.neighbours is None and len(without.noised) == 5


def test_raw_pixels_are_measured_once_and_pass_no_network(setup):
    task = setup.task
    first = raw_pixels(task, "linear")
    assert first.metrics["val_accuracy"] > 0.85 and len(first.correct) == task.num_val
    assert opened(task.source).passes == 0
    assert len(list(Path(Ledger(task.source.ledger).root).rglob("*.json"))) == 1
    assert raw_pixels(task, "linear") == first
