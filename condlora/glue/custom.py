"""A user's own data as GLUE's: files, or a set that `datasets` loads; the columns are the task's."""

from __future__ import annotations

import re
from pathlib import Path

import datasets
from omegaconf import DictConfig

from condlora.errors import DataError, NetworkError, first_line, raise_if_denied
from condlora.glue.readers import CHECKED, QUOTING, read_rows
from condlora.glue.rows import Rows, check_columns, checked
from condlora.glue.tasks import Task

SPLITS = ("train", "validation", "test")


def from_files(data: DictConfig, task: Task) -> datasets.DatasetDict:
    """The splits of data=files. `data.quoting` says how csv and tsv are read: "standard" (cells may be quoted, as
    spreadsheets do), "none" (a quotation mark is a character like any other), or "checked" (the default: standard, but a
    quoted cell that seems to hold rows is refused).

    Raises:
        DataError: a file is missing, of an unknown kind or malformed, or a row does not fit the task.
    """
    quoting = data.get("quoting", CHECKED)
    if quoting not in QUOTING:
        raise DataError(f"Invalid data.quoting={quoting!r}: use {', '.join(QUOTING)}.")
    return datasets.DatasetDict(
        {
            split: checked(read_rows(Path(data[split]), task, quoting), task, str(data[split]))
            for split in SPLITS
            if data[split] is not None
        }
    )


def from_dataset(data: DictConfig, task: Task) -> datasets.DatasetDict:
    """The splits of data=dataset; classes go by their names where the set has them.

    Raises:
        DataError: the folder is no set, a split lacks, the revision is none, or a row does not fit the task.
        NetworkError: the hub cannot be reached and holds no cached copy.
    """
    loaded = _load(data)
    splits = {}
    for split in SPLITS:
        name = data[split]
        if name is None:
            continue
        place = f"{data.dataset}, split {name}"
        if name not in loaded:
            raise DataError(
                f"{data.dataset} has no split {name!r} but {', '.join(loaded)}: set data.{split}=..."
            )
        splits[split] = checked(_rows_of(loaded[name], task, place), task, place)
    return datasets.DatasetDict(splits)


def _load(data: DictConfig) -> datasets.DatasetDict:
    if Path(data.dataset).is_dir():
        try:
            loaded = datasets.load_from_disk(str(data.dataset))
        except (OSError, ValueError, KeyError) as error:
            raise_if_denied(error)
            raise DataError(
                f"{data.dataset} is no folder that save_to_disk wrote ({first_line(error)})."
            ) from error
        if not isinstance(loaded, datasets.DatasetDict):
            raise DataError(
                f"{data.dataset} is one split: save a DatasetDict that has train and test."
            )
        return loaded
    if not re.fullmatch(r"[0-9a-f]{40}", str(data.revision)):
        raise DataError(
            f"{data.dataset} is no folder, and of the hub a commit is needed: set data.revision=... to its 40 digits."
        )
    try:
        return datasets.load_dataset(data.dataset, data.config, revision=data.revision)
    except ValueError as error:
        raise DataError(
            f"{data.dataset} cannot be loaded ({first_line(error)}): check data.config."
        ) from error
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise_if_denied(error)
        raise NetworkError(
            f"{data.dataset} (revision {data.revision[:8]}) is not cached and could not be downloaded from the hub "
            f"({type(error).__name__}): go online once, or use data=files."
        ) from error


def _rows_of(split: datasets.Dataset, task: Task, place: str) -> Rows:
    check_columns(split.column_names, task, place)
    feature = split.features[task.label]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    for number, row in enumerate(split, start=1):
        label = row[task.label]
        if names is not None and label is not None:
            if not 0 <= label < len(names):
                raise DataError(
                    f"{place}, row {number}: {task.label!r} is {label}, the mark of a hidden label: remove the row or use "
                    "another split."
                )
            row = row | {task.label: names[label]}
        yield f"{place}, row {number}", row
