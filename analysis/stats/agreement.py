"""Whether two sets of runs agree: scores by the spread of their seeds, claims by their verdicts."""

import math

import numpy as np
import pandas as pd
from scipy import stats

from analysis.stats.significance import Interval

WITHIN, OUTSIDE, UNKNOWN = "within seed spread", "outside seed spread", "one seed"


def difference_of_means(x: np.ndarray, y: np.ndarray, confidence: float) -> Interval:
    """The t-interval of mean(x) − mean(y) for independent samples of equal variance; undefined where each has one value."""
    freedom = len(x) + len(y) - 2
    if freedom < 1:
        return Interval(math.nan, math.nan)
    squares = sum(float(np.sum((values - values.mean()) ** 2)) for values in (x, y))
    error = math.sqrt(squares / freedom * (1 / len(x) + 1 / len(y)))
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    centre = float(x.mean() - y.mean())
    return Interval(centre - half, centre + half)


def compare_scores(runs: pd.DataFrame, others: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """A row for each task and method that both have.

    runs, others: task, adapter, score_points, a row a run. A score is within seed spread where the interval of the
    difference of the two means includes zero.
    """
    rows = []
    cells = ["task", "adapter"]
    of_others = {key: group.score_points.to_numpy() for key, group in others.groupby(cells)}
    for key, group in runs.groupby(cells, sort=False):
        if key not in of_others:
            continue
        x, y = group.score_points.to_numpy(), of_others[key]
        low, high = difference_of_means(x, y, confidence)
        verdict = WITHIN if low <= 0 <= high else OUTSIDE
        if math.isnan(low):
            verdict = WITHIN if x[0] == y[0] else UNKNOWN
        rows.append([*key, x.mean(), len(x), y.mean(), len(y), x.mean() - y.mean(), low, high, verdict])  # fmt: skip
    columns = ["here", "n", "other", "other_n", "difference", "low", "high", "verdict"]
    return pd.DataFrame(rows, columns=[*cells, *columns])


def compare_verdicts(verdicts: dict[str, str], others: dict[str, str]) -> pd.DataFrame:
    """A row for each claim that both have: claim, here, other, same."""
    rows = [[key, own, others[key], own == others[key]] for key, own in verdicts.items() if key in others]  # fmt: skip
    return pd.DataFrame(rows, columns=["claim", "here", "other", "same"])
