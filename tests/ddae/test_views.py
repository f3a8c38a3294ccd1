import numpy as np
import torch

from ddae.views import AUGMENTATIONS, flip_and_crop, flipped, quarter_turned, quarter_turns

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


def test_every_augmentation_depends_on_seed_view_and_image_alone():
    images = IMAGES.to(torch.uint8)
    for augment in AUGMENTATIONS.values():
        views = augment(images, ROWS, 0, 2)
        assert views.shape == images.shape and views.dtype == torch.uint8
        assert torch.equal(augment(images[7:8], ROWS[7:8], 0, 2)[0], views[7])
        assert not torch.equal(augment(images, ROWS, 0, 3), views)


def test_flips_alone_mirror_half_and_move_nothing():
    views = flipped(IMAGES, ROWS, 0, 1)
    mirrored = [torch.equal(view, image.flip(-1)) for image, view in zip(IMAGES, views, strict=True)]
    assert 10 < sum(mirrored) < 30
    assert all(torch.equal(v, i) for i, v, m in zip(IMAGES, views, mirrored, strict=True) if not m)


def test_crops_show_as_much_of_an_image_as_they_say():
    """By the slope of a ramp, which a crop that is resized flattens by the share of the side that it shows."""
    ramp = torch.arange(64.0).expand(400, 3, 64, 64) * 4
    slopes = {}
    for name in ("large-crop", "resized-crop"):
        views = AUGMENTATIONS[name](ramp, np.arange(400), 0, 1)
        slopes[name] = (views[:, 0, :, 40] - views[:, 0, :, 24]).mean(1).abs() / 64
    assert slopes["large-crop"].min() > 0.78 and slopes["large-crop"].max() < 1.01
    assert 0.2 < slopes["resized-crop"].min() < 0.5 and slopes["resized-crop"].max() < 1.01


def test_quarter_turns_are_told_and_made_alike():
    turns = quarter_turns(ROWS, 0, 1)
    assert set(turns) == {0, 1, 2, 3}
    for image, view, turn in zip(IMAGES, quarter_turned(IMAGES, ROWS, 0, 1), turns, strict=True):
        assert np.array_equal(view.numpy(), np.rot90(image.numpy(), turn, axes=(1, 2)))
