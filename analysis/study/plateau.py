"""Whether LoRA has stopped improving: runs that still improve cannot decide whether CondLoRA ends where LoRA ends."""

import functools
from collections.abc import Iterable

import numpy as np
import pandas as pd
import yaml

from analysis.study.names import REFERENCE
from analysis.study.run_files import curve
from condlora.grid.cells import Cell
from condlora.paths import CONFIGS

RULES = CONFIGS / "analysis" / "parity_rules.yaml"
POINTS = 100


@functools.cache
def plateau_rule() -> dict:
    """The rule as parity_rules.yaml states it: points_per_doubling, and the verdict where it is not met."""
    return yaml.safe_load(RULES.read_text(encoding="utf-8"))["plateau"]


def last_doubling(evaluations: pd.DataFrame, column: str) -> float:
    """The points gained in the last doubling of the steps: best validation score minus the best up to half.

    evaluations: a row per evaluation with `step` and `column` (a fraction). NaN without an evaluation in the first half.
    """
    # A correlation is undefined where all predictions are equal; such a model scores 0.
    steps = evaluations["step"].to_numpy()
    scores = evaluations[column].fillna(0).to_numpy(dtype=float)
    first = scores[steps <= steps.max() / 2] if len(steps) else scores
    return float(POINTS * (scores.max() - first.max())) if len(first) else np.nan


def reference_gains(cells: Iterable[Cell]) -> dict[str, float]:
    """task -> mean over LoRA's finished runs of `last_doubling`, from their validation curves."""
    gains: dict[str, list[float]] = {}
    for cell in cells:
        if cell.adapter == REFERENCE:
            gain = last_doubling(curve(cell), cell.record["headline"])
            gains.setdefault(cell.task, []).append(gain)
    return {task: float(np.mean(values)) for task, values in gains.items()}
