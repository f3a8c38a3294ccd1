"""What the report says of the images."""

from types import SimpleNamespace

import numpy as np

from sweeps.findings.answer import without_text
from sweeps.probing.text import images_facts
from sweeps.search.task import Result, pack

CORRECT = np.arange(100) < 80
METRICS = {"val_accuracy": 0.8, "val_stderr": 0.04, "val_balanced_accuracy": 0.7, "val_balanced_stderr": 0.03}


def found(notes=("3 classes",), twins=None, measures=("accuracy",)):
    labels = {"val": np.arange(100) % 4 // 3}
    task = SimpleNamespace(notes=notes, twins=twins or {}, measures=measures, measure=measures[0], labels=labels)
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
    balanced = images_facts(found(twins=twins, measures=("balanced accuracy", "accuracy")))["without copies"]
    assert balanced == "50.0 +- 9.1 % balanced accuracy on the 40 val images that are not in train too; 60 are"


def test_where_all_are_in_train_nothing_is_left():
    assert without_text(CORRECT, CORRECT, np.ones(100, bool), "test", "train or val").startswith("all 100 test images")


def test_uneven_classes_have_both_numbers():
    majority = "always saying the largest class is right on 75.0 % of val"
    facts = images_facts(found(measures=("accuracy", "balanced accuracy")))
    assert facts["balanced"] == f"70.0 +- 3.0 % is the mean of the classes' accuracies; {majority}"
    facts = images_facts(found(measures=("balanced accuracy", "accuracy")))
    assert facts["accuracy"] == f"80.0 +- 4.0 % of the val images are classified correctly; {majority}"
    assert not {"accuracy", "balanced"} & images_facts(found()).keys()
