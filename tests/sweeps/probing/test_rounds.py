"""The size of a round is fixed by the plan, printed, and part of what names a sweep."""

from dataclasses import replace

import pytest

from sweeps.layer_noise import LayerNoise
from sweeps.probing import sweep


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory):
    store = str(tmp_path_factory.mktemp("store"))
    return LayerNoise(tiny_model, "digits", timesteps=(30, 100), heads=("linear", "ridge"), store=store)


@pytest.fixture(scope="module")
def setup(config):
    return sweep.set_up_search(config)


def test_a_default_sweep_is_as_with_rounds_of_4(config, setup):
    folder = sweep.sweep_folder(config, setup.task)
    assert sweep.sweep_folder(replace(config, round_size=4), setup.task) == folder
    assert sweep.sweep_folder(replace(config, num_trials=20), setup.task) == folder
    assert sweep.sweep_folder(replace(config, round_size=5), setup.task) != folder


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({}, "trials          40, in rounds of 4"),
        ({"num_trials": 60}, "trials          60, in rounds of 6"),
        ({"num_trials": 60, "round_size": 9}, "trials          60, in rounds of 9"),
        ({"num_trials": 10**6}, "{cells}, in rounds of {tenth}"),
        ({"search": "random"}, None),
    ],
)
def test_a_dry_run_says_it(config, setup, flags, line):
    num_cells = len(setup.task.space.cells)
    text = sweep.estimate(replace(config, **flags), setup)
    if line:
        assert line.format(cells=num_cells, tenth=num_cells // 10) in text
    else:
        assert "rounds" not in text
