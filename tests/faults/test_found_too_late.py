"""What cannot end well is refused before the first step, and the message names what is wrong.

Of the same kind: backbones with leftovers in tests/models/test_leftovers.py, permissions in
tests/faults/test_permissions.py, settings, paths and headers in tests/commands/test_cli.py, tests/commands/test_at_once.py
and tests/grid/test_places.py, figures in tests/analysis/test_figures.py.
"""

import datasets
import pytest

from condlora.errors import DataError
from condlora.glue.splits import make_splits
from condlora.glue.tasks import Task
from tests.tasks import load_task

CLASSES, TARGETS = [0, 1] * 5, [0.0, 1.0] * 5


def task_with(headline):
    labels = None if headline in ("pearson", "spearman") else ("bad", "good")
    return Task("own", "own", ("text",), labels, (headline,), headline, ("test",), None)


def split(labels):
    return datasets.Dataset.from_dict({"text": [str(i) for i in labels], "label": labels})


@pytest.mark.parametrize(
    "headline", ["accuracy", "matthews_correlation", "f1", "pearson", "spearman"]
)
def test_a_validation_split_of_one_row_is_refused(headline):
    task = task_with(headline)
    whole = split(TARGETS if task.is_regression else CLASSES)
    with pytest.raises(
        DataError, match="The validation split of own has 1 rows and a single label"
    ):
        make_splits(datasets.DatasetDict(train=whole, test=whole), task, "tenth_of_train")


@pytest.mark.parametrize("headline", ["accuracy", "f1", "pearson"])
@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_a_split_of_one_label_is_refused_by_its_name(headline, name):
    task = task_with(headline)
    whole = split(TARGETS if task.is_regression else CLASSES)
    sets = datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), whole))
    sets[name] = split(whole["label"][:1] * 10)
    with pytest.raises(DataError, match=f"All rows of own's split '{name}' have one label"):
        make_splits(sets, task, "tenth_of_train")


@pytest.mark.parametrize("headline", ["accuracy", "matthews_correlation"])
def test_a_limit_that_leaves_one_class_of_validation_is_refused(headline):
    task, whole = task_with(headline), split(CLASSES)
    sets = datasets.DatasetDict(train=whole, validation=split([0, 0, 0, 1]), test=whole)
    with pytest.raises(DataError, match="validation split of own has 3 rows and a single label"):
        make_splits(sets, task, "tenth_of_train", limit=3)
    assert len(make_splits(sets, task, "tenth_of_train", limit=4).validation) == 4


def test_a_training_split_that_keeps_one_class_once_validation_is_held_out_is_refused():
    text = split([0] * 19 + [1])
    order = datasets.DatasetDict(train=text, test=split(CLASSES))
    with pytest.raises(DataError, match="The (train|validation) split of own has .* single label"):
        make_splits(order, task_with("accuracy"), "tenth_of_train")


@pytest.mark.parametrize(
    "targets",
    [
        [7.0] * 10,
        [1e9, 1e9 + 1] * 5,  # one number in float32
        [16_777_216.0, 16_777_217.0] * 5,
        [1e-30, 2e-30] * 5,  # whose squares are 0 in float32
    ],
)
@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_targets_that_float32_cannot_tell_apart_are_refused(targets, name):
    sets = datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), split(TARGETS)))
    sets[name] = split(targets)
    with pytest.raises(DataError, match=f"own's split '{name}' (have one label|are .* tell apart)"):
        make_splits(sets, task_with("pearson"), "tenth_of_train")


@pytest.mark.parametrize(
    "targets", [[1e6, 1e6 + 1] * 5, [0.1, 0.1 + 1e-9] + [5.0] * 8, [1e-6, 2e-6] * 5]
)
def test_targets_that_float32_tells_apart_are_taken(targets):
    sets = datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), split(targets)))
    assert len(make_splits(sets, task_with("pearson"), "tenth_of_train").train) == 10


def test_a_split_of_glue_with_one_label_is_refused_too():
    task = load_task("stsb")
    columns = {"sentence1": ["a"] * 20, "sentence2": ["b"] * 20}
    constant = datasets.Dataset.from_dict(columns | {"label": [2.5] * 20})
    sound = datasets.Dataset.from_dict(columns | {"label": [i / 4 for i in range(20)]})
    for sets in (
        {"train": constant, "validation": sound},
        {"train": sound, "validation": constant},
    ):
        with pytest.raises(DataError, match="have one label"):
            make_splits(datasets.DatasetDict(sets), task, "tenth_of_train")
