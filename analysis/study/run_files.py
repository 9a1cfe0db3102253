"""The curve and the test predictions of a finished run, from its folder or from the committed records."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from condlora.errors import RunFolderError
from condlora.grid.cells import Cell

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RecordedCell(Cell):
    """A run without a folder, known from the committed records alone; it has no adapter.

    records: the folder that `analysis.study.records` reads; curve: the content of curve.csv, None if it is not finished.
    """

    records: Path = Path()
    curve: str | None = None


def prediction_column(cell: Cell) -> str:
    """The name of a run's column in the table of its task's predictions."""
    return f"{cell.adapter}/seed-{cell.seed}"


def predictions_file(records: Path, task: str) -> Path:
    """Where the test predictions of a task's runs are, in a folder of records."""
    return records / "predictions" / f"{task}.parquet"


def curve_text(cell: Cell) -> str | None:
    """curve.csv as it was written; None where a run has none."""
    if isinstance(cell, RecordedCell):
        return cell.curve
    path = cell.folder / "curve.csv"
    return path.read_bytes().decode() if path.is_file() else None


def curve(cell: Cell) -> pd.DataFrame | None:
    """A row per evaluation: step, epoch, train_loss and the scores on validation; None where a run has none."""
    import pandas as pd  # here, as a wrong setting is reported without it

    text = curve_text(cell)
    return None if text is None else pd.read_csv(io.StringIO(text))


def predictions_on_test(cell: Cell) -> pd.DataFrame:
    """A row per test example: part (a name), label and prediction, in the split's order.

    Raises:
        RunFolderError: the committed records are damaged.
    """
    import pandas as pd  # here, as a wrong setting is reported without it

    names = ["part", "label", "prediction"]
    if not isinstance(cell, RecordedCell):
        return pd.read_parquet(cell.folder / "predictions_test.parquet", columns=names)
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = predictions_file(cell.records, cell.task)
    try:
        columns = [*names[:2], prediction_column(cell)]
        table = pq.read_table(path, columns=columns, page_checksum_verification=True)
        return table.rename_columns(names).to_pandas()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise RunFolderError(
            f"{path} is damaged or lacks the predictions of {prediction_column(cell)}: run git checkout on it."
        ) from error
