"""The places text comes from, behind one function: three for GLUE's, two for a user's own (`condlora.glue.custom`).

All give a `datasets.DatasetDict` as `nyu-mll/glue` has it: the splits `train` and `validation` (MNLI:
`validation_matched`, `validation_mismatched`), the task's text columns, and `label` (int; float for STS-B). A
user's have `train`, `test` and perhaps `validation`.
"""

from __future__ import annotations

from pathlib import Path

import datasets
from omegaconf import DictConfig

from condlora.errors import DataError, NetworkError, raise_if_denied
from condlora.glue.custom import from_dataset, from_files
from condlora.glue.folder import data_folder
from condlora.glue.readers import utf8
from condlora.glue.saved import load_saved
from condlora.glue.synthetic import generate
from condlora.glue.tasks import Task

# Columns of a GLUE download folder's files, in the order of Task.fields, then the label column. CoLA has no
# header: its columns are numbers. Read with no quoting: a lone quotation mark may start a sentence.
DOWNLOAD_COLUMNS = {
    "cola": ((3,), 1),
    "mnli": (("sentence1", "sentence2"), "gold_label"),
    "mrpc": (("#1 String", "#2 String"), "Quality"),
    "qnli": (("question", "sentence"), "label"),
    "qqp": (("question1", "question2"), "is_duplicate"),
    "rte": (("sentence1", "sentence2"), "label"),
    "sst2": (("sentence",), "label"),
    "stsb": (("sentence1", "sentence2"), "score"),
}
# GLUE's own QQP files have a few rows cut off in mid-line; the hub's copy leaves them out too.
TASKS_WITH_BROKEN_ROWS = ("qqp",)


def load_text(data: DictConfig, task: Task) -> datasets.DatasetDict:
    """Load one task from the source that the `data` config names.

    Raises:
        DataError: files are missing or malformed (with file and line), or a split or column lacks.
        NetworkError: the hub cannot be reached and holds no cached copy.
    """
    of_glue = {"hub": _from_hub, "directory": _from_directory, "synthetic": _from_generator}
    of_users = {"files": from_files, "dataset": from_dataset}
    if data.source not in of_glue | of_users:
        choices = "|".join(of_glue | of_users)
        raise DataError(f"Unknown data source {data.source!r}: choose data={choices}.")
    load = of_glue if task.official_rows is not None else of_users
    if data.source not in load:
        raise DataError(
            f"data={data.source} has no text of the task {task.name!r}: choose data={'|'.join(load)}"
            f"{' or task=custom' * (load is of_glue)}."
        )
    loaded = load[data.source](data, task)
    for split in ("train", *task.test_splits):
        if split not in loaded:
            raise DataError(
                f"The {data.source} data of {task.name} has no split {split!r}: check data.*."
            )
        missing = {*task.fields, "label"} - set(loaded[split].column_names)
        if missing:
            raise DataError(
                f"The split {split!r} of {task.name} lacks the column {sorted(missing)[0]!r}: "
                f"it needs {', '.join(task.fields)} and label."
            )
        if len(loaded[split]) == 0:
            raise DataError(f"The split {split!r} of {task.name} is empty: check data.*.")
    return loaded


def _from_hub(data: DictConfig, task: Task) -> datasets.DatasetDict:
    try:
        return datasets.load_dataset(data.dataset, task.name, revision=data.revision)
    except (OSError, datasets.exceptions.DatasetsError) as error:  # connection errors are OSErrors
        raise_if_denied(error)
        raise NetworkError(
            f"{data.dataset} ({task.name}, revision {data.revision[:8]}) is not cached and could not be downloaded from "
            f"the hub ({type(error).__name__}): go online once, or use data=directory or data=synthetic."
        ) from error


def _from_generator(data: DictConfig, task: Task) -> datasets.DatasetDict:
    rows = {name: data[name] for name in ("train_rows", "test_rows") if name in data}
    return generate(task.name, seed=data.seed, **rows)


def _from_directory(data: DictConfig, task: Task) -> datasets.DatasetDict:
    root = data_folder(data)
    for folder in (root / task.name, root / task.title):
        if (folder / "dataset_dict.json").is_file():
            return load_saved(folder, task)
    splits = {"train": "train"} | {
        name: name.replace("validation", "dev") for name in task.test_splits
    }
    return datasets.DatasetDict(
        {
            split: _read_tsv(root / task.title / f"{stem}.tsv", task)
            for split, stem in splits.items()
        }
    )


def _read_tsv(path: Path, task: Task) -> datasets.Dataset:
    """One file of a GLUE download folder; tab separated, unquoted, UTF-8 with or without a byte order mark."""
    if not path.is_file():
        raise DataError(f"{path} is missing: data.root needs {task.title}/train.tsv and so on.")
    text = utf8(path)
    # split("\n"), because splitlines would also break at control characters inside sentences
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    field_columns, label_column = DOWNLOAD_COLUMNS[task.name]
    header: list = list(range(4)) if task.name == "cola" else lines[0].split("\t")
    for column in (*field_columns, label_column):
        if column not in header:
            raise DataError(
                f"{path}, line 1: there is no column {column!r}: is it a file of {task.title}?"
            )
    if len(set(header)) != len(header):
        raise DataError(f"{path}, line 1 names a column twice: rename one.")
    first = 0 if task.name == "cola" else 1
    rows: dict[str, list] = {name: [] for name in (*task.fields, "label")}
    for number, line in enumerate(lines[first:], start=first + 1):
        cells = line.split("\t")
        if len(cells) < len(header):
            if task.name in TASKS_WITH_BROKEN_ROWS:
                continue
            raise DataError(
                f"{path}, line {number} has {len(cells)} of {len(header)} columns: repair the line."
            )
        if len(cells) > len(header):
            raise DataError(
                f"{path}, line {number} has {len(cells)} cells for {len(header)} columns, such as by a tab inside a "
                "sentence: repair the line."
            )
        row = dict(zip(header, cells, strict=False))
        for name, column in zip(task.fields, field_columns, strict=True):
            rows[name].append(row[column])
        rows["label"].append(_label(row[label_column], task, f"{path}, line {number}"))
    return datasets.Dataset.from_dict(rows)


def _label(text: str, task: Task, place: str) -> int | float:
    if task.labels is None:
        try:
            score = float(text)
        except ValueError:
            score = float("nan")
        if not 0.0 <= score <= 5.0:
            raise DataError(f"{place}: {text!r} is not a score from 0 to 5.")
        return score
    if text in task.labels:
        return task.labels.index(text)
    if text.isdecimal() and int(text) < len(task.labels):
        return int(text)
    raise DataError(
        f"{place}: {text!r} is no label of {task.title}, which has {', '.join(task.labels)}."
    )
