"""What the label-free scores of a site are computed from."""

from dataclasses import replace

import pytest
import torch

from ddae import label_free
from ddae.features import extract
from ddae.label_free import CONSENSUS, LABELLED, SCORES, Features
from ddae.views import quarter_turns
from sweeps.flags import ModelAndData
from sweeps.probing.cost import draws_of
from sweeps.probing.extractor import opened, score
from sweeps.probing.plan import set_up
from sweeps.probing.source import as_turned

BLOCKS = ("down.0.0", "mid", "up.2.1")
NAMES = (*SCORES, *LABELLED)
N = 40


@pytest.fixture
def task(tiny_model, tmp_path):
    flags = ModelAndData(tiny_model, "digits", blocks=BLOCKS, timesteps=(10, 30, 100), store=str(tmp_path / "store"))
    return set_up(flags, (1,), ("linear",)).task


def test_the_consensus_needs_two_draws_and_all_scores_a_third_pass(task):
    for names, columns in ((CONSENSUS, 2), (NAMES, 3)):
        draws = draws_of(task, names, N)
        passes = task.space.forward_passes(need for each in draws for need in each.values())
        assert passes == pytest.approx(columns * 3 * N * task.space.pass_share(BLOCKS))
    at = [(each["noisier"].timestep, each["cleaner"].timestep) for each in draws]
    assert at == [(30, 30), (100, 10), (100, 30)]
    assert all(each["noisier"].draw == each["cleaner"].draw == 1 for each in draws)


def test_a_network_without_noise_is_shown_another_view(tmp_path):
    flags = ModelAndData("torchvision:resnet18@random", "digits", image_size=32, store=str(tmp_path / "store"))
    [needs] = draws_of(set_up(flags, (1,), ("linear",)).task, NAMES, N)
    assert {field: (need.draw, need.view) for field, need in needs.items()} == {
        "first": (0, 0), "second": (0, 1), "noisier": (0, 1), "cleaner": (0, 1), "turned": (0, 2),
    }  # fmt: skip


def test_scores_are_of_the_features_that_they_name(task):
    """They are extracted anew here, each by itself."""
    source, [_, needs, _] = task.source, draws_of(task, NAMES, N)
    usual, turned = opened(source), opened(as_turned(source))
    assert turned.backbone is usual.backbone and turned.source.key.augment == "turn"
    for each in draws_of(task, NAMES, N):
        for field, need in each.items():
            (turned if field == "turned" else usual).ensure(need)
    found = score(source, needs, NAMES, 20, 7)
    rows, dataset = usual.dataset.splits["train"][:N], usual.dataset
    turns = quarter_turns(rows, source.key.noise_seed, 2)

    def maps(timestep, draw, block="mid", view=0):
        key = replace(source.key, draw=draw, view=view, augment="turn")
        features = extract(usual.backbone, dataset, rows, timestep, [block], key)[block]
        grid = int((features.shape[1] / task.space.block(block).channels) ** 0.5)
        return torch.from_numpy(features).float().view(N, -1, grid, grid)

    def mean(*of):
        return maps(*of).mean((2, 3))

    features = Features(
        mean(30, 0), mean(30, 1), mean(100, 1), mean(10, 1), maps(30, 0),
        (mean(30, 0, "down.0.0"), mean(30, 0, "up.2.1")), mean(30, 0, "mid", 2), torch.from_numpy(turns),
    )  # fmt: skip
    labels = torch.from_numpy(dataset.labels("train")[:20])
    expected = label_free.measure(features, NAMES, labels, 10)
    assert list(found) == list(BLOCKS) and list(found["mid"].values) == list(NAMES)
    assert found["mid"].values == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert {name: len(values) for name, values in found["mid"].resampled.items()} == dict.fromkeys(CONSENSUS, 7)
