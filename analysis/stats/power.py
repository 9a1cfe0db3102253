"""The response of a statistic to a planted share rho: power, the smallest share detected, and the way back.

Pure functions on arrays. `response` holds draws of one statistic: a row for each planted rho, a column for each
draw; the first row is rho = 0, the null.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats


class Share(NamedTuple):
    """A share rho with its confidence interval; NaN where undefined."""

    value: float
    low: float
    high: float


def power(response: np.ndarray, runs: int, alpha: float) -> np.ndarray:
    """Power (R,) of the one-sided test that rejects the null where the mean of `runs` runs is large.

    response (R, D), D at least 2 draws. The mean of `runs` independent draws is taken as normal with the mean and
    the deviation of the draws. A statistic that does not vary has power 0 at its null value and 1 above it.
    """
    mean, sd = response.mean(axis=1), response.std(axis=1, ddof=1) / math.sqrt(runs)
    threshold = mean[0] + stats.norm.isf(alpha) * sd[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = stats.norm.sf((threshold - mean) / sd)
    return np.where(sd > 0, found, (mean > threshold).astype(float))


def smallest_detected(rho: np.ndarray, reached: np.ndarray, wanted: float) -> float:
    """The smallest rho from which on the power stays at `wanted` or above, linear between the planted ones.

    rho (R,) ascending, reached (R,) the power at each. NaN where even the largest rho does not reach it.
    """
    below = np.flatnonzero(reached < wanted)
    if len(below) == 0:
        return float(rho[0])
    last = below[-1]
    if last == len(rho) - 1:
        return math.nan
    step = (wanted - reached[last]) / (reached[last + 1] - reached[last])
    return float(rho[last] + step * (rho[last + 1] - rho[last]))


def planted_share(
    values: np.ndarray, rho: np.ndarray, response: np.ndarray, confidence: float
) -> Share:
    """The planted share at which the statistic has the mean of `values` (n,), with an interval over runs.

    Student's interval of the mean over runs, read off the mean response (R, D), which must rise with rho; values
    below the null's mean give 0. The interval is undefined with fewer than two runs.
    """
    mean, half = values.mean(), math.nan
    if len(values) > 1:
        half = stats.t.isf((1 - confidence) / 2, len(values) - 1) * stats.sem(values)
    ends = np.array([mean, mean - half, mean + half])
    return Share(*read_off(ends, rho, response.mean(axis=1)))


def read_off(values: np.ndarray, rho: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """The planted shares (n,) at which the mean response `curve` (R,) to rho (R,) has these values (n,).

    Linear between the planted shares, 0 and the largest one beyond the curve's ends, NaN for NaN.
    """
    curve = np.maximum.accumulate(curve)
    # Where the curve is flat, rho cannot be read off: np.interp needs it strictly rising.
    rising = np.concatenate([[True], np.diff(curve) > 0])
    found = np.interp(values, curve[rising], rho[rising])
    return np.where(np.isnan(values), math.nan, found)
