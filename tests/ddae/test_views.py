import numpy as np
import torch

from ddae.views import flip_and_crop

IMAGES = torch.arange(40 * 3 * 16 * 16, dtype=torch.float32).view(40, 3, 16, 16) % 251 + 1
ROWS = np.arange(40)


def test_a_view_depends_on_seed_number_and_image_alone():
    views = flip_and_crop(IMAGES, ROWS, seed=0, view=2)
    assert torch.equal(flip_and_crop(IMAGES[7:8], ROWS[7:8], seed=0, view=2)[0], views[7])
    for other in (flip_and_crop(IMAGES, ROWS, seed=1, view=2), flip_and_crop(IMAGES, ROWS, seed=0, view=3)):
        assert not torch.equal(other, views)


def test_views_are_shifts_of_at_most_an_eighth_and_half_are_mirrored():
    mirrored = 0
    for image, view in zip(IMAGES, flip_and_crop(IMAGES, ROWS, seed=0, view=2), strict=True):
        inside = image[:, 4:12, 4:12]
        found = [
            flipped
            for flipped in (False, True)
            for top in range(2, 7)
            for left in range(2, 7)
            if torch.equal((view.flip(-1) if flipped else view)[:, top : top + 8, left : left + 8], inside)
        ]
        assert len(found) == 1
        mirrored += found[0]
    assert 10 < mirrored < 30
