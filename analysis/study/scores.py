"""The scores of finished runs, from their records."""

import numpy as np
import pandas as pd

from analysis.study.names import TASKS
from analysis.study.pairing import against_reference
from condlora.grid.cells import Cell

AVERAGE = "average"
POINTS = 100  # the paper gives scores in points


def scores(cells: list[Cell]) -> pd.DataFrame:
    """One row per finished run: task, adapter, seed, headline score in points, and every metric.

    Metrics are fractions, as recorded.
    """
    rows = []
    for cell in cells:
        record = cell.record
        row = {
            "task": cell.task,
            "adapter": cell.adapter,
            "seed": cell.seed,
            "headline": record["headline"],
            "score_points": POINTS * record["test"][record["headline"]],
            "majority_points": _points(record["data"]["majority_score"]),
            "test_examples": record["data"]["counts"]["test"],
            "validation_score_points": POINTS * record["validation"][record["headline"]],
        }
        rows.append(row | {f"test_{name}": value for name, value in record["test"].items()})
    return pd.DataFrame(rows)


def differences(runs: pd.DataFrame) -> pd.DataFrame:
    """Score difference to LoRA of each other method, paired by task and seed, in points."""
    return against_reference(runs, "score_points", "sub", "points")


def over_seeds(frame: pd.DataFrame, adapter: str, task: str, column: str) -> np.ndarray:
    """`column` of one method on one task, (seeds,)."""
    return frame.loc[(frame.adapter == adapter) & (frame.task == task), column].to_numpy()


def own_tasks(runs: pd.DataFrame) -> list[str]:
    """Tasks that the paper does not have, by name; no average contains them."""
    return sorted(set(runs.task) - {*TASKS, AVERAGE})


def title(task: str) -> str:
    """The display name of a task."""
    return "Avg." if task == AVERAGE else TASKS.get(task, task)


def _points(fraction: float | None) -> float:
    return float("nan") if fraction is None else POINTS * fraction


def by_task(frame: pd.DataFrame, adapter: str, column: str) -> list[np.ndarray] | None:
    """`column` of one method on each of the eight tasks, (seeds,) each; None where a task has no value."""
    found = [over_seeds(frame, adapter, task, column) for task in TASKS]
    return found if all(map(len, found)) else None
