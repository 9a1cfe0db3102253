"""Rank tests of trained runs against draws in which nothing was learned."""

import math

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from analysis.maths import linear_map
from analysis.maths.conversion_controls import FLAT, PAIRS
from analysis.maths.conversion_similarity import CONTROL, GAUSSIAN, TRAINED
from analysis.stats.significance import holm

COMPARED = [(TRAINED, CONTROL), (TRAINED, GAUSSIAN), (FLAT, GAUSSIAN)]


def conversion_tests(values: pd.DataFrame) -> pd.DataFrame:
    """Trained runs against draws with nothing learned, per module, matrix, task and set of pairs.

    If training changes nothing, a run is one more draw of the null: the exact rank test of Mann,
    Whitney and Wilcoxon says how often n runs rank so high among the draws (p_above), or so low
    (p_below). Both are adjusted by Holm over all comparisons of the same two sources. `smallest_p`
    is what the test can reach at best with so few runs. low and high: Welch's 95 % interval of the
    difference of means. Undefined where a value is, or with one run (the interval).
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
    names += ["difference", "low", "high", "p_above", "p_below", "smallest_p"]
    tests = pd.DataFrame(rows, columns=names)
    for side in ("above", "below"):
        grouped = tests.groupby(["source", "against"])[f"p_{side}"]
        tests[f"holm_{side}"] = grouped.transform(lambda p: holm(p.to_numpy()))
    return tests


def _test(x: np.ndarray, null: np.ndarray) -> list[float]:
    difference = x.mean() - null.mean()
    smallest = 1 / math.comb(len(x) + len(null), len(x))
    if not np.isfinite([*x, *null]).all():
        return [len(x), x.mean(), null.mean(), difference, *[math.nan] * 4, smallest]
    low, high = math.nan, math.nan
    if len(x) > 1:
        both = CompareMeans(DescrStatsW(x), DescrStatsW(null))
        low, high = both.tconfint_diff(alpha=0.05, usevar="unequal")
    p = [stats.mannwhitneyu(x, null, alternative=side).pvalue for side in ("greater", "less")]
    return [len(x), x.mean(), null.mean(), difference, low, high, *p, smallest]


def linear_map_tests(values: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (module, form), group in values.groupby(["module", "form"], sort=False):
        x, null = (
            group.left_out[group.source == source]
            for source in (linear_map.TRAINED, linear_map.GAUSSIAN)
        )
        is_defined = x.notna().all() and null.notna().all()
        p = stats.mannwhitneyu(x, null, alternative="greater").pvalue if is_defined else np.nan
        smallest = 1 / math.comb(len(x) + len(null), len(x))
        rows.append([module, form, len(x), x.mean(skipna=False), null.mean(), p, smallest])
    columns = ["module", "form", "n", "mean", "null", "p_above", "smallest_p"]
    tests = pd.DataFrame(rows, columns=columns)
    return tests.assign(holm_above=holm(tests.p_above.to_numpy()))
