"""The names that folders of splits have."""

import re
from collections.abc import Iterable, Sequence

ENDINGS = ("", "set", "data", "dataset", "images", "split")
TRAIN = tuple(word + end for word in ("train", "training", "trn") for end in ENDINGS)
HELD_OUT = tuple(
    word + end
    for word in ("test", "testing", "tests", "tst", "holdout", "heldout", "val", "valid", "validation", "dev", "eval",
                 "evaluation")
    for end in ENDINGS
)  # fmt: skip
"""The letters of the names of splits, in lower case, the first choice first."""
WORDS = r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_a-zA-Z]+"
"""The words in trainA, TRAIN_CATS, test-cats, dogsTest and val2017."""


def called(names: Iterable[str], words: Sequence[str]) -> list[str]:
    """Those of the names whose letters are one of the words, in any case, in the order of the words."""
    found = {name: "".join(filter(str.isalpha, name)).lower() for name in sorted(names, key=lambda n: (len(n), n))}
    return [name for word in words for name, letters in found.items() if letters == word]


def check_classes(names: Iterable[str]) -> None:
    """Raises ValueError where names of class folders say split and class at once, as trainA and testA do: as classes
    they would have test images trained on."""
    splits: dict[str, dict[str, tuple[str, str]]] = {}
    for name in sorted(names):
        if found := split_and_class(name):
            split, of = found
            splits.setdefault(of.lower(), {}).setdefault("train" if split in TRAIN else split, (name, of))
    for both in splits.values():
        if len(both) > 1:
            (one, of), (other, _) = list(both.values())[:2]
            raise ValueError(
                f"{one} and {other} are called like two splits of one class; move their images to train/{of}/ and "
                f"test/{of}/, and those of other classes beside them, or rename the folders if they are classes"
            )


def split_and_class(name: str) -> tuple[str, str] | None:
    """(split, in lower case; what else the name says) of a folder's name that has a word for a split and others."""
    words = re.findall(WORDS, name)
    if len(words) == 1 and (found := re.fullmatch(r"(.{3,})([^\WsS_\d])", name)):  # traina, TESTB; no plural
        words = list(found.groups())
    for number, word in enumerate(words):
        if len(words) > 1 and word.lower() in (*TRAIN, *HELD_OUT):
            return word.lower(), "_".join(words[:number] + words[number + 1 :])
    return None
