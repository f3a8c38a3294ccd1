import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from ddae import ridge
from ddae.heads import linear
from ddae.ridge import leave_one_out
from tests.ddae.golden import digest, problem


def planted(num_images, num_features, seed=0):
    """[N, D, 1, 1] noise in which the label moves the first three numbers."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (num_images,), generator=generator)
    features = torch.randn(num_images, num_features, 1, 1, generator=generator)
    features[torch.arange(num_images), labels] += 1.5
    return features, labels


@pytest.mark.parametrize("penalty", [1e-4, 0.1])
@pytest.mark.parametrize(("num_images", "num_features", "decay"), [(40, 5, 1), (30, 60, 1), (60, 300, 0.97)])
def test_it_is_what_fitting_without_each_image_gives(monkeypatch, num_images, num_features, decay, penalty):
    """decay: factor between deviations along successive random axes; real features have such spectra."""
    monkeypatch.setattr("ddae.ridge.PENALTIES", (penalty,))
    features, labels = planted(num_images, num_features)
    mixed = torch.randn(num_features, num_features, generator=torch.Generator().manual_seed(1))
    features = (features.flatten(1) * decay ** torch.arange(num_features) @ mixed)[..., None, None]
    x = StandardScaler().fit_transform(features.flatten(1).double().numpy())
    targets = np.eye(3)[labels]
    expected = []
    for left_out in range(num_images):
        rest = np.arange(num_images) != left_out
        ridge = Ridge(alpha=penalty * num_images).fit(x[rest], targets[rest])
        expected.append(ridge.predict(x[left_out : left_out + 1]).argmax() == labels[left_out].item())
    assert 5 < sum(expected) < num_images
    assert leave_one_out(features, labels, 3).tolist() == expected


def test_it_agrees_with_held_out_images():
    features, labels = planted(3000, 20)
    few = leave_one_out(features[:500], labels[:500], 3).mean()
    head = linear.fit_ridge(features[:500], labels[:500], 3, seed=0)
    held_out = (head(features[500:]).argmax(-1) == labels[500:]).float().mean(1).max().item()
    assert few == pytest.approx(held_out, abs=0.05)


def test_shuffled_labels_are_chance_even_with_more_numbers_than_images():
    features, labels = planted(300, 1000)
    shuffled = labels[torch.randperm(300, generator=torch.Generator().manual_seed(1))]
    assert leave_one_out(features, shuffled, 3).mean() < 0.45


def test_constant_features_are_no_error():
    assert leave_one_out(torch.ones(20, 4, 2, 2), torch.arange(20) % 2, 2).mean() <= 0.5


GOLDEN = 1, -10.0812899
"""Version of the screening and digest of its results: raise the one and renew the other together."""


def golden(monkeypatch, penalties):
    """Digest of which images are right under each penalty alone and under the best of them, with more images than
    numbers and with fewer."""
    right = []
    for grid in ((penalty,) for penalty in penalties), (penalties,):
        for tried in grid:
            monkeypatch.setattr(ridge, "PENALTIES", tried)
            right += [leave_one_out(*problem(300), 3), leave_one_out(*problem(50, grid=4), 3)]
    return digest(right)


def test_the_version_stands_for_the_results_of_leave_one_out(monkeypatch):
    found = ridge.VERSION, golden(monkeypatch, ridge.PENALTIES)
    assert found == pytest.approx(GOLDEN, abs=1e-6), (
        f"results of leave_one_out changed: raise ddae.ridge.VERSION and renew the digest, to {found}"
    )


def test_the_digest_changes_with_a_penalty(monkeypatch):
    for changed in (ridge.PENALTIES[:-1], (*ridge.PENALTIES[:3], 0.2, *ridge.PENALTIES[4:])):
        assert golden(monkeypatch, changed) != pytest.approx(GOLDEN[1], abs=1e-6)
