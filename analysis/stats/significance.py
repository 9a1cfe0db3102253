"""Statistics over runs and over test examples, as pure functions on arrays of numbers.

What is undefined is NaN and decides nothing: too few values, no spread, a NaN among them. Randomness
comes from the generator given and from nothing else.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

# A spread this much smaller than the values is rounding, not variation.
ROUNDING = 1e-9
MOST_RUNS = 10_000  # no plan of more runs than this is worth printing


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
    """Student's interval for the mean of `values` (n,); undefined without spread.

    Exact for normal values at any n from 2, where a bootstrap of a few values is too narrow.
    """
    x = _flat(values)
    if not _varies(x):
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

    Every metric here is a function of sums over examples, and examples alike in all runs are
    interchangeable: so counts of distinct examples are drawn, not examples.
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
    equal: without spread nothing says how far the next seed would lie.
    """
    x = _flat(differences)
    if not _varies(x):
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
    """One-sided t test that the mean of `values` (n,) exceeds `limit`; NaN without spread."""
    x = _flat(values)
    if not _varies(x) or math.isnan(limit):
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
    """Holm's adjusted p values (n,); a test that is undefined stays NaN and counts for nothing.

    The k-th smallest of m is multiplied by m - k + 1 and raised to the one before it (Holm 1979).
    As statsmodels' multipletests, which collects garbage at every call: most of a second here.
    """
    p = _flat(p_values)
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p)[: (~np.isnan(p)).sum()]  # NaN sorts last
    scaled = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return adjusted


def runs_for_equivalence(sd: float, margin: float, *, alpha: float, power: float) -> int | None:
    """The number of pairs with which TOST shows equality in a share `power` of repeats.

    For differences with deviation `sd` and true mean 0: the chance that both one-sided tests
    reject is at least 2 p - 1, p being one's (noncentral t), and nearly so at useful power.
    None where sd is undefined or no number up to MOST_RUNS does.
    """
    return _smallest_n(sd, margin, alpha=alpha, power=(1 + power) / 2)


def runs_to_tell(sd: float, gap: float, *, alpha: float, power: float) -> int | None:
    """The number of values with which a one-sided t test tells a mean from a limit `gap` away.

    None where sd or gap is undefined or zero, or no number up to MOST_RUNS does.
    """
    return _smallest_n(sd, abs(gap), alpha=alpha, power=power)


def one_example_points(metric: str, examples: int) -> float:
    """What one test example is worth in points: 100 / n for accuracy, undefined for correlations."""
    return 100 / examples if metric == "accuracy" else math.nan


def _smallest_n(sd: float, gap: float, *, alpha: float, power: float) -> int | None:
    if not (sd > 0 and gap > 0):
        return None

    def is_enough(n: int) -> bool:
        reached = stats.nct.sf(stats.t.isf(alpha, n - 1), n - 1, gap * math.sqrt(n) / sd)
        return math.isnan(reached) or reached >= power  # far in the tail scipy gives NaN for 1

    counts = range(2, MOST_RUNS + 1)
    place = bisect.bisect_left(counts, True, key=is_enough)  # power grows with n
    return counts[place] if place < len(counts) else None


def _varies(x: np.ndarray) -> bool:
    """Whether there are two values or more, all defined, that differ by more than rounding."""
    return bool(x.size > 1 and np.ptp(x) > ROUNDING * max(1.0, np.abs(x).max()))


def _flat(values: Sequence[float] | np.ndarray) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"statistics here take a flat list of values, not shape {x.shape}")
    return x
