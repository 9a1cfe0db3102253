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

    The row of the `average` task is a seed's mean over the eight tasks; it exists only where that
    seed finished all eight. Metrics are fractions, as recorded.
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
    runs = pd.DataFrame(rows)
    of_paper = runs[runs.task.isin(list(TASKS))]
    averages = [
        {"task": AVERAGE, "adapter": adapter, "seed": seed, "score_points": group.mean()}
        for (adapter, seed), group in of_paper.groupby(["adapter", "seed"]).score_points
        if set(of_paper.task[group.index]) == set(TASKS)
    ]
    return pd.concat([runs, pd.DataFrame(averages)], ignore_index=True) if averages else runs


def differences(runs: pd.DataFrame) -> pd.DataFrame:
    """Score of each other method less LoRA's, in points, for each task and seed both finished."""
    return against_reference(runs, "score_points", "sub", "points")


def over_seeds(frame: pd.DataFrame, adapter: str, task: str, column: str) -> np.ndarray:
    """`column` of one method on one task, (seeds,)."""
    return frame.loc[(frame.adapter == adapter) & (frame.task == task), column].to_numpy()


def own_tasks(runs: pd.DataFrame) -> list[str]:
    """Tasks that are not the paper's: a user's own, shown beside GLUE's and averaged with none."""
    return sorted(set(runs.task) - {*TASKS, AVERAGE})


def title(task: str) -> str:
    """A task as tables name it."""
    return "Avg." if task == AVERAGE else TASKS.get(task, task)


def _points(fraction: float | None) -> float:
    return float("nan") if fraction is None else POINTS * fraction
