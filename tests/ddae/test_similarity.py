import pytest
import torch
from cka import cka_from_features
from cka.hsic import hsic_cross

from ddae.similarity import cka, hsic


@pytest.fixture
def features():
    """Four features of 96 images: x; x rotated, scaled and shifted; x with noise; noise."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=rng)

    x = normal(96, 12) @ normal(12, 20)
    turn = torch.linalg.qr(normal(20, 20)).Q
    return [x, 7 * x @ turn + 3, x + 3 * normal(96, 20), normal(96, 300)]


def batches(features, size):
    return zip(*(x.split(size) for x in features), strict=True)


def test_it_is_what_a_maintained_package_computes(features):
    """pytorch-cka sums Song's three terms one by one, in float32, and clips what is below 0."""
    expected = cka_from_features(features, features).double()
    torch.testing.assert_close(cka([features]).clamp(min=0), expected, rtol=1e-4, atol=1e-4)
    for batch in batches(features, 32):
        grams = torch.stack([x.double() @ x.double().T for x in batch])
        torch.testing.assert_close(hsic(batch), hsic_cross(grams, grams))


def test_hsic_is_the_mean_over_all_fours_of_images():
    """The definition that it estimates without bias (Song et al. 2012, equation 3), on 7 images."""
    from itertools import permutations

    rng = torch.Generator().manual_seed(1)
    x, y = (torch.randn(7, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    k, m = x @ x.T, y @ y.T
    terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(7), 4)]
    torch.testing.assert_close(hsic([x, y])[0, 1], torch.stack(terms).mean())


def test_rotation_scale_and_shift_change_nothing_and_noise_does(features):
    full = cka([features])
    torch.testing.assert_close(full, full.T)
    assert full.diagonal().tolist() == pytest.approx([1] * 4)
    assert full[0, 1] == pytest.approx(1) and 0.3 < full[0, 2] < 0.95


def test_independent_features_have_none_on_average():
    """With many more dimensions than images, the biased estimate would be 0.9."""
    rng = torch.Generator().manual_seed(2)
    values = [cka([[torch.randn(16, 200, generator=rng) for _ in range(2)]])[0, 1] for _ in range(300)]
    mean, error = torch.stack(values).mean(), torch.stack(values).std() / 300**0.5
    assert abs(mean) < 4 * error < 0.05


def test_minibatches_converge_to_all_images():
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(4096, 8, generator=rng)
    pair = [x, x + torch.randn(4096, 8, generator=rng)]
    full = cka([pair])[0, 1]
    few, many = (abs(cka(batches([y[:n] for y in pair], 64))[0, 1] - full) for n in (64, 4096))
    assert many < 0.01 and many < few


def test_four_images_at_least():
    with pytest.raises(ValueError, match="unbiased HSIC of 3 images is not defined; give 4 or more"):
        cka([[torch.randn(3, 2)]])
