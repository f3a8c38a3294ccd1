import pytest
import torch
from torch.nn import functional

from ddae import label_free


@pytest.fixture
def draws():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(700, 16, generator=rng)
    return x, x + 0.3 * torch.randn(700, 16, generator=rng)


def sphere(x):
    return functional.normalize(x, dim=1)


def test_alignment_is_zero_for_equal_draws_and_four_for_opposite_ones(draws):
    x = sphere(draws[0])
    assert label_free.alignment(x, x) == 0
    assert label_free.alignment(x, -x) == pytest.approx(4)


def test_uniformity_is_the_mean_over_all_pairs(draws):
    x, y = sphere(draws[0]), sphere(draws[1])
    pairs = [torch.pdist(z).square().mul(-2).exp().mean().log() for z in (x, y)]
    assert label_free.uniformity(x, y) == pytest.approx(float(sum(pairs) / 2), abs=1e-5)
    collapsed = torch.ones(700, 16) / 4
    assert label_free.uniformity(collapsed, collapsed) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", label_free.SCORES)
def test_every_score_ignores_scale_and_prefers_signal_to_noise(name, draws):
    x, y = draws
    scores = label_free.measure(x, y)
    assert scores[name] == pytest.approx(label_free.measure(100 * x, 100 * y)[name], abs=1e-4)
    if name == "alignment":
        noise = label_free.measure(torch.randn(700, 16), torch.randn(700, 16))
        assert scores[name] < noise[name]


def test_rank_puts_the_aligned_and_uniform_cell_first():
    cells = [{"alignment": a, "uniformity": u} for a, u in [(1.0, -1.0), (0.1, -3.0), (0.1, -1.0), (1.0, -3.0)]]
    ranking = label_free.rank(cells)
    assert ranking.argmax() == 1
    assert ranking.argmin() == 0
