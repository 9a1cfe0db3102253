"""Statistics over runs and over test examples, as pure functions on arrays of numbers.

An undefined result is NaN and decides nothing: too few values, no variation, a NaN among them. Random numbers come
from the generator that is passed, and from nowhere else.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

# Variation this much smaller than the values is rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation and number of values; NaN where undefined."""

    mean: float
    sd: float
    n: int


class Interval(NamedTuple):
    """Two ends, NaN where undefined."""

    low: float
    high: float


UNDEFINED_INTERVAL = Interval(math.nan, math.nan)


def summarise(values: Sequence[float] | np.ndarray) -> Summary:
    """Mean, standard deviation with n - 1 in the denominator, and n of `values` (n,).

    The mean of no value and the deviation of fewer than two are NaN. A NaN among the values makes
    both NaN: a value that is undefined must not vanish from an average.
    """
    x = _flat(values)
    mean = float(x.mean()) if x.size else math.nan
    sd = float(x.std(ddof=1)) if x.size > 1 else math.nan
    return Summary(mean, sd, x.size)


def t_interval(values: Sequence[float] | np.ndarray, confidence: float) -> Interval:
    """Student's interval for the mean of `values` (n,); undefined without variation.

    Exact for normal values at any n from 2, where a bootstrap of a few values is too narrow.
    """
    x = _flat(values)
    if not varies(x):
        return UNDEFINED_INTERVAL
    return Interval(*map(float, DescrStatsW(x).tconfint_mean(alpha=1 - confidence)))


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    confidence: float,
    *,
    resamples: int,
    rng: np.random.Generator,
) -> Interval:
    """Percentile bootstrap interval for the mean of `values` (n,); undefined for fewer than two."""
    x = _flat(values)
    if x.size < 2 or np.isnan(x).any():
        return UNDEFINED_INTERVAL
    found = stats.bootstrap(
        (x,),
        np.mean,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=rng,
    )
    return Interval(*map(float, found.confidence_interval))


def resampled_scores(
    metric: str,
    references: np.ndarray,
    predictions: np.ndarray,
    *,
    resamples: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Scores of several runs on bootstrap samples of one test set, the same samples for all runs.

    references (n,); predictions (runs, n); metric: accuracy, matthews_correlation (two classes) or
    pearson. Returns float64 (resamples, runs) as fractions, NaN where a sample has no score.

    Every metric here is a function of sums over examples, and examples with the same
    reference and predictions are interchangeable: so counts of distinct examples are drawn, not examples.
    """
    examples = np.column_stack([references, *predictions]).astype(np.float64)
    distinct, counts = np.unique(examples, axis=0, return_counts=True)
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=resamples)
    weights = drawn / counts.sum()  # (resamples, distinct)
    y, x = distinct[:, :1], distinct[:, 1:]
    if metric == "accuracy":
        return weights @ (x == y)
    if metric == "matthews_correlation" and not set(np.unique(distinct)) <= {0.0, 1.0}:
        raise ValueError("Matthews correlation is resampled for the classes 0 and 1 alone.")
    if metric not in ("matthews_correlation", "pearson"):
        raise ValueError(f"cannot resample {metric}: it is not a sum over examples")
    # Of two classes, Matthews correlation is Pearson's. Centred first, so that sums of squares keep
    # their digits.
    y, x = (v - np.average(v, axis=0, weights=counts) for v in (y, x))
    covariance = weights @ (x * y) - (weights @ x) * (weights @ y)
    variances = (weights @ x**2 - (weights @ x) ** 2) * (weights @ y**2 - (weights @ y) ** 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(variances > ROUNDING**2, covariance / np.sqrt(variances), np.nan)


def percentiles(values: np.ndarray, confidence: float) -> Interval:
    """The interval that holds the middle `confidence` of resampled values (n,)."""
    if not len(values):
        return UNDEFINED_INTERVAL
    tail = (1 - confidence) / 2
    return Interval(*map(float, np.quantile(values, [tail, 1 - tail])))


@dataclass(frozen=True)
class PairedTest:
    """p values of three t tests on paired differences; NaN where undefined.

    difference: the mean is not zero (two-sided). equivalence: it lies within the margin either way
    (TOST: the larger of two one-sided p). outside: it lies beyond the margin on one side
    (two-sided: twice the smaller one-sided p).
    """

    difference: float
    equivalence: float
    outside: float


def paired_test(differences: Sequence[float] | np.ndarray, margin: float) -> PairedTest:
    """Difference and equivalence of two methods from their differences (n,), one a pair.

    TOST after Schuirmann 1987. Undefined for fewer than two pairs and for differences that are all
    equal: without variation the runs do not say how much another seed would differ.
    """
    x = _flat(differences)
    if not varies(x):
        return PairedTest(math.nan, math.nan, math.nan)
    found = DescrStatsW(x)
    below = found.ttest_mean(-margin, alternative="smaller")[1]
    above = found.ttest_mean(margin, alternative="larger")[1]
    return PairedTest(
        difference=float(found.ttest_mean(0)[1]),
        equivalence=float(found.ttost_mean(-margin, margin)[0]),
        outside=min(1.0, 2 * float(min(below, above))),
    )


def p_mean_above(values: Sequence[float] | np.ndarray, limit: float) -> float:
    """One-sided t test that the mean of `values` (n,) exceeds `limit`; NaN without variation."""
    x = _flat(values)
    if not varies(x) or math.isnan(limit):
        return math.nan
    return float(DescrStatsW(x).ttest_mean(limit, alternative="larger")[1])


def empirical_p(value: float, draws: Sequence[float] | np.ndarray) -> float:
    """Share of the null's draws (n,) that reach `value`, the value counted among them.

    (1 + number of draws >= value) / (1 + draws), which is valid at any number of draws
    (Phipson and Smyth 2010) and never zero. NaN where the value or a draw is, or without draws.
    """
    x = _flat(draws)
    if not x.size or math.isnan(value) or np.isnan(x).any():
        return math.nan
    return float((1 + (x >= value).sum()) / (1 + x.size))


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's adjusted p values (n,); an undefined test stays NaN and is not counted.

    The k-th smallest of m is multiplied by m - k + 1 and raised to the one before it (Holm 1979).
    As statsmodels' multipletests, which collects garbage at every call: most of a second here.
    """
    p = _flat(p_values)
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p)[: (~np.isnan(p)).sum()]  # NaN sorts last
    scaled = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return adjusted


def one_example_points(metric: str, examples: int) -> float:
    """The points that one correct answer adds: 100 / n for accuracy, undefined for correlations."""
    return 100 / examples if metric == "accuracy" else math.nan


def varies(x: np.ndarray) -> bool:
    """Whether `x` (n,) has two or more values, all defined, that differ by more than rounding."""
    x = np.asarray(x, dtype=np.float64)
    return bool(x.size > 1 and np.ptp(x) > ROUNDING * max(1.0, np.abs(x).max()))


def _flat(values: Sequence[float] | np.ndarray) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"statistics here take a flat list of values, not shape {x.shape}")
    return x
