"""Train, validation and test as the authors make them (their src/data/load_dataset.py).

GLUE's test labels are not public. A random tenth of the training set (shuffled with seed 1, the first tenth)
is the validation set that picks the checkpoint; GLUE's validation set is the test set, MNLI's two one after
the other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import datasets
import numpy as np

from condlora.errors import ConfigError, DataError
from condlora.glue.tasks import Task

HELD_OUT = "held_out"  # the part of the test set that is taken from the training set
SMALLEST_SPREAD = 1e-15  # of a regression's targets: float32 holds squares down to 1e-38
LARGEST_ROUNDING = 1e-2  # of targets to float32, in standard deviations
SHUFFLE_SEED = 1  # the authors'; the same for every run, so that all seeds see one split


@dataclass(frozen=True)
class Splits:
    """The three splits; `test_part` names the GLUE split of each test row, or HELD_OUT; `source_train_rows` counts GLUE's train."""

    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    test_part: list[str]
    source_train_rows: int

    def items(self):
        return (("train", self.train), ("validation", self.validation), ("test", self.test))


def make_splits(
    text: datasets.DatasetDict,
    task: Task,
    validation: str,
    limit: int | None = None,
    test_rows_from_train: int | None = None,
) -> Splits:
    """Split one task's text.

    `validation`: "tenth_of_train", or "test" for the authors' second recipe, which trains on the whole
    training set and draws its curve on GLUE's validation set. A user's text may bring a validation split, which then
    takes the tenth's place. `limit`: the maximum number of rows of the validation set, its first ones; the rest
    of it is not trained on. `test_rows_from_train`: this number of rows of the shuffled training set, those after the
    validation tenth, become further test rows in place of training rows.

    Raises:
        ConfigError: an unknown `validation`, or a limit or further test rows that do not fit it.
        DataError: a label is missing (GLUE marks hidden labels -1), only one class is in a split, or a tenth of
            train is no example.
    """
    columns = [*task.fields, "label"]
    brings_validation = task.official_rows is None and "validation" in text
    used = ("train", *("validation",) * brings_validation, *task.test_splits)
    text = datasets.DatasetDict({name: text[name].select_columns(columns) for name in used})
    for name, split in text.items():
        _check_labels(np.asarray(split["label"][:], dtype=np.float64), task, name)
    test = datasets.concatenate_datasets([text[name] for name in task.test_splits])
    test_part = [name for name in task.test_splits for _ in range(len(text[name]))]
    if limit is not None and (limit < 1 or validation == "test"):
        raise ConfigError(
            f"protocol.validation_limit is {limit}: give a positive number with validation=tenth_of_train, or null."
        )
    further = test_rows_from_train
    if further is not None and (further < 1 or validation != "tenth_of_train" or brings_validation):
        raise ConfigError(
            f"protocol.test_rows_from_train is {further}: give a positive number with validation=tenth_of_train and "
            "without data.validation, or null."
        )
    if validation == "test" and brings_validation:
        raise ConfigError(
            "protocol.validation=test, and data.validation brings another validation set: leave one of them out."
        )
    if validation == "test":
        return _checked(Splits(text["train"], test, test, test_part, len(text["train"])), task)
    if validation != "tenth_of_train":
        raise ConfigError(
            f"Unknown protocol.validation {validation!r}: choose tenth_of_train or test."
        )
    if brings_validation:
        whole = text["validation"]
        some = whole.select(range(min(limit or len(whole), len(whole))))
        return _checked(Splits(text["train"], some, test, test_part, len(text["train"])), task)
    # What datasets' shuffle(seed=1) does, without its cache files.
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(text["train"]))
    held_out = round(len(order) * 0.1)
    if held_out == 0:
        raise DataError(
            f"A tenth of the {len(order)} rows that {task.name} has to train on is no validation set: give more rows."
        )
    first = held_out + (further or 0)  # of the training rows
    if first >= len(order):
        raise ConfigError(
            f"protocol.test_rows_from_train is {further}, and {task.name} has {len(order)} training rows: give fewer."
        )
    if further:
        more = text["train"].select(order[held_out:first])
        test = datasets.concatenate_datasets([test, more])
        test_part = [*test_part, *further * [HELD_OUT]]
    splits = Splits(
        train=text["train"].select(order[first:]),
        validation=text["train"].select(order[:held_out][:limit]),
        test=test,
        test_part=test_part,
        source_train_rows=len(order),
    )
    return _checked(splits, task)


def _checked(splits: Splits, task: Task) -> Splits:
    """The splits, if training has something to learn and validation can rank checkpoints.

    Raises:
        DataError: training or validation has a single label: every prediction of it is right, whatever was learnt.
    """
    for name, split in (("train", splits.train), ("validation", splits.validation)):
        if len(set(split["label"][:])) < 2:
            lacks = (
                "there is nothing to learn: give more rows"
                if name == "train"
                else f"{task.headline} on it cannot choose a checkpoint: give more rows, or a data.validation with several "
                "labels"
            )
            raise DataError(
                f"The {name} split of {task.name} has {len(split)} rows and a single label, so {lacks}."
            )
    return splits


def split_sha256(split: datasets.Dataset, task: Task) -> str:
    """Hash of a split's texts and labels in order: equal hashes, equal data."""
    digest = hashlib.sha256()
    columns = [split[name][:] for name in (*task.fields, "label")]
    for row in zip(*columns, strict=True):
        digest.update("\t".join(map(str, row)).encode() + b"\n")
    return digest.hexdigest()


def _check_labels(labels: np.ndarray, task: Task, name: str) -> None:
    if task.is_regression:
        wrong = ~np.isfinite(labels)
        if task.official_rows is not None:  # STS-B's scores are from 0 to 5
            wrong |= labels < 0
    else:
        wrong = (labels < 0) | (labels >= task.num_labels) | (labels != np.floor(labels))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        hidden = labels[row] == -1  # GLUE's mark
        advice = "a split without public labels cannot be used" if hidden else "check the data"
        raise DataError(
            f"Row {row + 1} of {task.name}'s split {name!r} has the label {labels[row]:g}, which is none of the task's: "
            f"{advice}."
        )
    if len(np.unique(labels)) < 2:
        raise DataError(f"All rows of {task.name}'s split {name!r} have one label: check the data.")
    if task.is_regression:
        _check_float32(labels, task, name)


def _check_float32(targets: np.ndarray, task: Task, name: str) -> None:
    """Raise a DataError if float32, in which targets are trained on, does not tell them apart."""
    spread = targets.std()
    rounding = np.abs(targets.astype(np.float32) - targets).max()
    if spread < SMALLEST_SPREAD or rounding > LARGEST_ROUNDING * spread:
        raise DataError(
            f"The labels of {task.name}'s split {name!r} are {targets.mean():g} with a standard deviation of {spread:g}, "
            "which float32 cannot tell apart: subtract a constant, or multiply by one."
        )
