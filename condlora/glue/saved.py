"""A GLUE task in a folder that `datasets.save_to_disk` wrote: classes are matched by name, texts and scores checked."""

from __future__ import annotations

from pathlib import Path

import datasets

from condlora.errors import DataError, first_line, raise_if_denied
from condlora.glue.tasks import Task

HIDDEN = -1  # GLUE's mark of a hidden label, which `condlora.glue.splits` refuses where it is used
TEXT = ("string", "large_string")


def load_saved(folder: Path, task: Task) -> datasets.DatasetDict:
    """The splits of a saved set with the task's label indices.

    Raises:
        DataError: the folder is damaged, a text is missing or none, or a class or score is none of the task's.
    """
    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise_if_denied(error)
        raise DataError(
            f"{folder} cannot be read ({first_line(error)}): save the set again with save_to_disk."
        ) from error
    return datasets.DatasetDict(
        {name: _checked(split, task, f"{folder}, split {name}") for name, split in saved.items()}
    )


def _checked(split: datasets.Dataset, task: Task, place: str) -> datasets.Dataset:
    for field in (name for name in task.fields if name in split.features):
        feature = split.features[field]
        if getattr(feature, "dtype", None) not in TEXT:
            raise DataError(f"{place}: the column {field!r} is not text but {feature}: convert it.")
        _require(split, field, place)
    if "label" not in split.features:
        return split  # `condlora.glue.sources.load_text` says which column lacks
    _require(split, "label", place)
    if task.is_regression:
        return _with_scores(split, task, place)
    return _with_own_labels(split, task, place)


def _require(split: datasets.Dataset, column: str, place: str) -> None:
    """Raise a DataError if a row has no value in this column."""
    if split.data.column(column).null_count == 0:
        return
    row = 1 + next(i for i, value in enumerate(split[column][:]) if value is None)
    raise DataError(f"{place}, row {row}: {column!r} is missing: repair or remove the row.")


def _with_scores(split: datasets.Dataset, task: Task, place: str) -> datasets.Dataset:
    if split.features["label"].dtype in TEXT:
        raise DataError(f"{place}: the labels are text and not numbers: cast them to float.")
    for row, value in enumerate(split["label"][:], start=1):
        if not (0.0 <= value <= 5.0 or value == HIDDEN):
            raise DataError(f"{place}, row {row}: {value!r} is not a score from 0 to 5.")
    return split


def _with_own_labels(split: datasets.Dataset, task: Task, place: str) -> datasets.Dataset:
    """Classes are matched by name, and so are labels that are words; numbers without names are the task's indices."""
    feature = split.features["label"]
    if isinstance(feature, datasets.ClassLabel):
        if tuple(feature.names) == task.labels:
            return split
        names = feature.names
    elif feature.dtype in TEXT:
        names = None
    else:
        return split  # their range is checked with the splits
    labels = []
    for row, value in enumerate(split["label"][:], start=1):
        name = value if names is None else names[value] if 0 <= value < len(names) else str(HIDDEN)
        if name in task.labels:
            labels.append(task.labels.index(name))
        elif name == str(HIDDEN):
            labels.append(HIDDEN)
        else:
            raise DataError(
                f"{place}, row {row}: the label is {name!r}, and {task.title} has {', '.join(task.labels)}: rename "
                "the classes."
            )
    return split.remove_columns("label").add_column("label", labels)
