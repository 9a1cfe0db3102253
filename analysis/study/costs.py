"""Parameters, speed, time and memory of finished runs, from their records."""

import math

import pandas as pd

from analysis.study.pairing import against_reference
from condlora.grid.cells import Cell

OF_ITS_OWN = (
    "train_seconds",
    "evaluation_seconds",
    "total_seconds",
    "peak_memory_mib",
)


def costs(cells: list[Cell]) -> pd.DataFrame:
    """One row per finished run: parameters, speed, seconds and memory, as recorded.

    Seconds and memory of runs that were trained together are the fleet's and no run's: NaN. Their speed is that of some
    steps which each made alone.
    """
    rows = []
    for cell in cells:
        record = cell.record
        if record.get("fleet", 1) > 1:
            record = record | dict.fromkeys(OF_ITS_OWN, math.nan)
        rows.append(
            {
                "task": cell.task,
                "adapter": cell.adapter,
                "seed": cell.seed,
                "layers": record["backbone"]["layers"],
                "adapter_parameters": record["parameters"]["adapter"],
                "trainable_parameters": record["parameters"]["trainable"],
                "backbone_parameters": record["parameters"]["backbone"],
                "train_examples_per_second": record["train_examples_per_second"],
                "merged_speed_over_backbone": _number(record.get("merged_speed_over_backbone")),
                "train_seconds": record["train_seconds"],
                "evaluation_seconds": record["evaluation_seconds"],
                "total_seconds": record["total_seconds"],
                "peak_memory_mib": record["peak_memory_mib"],
                "device": record["environment"]["device"],
                "conditions": conditions(record["environment"]),
            }
        )
    return pd.DataFrame(rows)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def conditions(environment: dict) -> str:
    """What a speed depends on besides the method."""
    keys = ("device", "threads", "processes", "precision", "attention")
    return ", ".join(f"{key} {environment.get(key)}" for key in keys)


def ratios(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """`column` of each other method over LoRA's, for each task and seed that both finished."""
    return against_reference(runs, column, "div", "ratio")


def speed_ratios(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """As `ratios`, of the pairs alone whose two runs were timed under the same conditions."""
    return pd.concat([ratios(group, column) for _, group in runs.groupby("conditions")])


def overall_speed(runs: pd.DataFrame) -> dict[str, float]:
    """Training examples over training seconds of each method, all its runs together.

    Only tasks and seeds that every method finished count, so that each is timed on the same work.
    """
    examples = runs.train_examples_per_second * runs.train_seconds
    work = runs.assign(examples=examples)
    shared = work.groupby(["task", "seed"]).filter(
        lambda group: group.adapter.nunique() == runs.adapter.nunique()
    )
    totals = shared.groupby("adapter")[["examples", "train_seconds"]].sum(min_count=1)
    return (totals.examples / totals.train_seconds).to_dict()
