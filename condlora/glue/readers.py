"""The rows of one data file: csv, tsv, json, jsonl or parquet.

What a file cannot say clearly is refused: a row with another number of cells, a column that is named twice, a quotation
mark that swallows rows.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet

from condlora.errors import DataError, first_line
from condlora.glue.rows import Rows, check_columns, read_label
from condlora.glue.tasks import Task

CHECKED, STANDARD, NONE = QUOTING = ("checked", "standard", "none")


def read_rows(path: Path, task: Task, quoting: str = CHECKED) -> Rows:
    """The rows of one file, by its ending. quoting: of csv and tsv, see `condlora.glue.custom.from_files`.

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
    with path.open("rb"):  # an error of permission names the file, which that of a library may not
        pass
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
        quoting=csv.QUOTE_NONE if quoting == NONE else csv.QUOTE_MINIMAL,
    )
    line = 1
    try:
        header = next(reader, None)
        if header is None:  # a byte order mark and nothing else
            raise DataError(f"{path} is empty.")
        check_columns(header, task, f"{path}, line 1")
        if len(set(header)) != len(header):
            raise DataError(f"{path}, line 1 names a column twice: rename one.")
        line = reader.line_num + 1
        for cells in reader:
            spanned = lines[line - 1 : reader.line_num]
            if quoting == CHECKED and len(spanned) > 1:
                _check_spanned(spanned, separator, header, task, f"{path}, line {line}")
            if cells and len(cells) != len(header):
                raise DataError(
                    f"{path}, line {line} has {len(cells)} cells for {len(header)} columns: repair the line."
                )
            if cells:  # not an empty line
                yield f"{path}, line {line}", dict(zip(header, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line} cannot be read ({first_line(error)}): repair its quotation marks, or add "
            "+data.quoting=none if the file has no quoted cells."
        ) from None


def _check_spanned(
    spanned: list[str], separator: str, header: list[str], task: Task, place: str
) -> None:
    """Raise a DataError if two of the lines that one quoted cell spans could be rows by themselves.

    A text of several lines has one at most, its last, which ends with the other cells. All of them need not be: among the
    rows that a lone quotation mark swallows, one may be blank or odd.
    """
    found = sum(_is_row(line.split(separator), header, task) for line in spanned)
    if found > 1:
        raise DataError(
            f"{place}: a cell in quotation marks spans {len(spanned)} lines, and {found} of them are rows by themselves. If "
            "the file has no quoted cells, add +data.quoting=none; if it is one text, add +data.quoting=standard."
        )


def _is_row(cells: list[str], header: list[str], task: Task) -> bool:
    """Whether these cells of one line could be a row: as many as columns, and a label of the task among them."""
    if len(cells) != len(header):
        return False
    try:
        read_label(cells[header.index(task.label)].strip("\r\n"), task, "")
    except DataError:
        return False
    return True


def _json(path: Path, task: Task) -> Rows:
    rows = _parsed(utf8(path), path, 1)
    if not isinstance(rows, list):
        raise DataError(
            f"{path} is not a list of objects: write a list, or one object in each line of a .jsonl file."
        )
    for number, row in enumerate(rows, start=1):
        yield _object(row, task, f"{path}, row {number}")


def _jsonl(path: Path, task: Task) -> Rows:
    for number, line in enumerate(utf8(path).split("\n"), start=1):
        if line.strip():
            yield _object(_parsed(line, path, number), task, f"{path}, line {number}")


def _parsed(text: str, path: Path, line: int) -> object:
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        line += getattr(error, "lineno", 1) - 1
        raise DataError(
            f"{path}, line {line} is not valid JSON ({first_line(error)}): repair it."
        ) from None


class _Doubled(dict):
    """An object of JSON that has a key twice, which `dict` would lose; `key` is the first such one."""

    key: str


def _without_doubles(pairs: list[tuple[str, object]]) -> dict:
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    keys = [key for key, _ in pairs]
    doubled = _Doubled(row)
    doubled.key = next(key for key in keys if keys.count(key) > 1)
    return doubled


def _object(row: object, task: Task, place: str) -> tuple[str, dict]:
    if isinstance(row, _Doubled):
        raise DataError(f"{place} has the key {row.key!r} twice: rename or remove one.")
    if not isinstance(row, dict):
        raise DataError(f"{place} is not an object with columns: repair it.")
    check_columns(row, task, place)
    return place, row


def _parquet(path: Path, task: Task) -> Rows:
    try:
        names = pyarrow.parquet.read_schema(path).names
        if len(set(names)) != len(names):
            raise DataError(f"{path} names a column twice: rename one.")
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet ({first_line(error)}).") from None
    check_columns(names, task, str(path))
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{path}, row {number}", row
