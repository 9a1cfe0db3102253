"""Rank tests of trained runs against draws in which nothing was learned."""

import math

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from analysis.maths.conversion_controls import FLAT, PAIRS
from analysis.maths.conversion_similarity import CONTROL, GAUSSIAN, TRAINED
from analysis.stats.significance import holm

COMPARED = [(TRAINED, CONTROL), (TRAINED, GAUSSIAN), (FLAT, GAUSSIAN)]


def conversion_tests(values: pd.DataFrame) -> pd.DataFrame:
    """Trained runs against draws in which nothing was learned, per module, matrix, task and set of pairs of layers.

    Under the null hypothesis the runs of one task and the draws are exchangeable: a run's A and B are one more draw
    for the same W0. The rank test of Mann, Whitney and Wilcoxon gives the probability that n runs rank so high (p_above)
    or so low (p_below) among them; `is_exact` says whether it was computed from all rankings, which needs values
    without ties. holm_: adjusted over all comparisons of the same two sources. low, high: Welch's 95 % interval of the
    difference of means. A result is undefined if a value is, and the interval also with a single run.
    """
    rows = []
    keys = ["module", "matrix", "source"]
    by_source = dict(list(values.groupby(keys)))
    for (module, matrix, source, task), runs in values.groupby([*keys, "task"], sort=False):
        for against in (null for trained, null in COMPARED if trained == source):
            for pairs in PAIRS:
                x = runs[pairs].to_numpy()
                null = by_source[module, matrix, against][pairs].to_numpy()
                rows.append([module, matrix, task, pairs, source, against, *_test(x, null)])
    names = ["module", "matrix", "task", "pairs", "source", "against", "n", "mean", "null"]
    names += ["difference", "low", "high", "p_above", "p_below", "is_exact"]
    tests = pd.DataFrame(rows, columns=names)
    for side in ("above", "below"):
        grouped = tests.groupby(["source", "against"])[f"p_{side}"]
        tests[f"holm_{side}"] = grouped.transform(lambda p: holm(p.to_numpy()))
    return tests


def _test(x: np.ndarray, null: np.ndarray) -> list[float]:
    difference = x.mean() - null.mean()
    if not np.isfinite([*x, *null]).all():
        return [len(x), x.mean(), null.mean(), difference, *[math.nan] * 4, False]
    low, high = math.nan, math.nan
    if len(x) > 1:
        both = CompareMeans(DescrStatsW(x), DescrStatsW(null))
        low, high = both.tconfint_diff(alpha=0.05, usevar="unequal")
    is_exact = len(np.unique([*x, *null])) == len(x) + len(null)
    method = "exact" if is_exact else "asymptotic"
    p = [
        stats.mannwhitneyu(x, null, alternative=side, method=method).pvalue
        for side in ("greater", "less")
    ]
    return [len(x), x.mean(), null.mean(), difference, low, high, *p, is_exact]
