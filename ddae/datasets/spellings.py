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
    """Raises ValueError where names of folders of images say split and class at once, as trainA and testA do, or a
    split alone: as classes they would have test images trained on."""
    splits: dict[str, dict[str, str]] = {}
    """class -> split -> the folder that is called like both"""
    for name in sorted(names):
        split, of = split_and_class(name)
        splits.setdefault(of, {}).setdefault("train" if split in TRAIN else split, name)
    paired = {of: both for of, both in splits.items() if len(both) > 1}
    every = len(paired) == len(splits) > 1  # cats, cats_test, dogs and dogs_test; but a tube beside a test tube
    for of, both in paired.items():
        if every or len(both.keys() - {""}) > 1:
            one, other = list(both.values())[:2]
            where = f"move their images to train/{of}/ and test/{of}/, and those of other classes beside them"
            if not of:
                where = "make one sub-folder a class in each"
            raise ValueError(
                f"{one} and {other} are called like two splits of one class; {where}, or rename the folders if they "
                "are classes"
            )


def split_and_class(name: str) -> tuple[str, str]:
    """(split, what else the name says), in lower case; a name without a word for a split is a class."""
    words = re.findall(WORDS, name)
    if called([name], (*TRAIN, *HELD_OUT)):
        return "".join(filter(str.isalpha, name)).lower(), ""
    if len(words) == 1 and (found := re.fullmatch(r"(.{3,})([^\WsS_\d])", name)):  # traina, TESTB; no plural
        words = list(found.groups()) if found[1].lower() in (*TRAIN, *HELD_OUT) else words
    words = [word.lower() for word in words]
    for number, word in enumerate(words):
        if len(words) > 1 and word in (*TRAIN, *HELD_OUT):
            return word, "_".join(words[:number] + words[number + 1 :])
    return "", "_".join(words) or name
