"""Statistics over runs, as pure functions on arrays of numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation and number of values; NaN where undefined."""

    mean: float
    sd: float
    n: int


def summarise(values: Sequence[float] | np.ndarray) -> Summary:
    """Mean, standard deviation with n - 1 in the denominator, and n of `values` (n,).

    The mean of no value and the deviation of fewer than two are NaN. A NaN among the values makes
    both NaN: a value that is undefined must not vanish from an average.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"summarise takes a flat list of values, not an array of shape {x.shape}")
    mean = float(x.mean()) if x.size else math.nan
    sd = float(x.std(ddof=1)) if x.size > 1 else math.nan
    return Summary(mean, sd, x.size)


def exceeds(value: float, baseline: Summary, deviations: float = 2.0) -> bool | None:
    """Whether `value` lies more than `deviations` standard deviations above the baseline's mean.

    None where the value, the mean or the deviation is undefined.
    """
    limit = baseline.mean + deviations * baseline.sd
    return None if math.isnan(value) or math.isnan(limit) else value > limit
