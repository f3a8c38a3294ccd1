"""What the report says of the images."""

from types import SimpleNamespace

import numpy as np
import pytest

from sweeps.findings.answer import without_text
from sweeps.probing.text import images_facts
from sweeps.search.task import Result, pack

CORRECT = np.arange(100) < 80
METRICS = {"val_balanced_accuracy": 0.7, "val_balanced_stderr": 0.03}


def found(notes=("3 classes",), twins=None, is_balanced=False):
    labels = {"val": np.arange(100) % 4 // 3}
    task = SimpleNamespace(notes=notes, twins=twins or {}, is_balanced=is_balanced, labels=labels)
    answer = SimpleNamespace(result=Result(METRICS, {}, 0, 0, pack(CORRECT)))
    return SimpleNamespace(task=task, answer=answer)


def test_of_a_set_in_order_its_classes_and_splits_alone():
    assert images_facts(found()) == {"images": "3 classes"}
    assert images_facts(found(("3 classes", "left out a", "b"))) == {"images": "3 classes", "to know": "left out a; b"}


def test_accuracy_without_the_images_that_are_in_train_too():
    twins = {"val": np.arange(100) < 60}
    assert images_facts(found(twins=twins))["without copies"] == (
        "50.0 +- 7.9 % on the 40 val images that are not in train too; 60 are"
    )
    assert "without copies" not in images_facts(found(twins={"val": np.zeros(100, bool)}))


def test_where_all_are_in_train_nothing_is_left():
    assert without_text(CORRECT, np.ones(100, bool), "test", "train or val").startswith("all 100 test images are in")


@pytest.mark.parametrize("is_balanced", [False, True])
def test_uneven_classes_have_both_numbers(is_balanced):
    facts = images_facts(found(is_balanced=is_balanced))
    expected = (
        "70.0 +- 3.0 % is the mean of the classes' accuracies; always saying the largest class is right on 75.0 %"
    )
    assert facts.get("balanced", "").startswith(expected) == is_balanced
