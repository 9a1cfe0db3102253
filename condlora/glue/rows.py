"""The rows of a user's own data, checked against the task: columns, texts and labels.

Everything that can be wrong with a row is found here and reported with its file and line, or its row counted from 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import datasets

from condlora.errors import DataError
from condlora.glue.tasks import Task
from condlora.labels import label_name

Rows = Iterator[tuple[str, dict]]  # where a row stands, in words, and its cells by column
LARGEST = 1e15  # of a regression's targets: a loss squares them, and float32 ends at 3.4e38


def check_columns(columns, task: Task, place: str) -> None:
    for column in (*task.fields, task.label):
        if column not in columns:
            raise DataError(
                f"{place}: there is no column {column!r}; the columns are {_listed(columns)}: set task.fields and task.label."
            )


def _listed(columns) -> str:
    """Names of columns; one with characters that cannot be seen, such as a no-break space, is shown as Python writes it."""
    names = map(str, columns)
    return ", ".join(n if n == n.strip() and n.isprintable() else ascii(n) for n in names)


def checked(rows: Rows, task: Task, place: str) -> datasets.Dataset:
    """Texts and labels of rows as the task wants them."""
    columns: dict[str, list] = {name: [] for name in (*task.fields, "label")}
    for where, row in rows:
        for field in task.fields:
            columns[field].append(_text(row[field], field, where))
        columns["label"].append(read_label(row[task.label], task, where))
    if not columns["label"]:
        raise DataError(f"{place} has no rows.")
    return datasets.Dataset.from_dict(columns)


def _text(value: object, field: str, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{place}: {field!r} is {value!r}, which is not text: repair or remove the row."
        )
    if re.search("[\ud800-\udfff]", value):
        raise DataError(
            f"{place}: {field!r} holds half a character (a lone surrogate): repair or remove the row."
        )
    if not value.strip():
        raise DataError(f"{place}: {field!r} is empty: repair or remove the row.")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 100 else f"{text[:40]}..."


def read_label(value: object, task: Task, place: str) -> int | float:
    """The index of a label, or the number of a regression."""
    if task.labels is None:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(
                f"{place}: {task.label!r} is {_short(value)}, which is not a number: repair or remove the row, or give task.labels."
            )
        if abs(number) > LARGEST:
            raise DataError(
                f"{place}: {task.label!r} is {value!r}, and squares of such numbers overflow in float32: divide all by a "
                "constant."
            )
        return number
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"{place}: {task.label!r} is missing: give a label or remove the row.")
    names = [label_name(label) for label in task.labels]
    if label_name(value) not in names:
        raise DataError(
            f"{place}: {task.label!r} is {value!r}, which is not one of task.labels ({', '.join(names)})."
        )
    return names.index(label_name(value))
