import shutil
from pathlib import Path

import numpy as np
import torch

from ddae.noise import image_noise
from ddae.probe import Candidate
from sweeps.cli import ModelAndData
from sweeps.tuning.evaluation import evaluate
from sweeps.tuning.extractor import Extractor
from sweeps.tuning.plan import make_plan

CELL = Candidate("mid", 100, 2, "linear")


def test_a_portrait_is_of_the_cell_that_was_fitted(tiny_model, tmp_path):
    flags = ModelAndData(tiny_model, "digits", blocks=("mid",), timesteps=(100,), store=str(tmp_path))
    plan, backbone, dataset = make_plan(flags, poolings=(2,), heads=("linear",))
    extractor = Extractor(plan, 1)
    for need in plan.trial_needs(CELL, plan.rungs[-1], {}):
        extractor.ensure(need)
    result, passes = evaluate(plan, CELL, plan.rungs[-1]), extractor.passes
    portrait = extractor.portrait(CELL, result.fit_seconds)

    assert extractor.passes == passes
    assert np.array_equal(portrait.predicted == plan.labels["val"], result.correct)
    near = portrait.neighbours
    assert near.num_searched == plan.rungs[-1] and near.num_queries == plan.num_val
    assert near.share_alike > 0.3  # by chance 0.1
    assert near.labels.shape == (5, 5) and len(set(near.query_labels)) == 5

    rows = dataset.splits["val"][:5]
    images = dataset.images.read(rows)
    noise = image_noise(rows, backbone.encoder.shape, 100, plan.key.noise_seed)
    x_t = backbone.noised(backbone.encode(images), noise, 100)
    shown = torch.from_numpy(np.stack(portrait.noised))[..., 0].float()
    assert np.corrcoef(shown.flatten(), x_t.flatten())[0, 1] > 0.99
    assert np.array_equal(portrait.clean[0], images[0].permute(1, 2, 0))

    assert extractor.portrait(CELL, fit_seconds=10_000).predicted is None
    shutil.rmtree(Path(plan.store, plan.column(100, "train", "mid")))
    without = extractor.portrait(CELL, result.fit_seconds)
    assert without.neighbours is None and len(without.noised) == 5
