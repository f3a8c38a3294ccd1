"""What a person should know of a dataset before anything is computed of it."""

from collections.abc import Mapping, Sequence
from unicodedata import normalize

import numpy as np

from ddae.datasets.images import Images
from ddae.units import counted

NUM_SEEN = 256
"""How many training images tell whether they are all alike."""
ALIKE, FEW_SHADES = 2.0, 32
"""Grey values, of 255, below which images hardly differ, and between which they hardly show anything."""
UNEVEN = 2
"""Classes are uneven where the largest has so many times the images of the smallest."""
MAX_NUMBERS = 2**24
"""Pixels and channels of all of them, so that large images fit in memory."""
MAX_NAMES = 12
"""More classes are not listed."""


def summary(images: Images, splits: Mapping[str, np.ndarray]) -> str:
    """The classes, and the number of images in each split."""
    names = images.classes[:MAX_NAMES]
    more = f" and {len(images.classes) - MAX_NAMES:,} more" * (len(images.classes) > MAX_NAMES)
    train, val, test = (f"{len(splits[split]):,} {split}" for split in ("train", "val", "test"))
    official = "" if images.has_own_test else "; there are no official test images, so a fifth of every class is test"
    return f"{len(images.classes):,} classes ({', '.join(names)}{more}); {train}, {val} and {test} images{official}"


def find_twins(images: Images, splits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Which val images have the very pixels of a training image, and which test images those of a training or val
    image, bool [n]; empty where the images were not all opened."""
    if not images.digests:
        return {}
    digests = {split: np.array(images.digests)[rows] for split, rows in splits.items()}
    known = np.concatenate([digests["train"], digests["val"]])
    return {"val": np.isin(digests["val"], digests["train"]), "test": np.isin(digests["test"], known)}


def notes_of(
    images: Images, splits: Mapping[str, np.ndarray], twins: Mapping[str, np.ndarray], num_channels: int = 3
) -> list[str]:
    """What a person should know of the images in the splits, a line each. num_channels: as load_dataset takes it."""
    notes = [*_twin_notes(images, twins), *seen_notes(images, splits["train"], num_channels)]
    for split in ("val", "test"):
        if lost := np.setdiff1d(images.labels, images.labels[splits[split]]).tolist():
            names = ", ".join(images.classes[label] for label in lost[:MAX_NAMES])
            num_lost, more = counted(len(lost), "class", "classes"), ", ..." * (len(lost) > MAX_NAMES)
            notes.append(f"{split} has no image of {num_lost} ({names}{more})")
    notes += _alike_names(images.classes)
    if images.groups is not None and (num_groups := len(np.unique(images.groups))) == len(images.groups):
        notes.append(f"each of the {num_groups:,} images is a group of its own, so --group-by keeps nothing together")
    if images.groups is not None and images.has_own_test:
        seen, held_out = images.groups[: images.num_train], images.groups[images.num_train :]
        if shared := len(np.intersect1d(seen, held_out)):
            notes.append(
                f"{counted(shared, 'group is', 'groups are')} in train and in test, as the set itself splits them"
            )
    counts = np.bincount(images.labels)
    if is_uneven(images.labels):
        notes.append(
            f"the classes are uneven, of {counts.min():,} to {counts.max():,} images: always saying "
            f"{images.classes[counts.argmax()]} is right on {counts.max() / counts.sum():.1%}, so balanced accuracy is "
            "given beside accuracy; layer_noise.py --metric balanced_accuracy chooses by it"
        )
    return notes


def _alike_names(classes: Sequence[str]) -> list[str]:
    """Classes that may be one, because a person hardly sees that their names differ."""
    same: dict[str, list[str]] = {}
    for name in classes:
        same.setdefault(" ".join(normalize("NFKC", name).casefold().split()), []).append(repr(name))
    how = "differ in capitals, spaces or the encoding of letters alone; make them one, if they are"
    return [f"the classes {' and '.join(names)} {how}" for names in same.values() if len(names) > 1]


def is_uneven(labels: np.ndarray) -> bool:
    _, counts = np.unique(labels, return_counts=True)
    return bool(counts.max() >= UNEVEN * counts.min())


def _twin_notes(images: Images, twins: Mapping[str, np.ndarray]) -> list[str]:
    found = [
        f"{num:,} of {len(twins[split]):,} {split} images {'is' if num == 1 else 'are'} in {others} too"
        for split, others in (("val", "train"), ("test", "train or val"))
        if (num := twins[split].sum() if split in twins else 0)
    ]
    if not found:
        return []
    first: dict[str, int] = {}
    contradicted = {
        d for d, label in zip(images.digests, images.labels, strict=True) if first.setdefault(d, label) != label
    }
    pictures = counted(len(contradicted), "of the pictures has", "of the pictures have")
    more = f"; {pictures} several labels" if contradicted else ""
    return [
        f"{' and '.join(found)}, pixel by pixel, which rewards memory: accuracies are given without them as well"
        f"{more}; remove the copies"
    ]


def seen_notes(images: Images, rows: np.ndarray, num_channels: int) -> list[str]:
    """Notes on the first of these training images, as the network sees them, at its size and with its channels."""
    numbers = images.read(rows[:1]).numel()
    seen = images.read(rows[: max(8, min(NUM_SEEN, MAX_NUMBERS // numbers))]).float()
    notes = []
    if num_channels == 1:
        if num_coloured := int(((seen.amax(1) - seen.amin(1)).flatten(1).amax(1) > ALIKE).sum()):
            notes.append(
                f"the colours of {num_coloured} of {len(seen)} training images that were looked at are not seen: this "
                "network has one channel, and is given the mean of red, green and blue"
            )
        seen = seen.mean(1, keepdim=True)
    low, high = (float(np.quantile(seen.numpy(), share)) for share in (0.001, 0.999))
    apart = float(seen.std(0, correction=0).mean())
    if apart < ALIKE:
        notes.append(
            f"the images are all alike to the network: {len(seen)} of them differ by {apart:.1f} of 255 grey values at "
            f"{seen.shape[-1]} x {seen.shape[-1]} pixels; look at them, or give --white"
        )
    elif high - low < FEW_SHADES:
        notes.append(
            f"the images are nearly constant to the network: {len(seen)} of them lie between {low:.0f} and {high:.0f} "
            "of 255; look at them, or give --white"
        )
    elif (flat := int((seen.flatten(2).std(2, correction=0).amax(1) < ALIKE).sum())) > 0.9 * len(seen):
        notes.append(
            f"{flat} of {len(seen)} training images that were looked at have one colour all over; look at them"
        )
    return notes
