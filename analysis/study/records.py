"""The committed records of a profile: all that its tables of scores rest on, without weights.

    results/reference/<profile>/records/
        runs.parquet                a row for each run that finished, failed or was interrupted: task, adapter, seed, status,
                                    recipe_hash, record (its record.json) and, if finished, curve (its curve.csv), as text
        predictions/<task>.parquet  part and label of each test example, and a column of predictions for each finished run

A record holds its own checksum and that of its curve, and a page of a parquet file its own: all are compared when they
are read. The same runs give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from analysis.study.names import TASKS, adapter_order, label, task_order
from analysis.study.run_files import (
    RecordedCell,
    curve_text,
    prediction_column,
    predictions_file,
    predictions_on_test,
)
from condlora.errors import RunFolderError, UserError, first_line
from condlora.files import write_atomically
from condlora.grid.cells import Cell, state_by_record
from condlora.runs.record import check_record

Key = tuple[str, str, int]  # task, adapter, seed
RUNS = "runs.parquet"
STATES = ("done", "failed", "interrupted")
MOST_NAMED = 8
ADVICE = "run git checkout on it, or write the records again from the runs"


def records_folder(root: Path, profile: str) -> Path:
    return root / profile / "records"


# Write


def write_records(cells: Iterable[Cell], folder: Path) -> None:
    """Write the records of all `cells` that have one, in place of those in the folder.

    Raises:
        UserError: the runs of one task were tested on other examples.
    """
    kept = [cell for cell in cells if cell.state in STATES]
    kept.sort(key=lambda c: (task_order(c.task), adapter_order(c.adapter), c.seed))
    done = [cell for cell in kept if cell.state == "done"]

    def fill(fresh: Path) -> None:
        fresh.mkdir()
        _write_table([_row(cell) for cell in kept], fresh / RUNS)
        for task in dict.fromkeys(cell.task for cell in done):
            path = predictions_file(fresh, task)
            path.parent.mkdir(exist_ok=True)
            _write_predictions([cell for cell in done if cell.task == task], path)

    write_atomically(folder, fill)


def _row(cell: Cell) -> dict[str, Any]:
    return {
        "task": cell.task,
        "adapter": cell.adapter,
        "seed": cell.seed,
        "status": cell.state,
        "recipe_hash": cell.record["recipe_hash"],
        "record": json.dumps(cell.record, separators=(",", ":"), allow_nan=False),
        "curve": curve_text(cell) if cell.state == "done" else None,
    }


def _write_predictions(cells: list[Cell], path: Path) -> None:
    """One task's test predictions: a row an example, a column a run."""
    first = predictions_on_test(cells[0])
    columns = {"part": first["part"], "label": first["label"]}
    for cell in cells:
        table = predictions_on_test(cell)
        if not table["label"].equals(first["label"]):
            raise UserError(
                f"{cell.folder} was tested on other examples than {cells[0].folder}: do those runs again with the same data."
            )
        columns[prediction_column(cell)] = table["prediction"]
    _write_table(columns, path)


def _write_table(content: dict[str, Any] | list[dict[str, Any]], path: Path) -> None:
    """Columns by name, or rows, as compact parquet."""
    import pyarrow as pa  # here, as a wrong setting is reported without it
    import pyarrow.parquet as pq

    table = pa.table(content) if isinstance(content, dict) else pa.Table.from_pylist(content)
    floats = [field.name for field in table.schema if pa.types.is_float64(field.type)]
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=9,
        use_dictionary=[name for name in table.column_names if name not in floats],
        use_byte_stream_split=floats,
        write_page_checksum=True,
        store_schema=False,
    )


# Read


def read_records(folder: Path) -> dict[Key, tuple[dict[str, Any], str | None]]:
    """(task, adapter, seed) -> the run's record and its curve.csv, None of a run that is not finished; empty without a folder.

    Raises:
        RunFolderError: a record or a curve is not as it was written.
    """
    if not folder.is_dir():
        return {}
    import pyarrow as pa  # here, as a wrong setting is reported without it
    import pyarrow.parquet as pq

    path = folder / RUNS
    try:
        rows = pq.read_table(path, page_checksum_verification=True).to_pylist()
        records = [json.loads(row["record"]) for row in rows]
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise RunFolderError(
            f"{path} is missing or damaged ({first_line(error)}): {ADVICE}."
        ) from None
    found: dict[Key, tuple[dict[str, Any], str | None]] = {}
    for number, (row, record) in enumerate(zip(rows, records, strict=True), start=1):
        check_record(record, f"Row {number} of {path}", ADVICE)
        curve = row.get("curve")
        if record["status"] == "done" and _sha256(curve) != record["files"].get("curve.csv"):
            raise RunFolderError(
                f"Row {number} of {path} has another curve than its record: {ADVICE}."
            )
        found[record["task"], record["adapter"], record["seed"]] = record, curve
    return found


def _sha256(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def recorded_runs(folder: Path) -> list[RecordedCell]:
    """All runs of the records in a folder, whatever the recipe of their profile is today."""
    return [
        RecordedCell(
            record["profile"], *key, folder, record["status"], record["reason"], record, record["recipe_hash"], folder, curve
        )
        for key, (record, curve) in read_records(folder).items()
    ]  # fmt: skip


# Join with the runs


def with_records(
    cells: list[Cell], root: Path, *, fill: bool = False
) -> tuple[list[Cell], list[str]]:
    """The cells of a profile's grid, with those that have no run folder from the committed records, and what to say of it.

    Run folders count before records. Where a profile has any, its records are left out, so that a report of your own runs
    is of these alone; fill: they are not.

    Raises:
        RunFolderError: see `read_records`.
    """
    if not cells:
        return cells, []
    folder = records_folder(root, cells[0].profile)
    kept = read_records(folder)
    has_runs = any(cell.state != "missing" for cell in cells)
    joined = cells
    if fill or not has_runs:
        joined = [_recorded(cell, folder, kept) for cell in cells]
    notes = [_difference(cells, kept), _what_is_recorded(joined, folder)]
    return joined, [note for note in notes if note]


def _recorded(cell: Cell, folder: Path, kept: dict) -> Cell:
    """The cell as its record has it, if it has no run folder."""
    key = (cell.task, cell.adapter, cell.seed)
    if cell.state != "missing" or key not in kept or cell.recipe_hash is None:
        return cell
    record, curve = kept[key]
    names = (cell.profile, *key, cell.folder)
    state, reason = state_by_record(record, cell.recipe_hash)
    return RecordedCell(*names, state, reason, record, cell.recipe_hash, folder, curve)


def _difference(cells: list[Cell], kept: dict) -> str:
    """Which finished runs have another result than their committed record; "" where none has."""
    both = [c for c in cells if c.state == "done" and (c.task, c.adapter, c.seed) in kept]
    differ = [c for c in both if _result(c.record) != _result(kept[c.task, c.adapter, c.seed][0])]
    if not differ:
        return ""
    named = ", ".join(f"{_name(c)} seed {c.seed}" for c in differ[:MOST_NAMED])
    more = f" and {len(differ) - MOST_NAMED} more" if len(differ) > MOST_NAMED else ""
    return (
        f"Of {len(both)} runs that are also among the committed records, {len(differ)} differ from them in recipe or scores "
        f"({named}{more}): the run folders count."
    )


def _result(record: dict[str, Any]) -> tuple:
    return tuple(record.get(name) for name in ("recipe_hash", "validation", "test"))


def _what_is_recorded(cells: list[Cell], folder: Path) -> str:
    recorded = [cell for cell in cells if isinstance(cell, RecordedCell)]
    if not recorded:
        return ""
    return f"Read from the committed records in {folder}, not from run folders: {len(recorded)} of {len(cells)} runs."


def missing_adapters(cells: Iterable[Cell]) -> str:
    """Which adapters the analyses of matrices need that the records do not hold; "" where all runs have theirs."""
    lacking = [c for c in cells if isinstance(c, RecordedCell) and c.state == "done"]
    if not lacking:
        return ""
    methods = ", ".join(dict.fromkeys(label(c.adapter) for c in lacking))
    tasks = ", ".join(dict.fromkeys(TASKS.get(c.task, c.task) for c in lacking))
    seeds = sorted({c.seed for c in lacking})
    named = f"{methods}; {tasks}; seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    return (
        f"The analyses of matrices (Figure 1, Table 3 and all others of A, B and W₀) need the adapters of {len(lacking)} runs "
        f"({named}), which the committed records do not hold: "
        f"make reproduce-glue PROFILE={lacking[0].profile} trains them."
    )


def _name(cell: Cell) -> str:
    return f"{TASKS.get(cell.task, cell.task)} {label(cell.adapter)}"
