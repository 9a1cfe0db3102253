"""A user's own data as GLUE's: files, or a set that `datasets` loads; the columns are the task's.

Everything that can be wrong with a row is found here and said with its file and line, or its row counted from 1.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
from omegaconf import DictConfig

from condlora.errors import DataError, NetworkError, first_line
from condlora.glue.tasks import Task
from condlora.labels import label_name

Rows = Iterator[tuple[str, dict]]  # where a row stands, in words, and its cells by column
SPLITS = ("train", "validation", "test")
STANDARD = "standard"


def from_files(data: DictConfig, task: Task) -> datasets.DatasetDict:
    """The splits of data=files. `data.quoting` is "standard" (the default: cells may be quoted, as spreadsheets do) or
    "none" (a quotation mark is a character like any other).

    Raises:
        DataError: a file is missing, of an unknown kind or malformed, or a row does not fit the task.
    """
    quoting = data.get("quoting", STANDARD)
    if quoting not in (STANDARD, "none"):
        raise DataError(f"Invalid data.quoting={quoting!r}: use {STANDARD} or none.")
    return datasets.DatasetDict(
        {
            split: _checked(read_rows(Path(data[split]), task, quoting), task, str(data[split]))
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
        splits[split] = _checked(_rows_of(loaded[name], task, place), task, place)
    return datasets.DatasetDict(splits)


def _load(data: DictConfig) -> datasets.DatasetDict:
    if Path(data.dataset).is_dir():
        try:
            loaded = datasets.load_from_disk(str(data.dataset))
        except (OSError, ValueError, KeyError) as error:
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
        raise NetworkError(
            f"{data.dataset} (revision {data.revision[:8]}) is not cached and could not be downloaded from the hub "
            f"({type(error).__name__}): go online once, or use data=files."
        ) from error


def read_rows(path: Path, task: Task, quoting: str = STANDARD) -> Rows:
    """The rows of one file, by its ending. quoting: of csv and tsv, see `from_files`.

    Raises:
        DataError: it is missing, a folder, of an unknown kind, empty, not UTF-8 or malformed, or lacks a column.
    """
    readers = {".csv": _csv, ".tsv": _csv, ".json": _json, ".jsonl": _jsonl, ".parquet": _parquet}
    if path.is_dir():
        raise DataError(
            f"{path} is a folder: for a set in a folder use data=dataset data.dataset=..."
        )
    if not path.is_file():
        raise DataError(f"The data file {path} does not exist: check data.*.")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} is of an unknown kind: use {', '.join(readers)}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty.")
    return reader(path, task, quoting) if reader is _csv else reader(path, task)


def utf8(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        DataError: a line is not UTF-8.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line} is not UTF-8: convert the file.") from None


def _csv(path: Path, task: Task, quoting: str) -> Rows:
    csv.field_size_limit(
        sys.maxsize
    )  # a text may be longer than the 131,072 characters that csv allows by itself
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    lines = list(io.StringIO(utf8(path), newline=""))
    # Strict, or a quotation mark that is never closed would swallow the rest of the file.
    reader = csv.reader(
        lines,
        delimiter=separator,
        strict=True,
        quoting=csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL,
    )
    line = 1
    try:
        header = next(reader, None)
        if header is None:  # a byte order mark and nothing else
            raise DataError(f"{path} is empty.")
        _check_columns(header, task, f"{path}, line 1")
        if len(set(header)) != len(header):
            raise DataError(f"{path}, line 1 names a column twice: rename one.")
        line = reader.line_num + 1
        for cells in reader:
            spanned = lines[line - 1 : reader.line_num]
            if len(spanned) > 1 and all(_is_row(s.split(separator), header, task) for s in spanned):
                raise DataError(
                    f"{path}, line {line}: a cell in quotation marks spans {len(spanned)} lines that are rows by "
                    "themselves. If the file has no quoted cells, add +data.quoting=none; else double the quotation marks "
                    "inside cells."
                )
            if cells and len(cells) != len(header):
                raise DataError(
                    f"{path}, line {line} has {len(cells)} cells for {len(header)} columns: repair the line."
                )
            if cells:  # not an empty line
                yield f"{path}, line {line}", dict(zip(header, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line} cannot be read ({first_line(error)}): repair its quotation marks."
        ) from None


def _is_row(cells: list[str], header: list[str], task: Task) -> bool:
    """Whether these cells of one line could be a row: as many as columns, and a label of the task among them."""
    if len(cells) != len(header):
        return False
    try:
        _label(cells[header.index(task.label)].strip("\r\n"), task, "")
    except DataError:
        return False
    return True


def _json(path: Path, task: Task) -> Rows:
    rows = _parsed(utf8(path), path, 1)
    if not isinstance(rows, list):
        raise DataError(f"{path} is no list of objects: write one, or one object a line as jsonl.")
    for number, row in enumerate(rows, start=1):
        yield _object(row, task, f"{path}, row {number}")


def _jsonl(path: Path, task: Task) -> Rows:
    for number, line in enumerate(utf8(path).split("\n"), start=1):
        if line.strip():
            yield _object(_parsed(line, path, number), task, f"{path}, line {number}")


def _parsed(text: str, path: Path, line: int) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line += getattr(error, "lineno", 1) - 1
        raise DataError(
            f"{path}, line {line} is no JSON ({first_line(error)}): repair it."
        ) from None


def _object(row: object, task: Task, place: str) -> tuple[str, dict]:
    if not isinstance(row, dict):
        raise DataError(f"{place} is no object with columns: repair it.")
    _check_columns(row, task, place)
    return place, row


def _parquet(path: Path, task: Task) -> Rows:
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet ({first_line(error)}).") from None
    _check_columns(table.column_names, task, str(path))
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{path}, row {number}", row


def _rows_of(split: datasets.Dataset, task: Task, place: str) -> Rows:
    _check_columns(split.column_names, task, place)
    feature = split.features[task.label]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    for number, row in enumerate(split, start=1):
        label = row[task.label]
        if names is not None and label is not None and 0 <= label < len(names):
            row = row | {task.label: names[label]}
        yield f"{place}, row {number}", row


def _check_columns(columns, task: Task, place: str) -> None:
    for column in (*task.fields, task.label):
        if column not in columns:
            raise DataError(
                f"{place}: there is no column {column!r} but {_listed(columns)}: set task.fields and task.label."
            )


def _listed(columns) -> str:
    """Names of columns; one with characters that cannot be seen, such as a no-break space, is shown as Python writes it."""
    names = map(str, columns)
    return ", ".join(n if n == n.strip() and n.isprintable() else ascii(n) for n in names)


def _checked(rows: Rows, task: Task, place: str) -> datasets.Dataset:
    """Texts and labels of rows as the task wants them."""
    columns: dict[str, list] = {name: [] for name in (*task.fields, "label")}
    for where, row in rows:
        for field in task.fields:
            columns[field].append(_text(row[field], field, where))
        columns["label"].append(_label(row[task.label], task, where))
    if not columns["label"]:
        raise DataError(f"{place} has no rows.")
    return datasets.Dataset.from_dict(columns)


def _text(value: object, field: str, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: {field!r} is {value!r} and no text: repair or remove the row.")
    if re.search("[\ud800-\udfff]", value):
        raise DataError(
            f"{place}: {field!r} holds half a character (a lone surrogate): repair or remove the row."
        )
    if not value.strip():
        raise DataError(f"{place}: {field!r} is empty: repair or remove the row.")
    return value


def _label(value: object, task: Task, place: str) -> int | float:
    """The index of a label, or the number of a regression."""
    if task.labels is None:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(
                f"{place}: {task.label!r} is {value!r} and no number: repair or remove the row, or give task.labels."
            )
        return number
    if value is None:
        raise DataError(f"{place}: {task.label!r} is missing: give a label or remove the row.")
    names = [label_name(label) for label in task.labels]
    if label_name(value) not in names:
        raise DataError(
            f"{place}: {task.label!r} is {value!r}, none of task.labels, which are {', '.join(names)}."
        )
    return names.index(label_name(value))
