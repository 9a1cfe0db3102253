"""Means over tasks, with variances from each task: seeds of different tasks are independent runs.

Seed 0 of one task and seed 0 of another share nothing but the number, so a mean over tasks is not paired by seed. With
n_t runs, mean d_t and standard deviation s_t of task t, and v_t = s_t^2 / n_t:

    estimate: mean of d_t over the T tasks;  standard error: sqrt(sum of v_t) / T
    degrees of freedom (Satterthwaite 1946): (sum of v_t)^2 / sum of v_t^2 / (n_t - 1)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.stats.significance import (
    UNDEFINED_INTERVAL,
    Interval,
    PairedTest,
    Summary,
    summarise,
    varies,
)


@dataclass(frozen=True)
class TaskMean:
    """A mean over tasks; NaN where undefined.

    sd is that of a mean of one run from each task, sqrt(sum of s_t^2) / T; n the smallest number of runs of a task.
    """

    mean: float
    sd: float
    n: int
    standard_error: float
    degrees_of_freedom: float

    @property
    def summary(self) -> Summary:
        return Summary(self.mean, self.sd, self.n)

    def interval(self, confidence: float) -> Interval:
        """Student's interval; undefined where a task has fewer than two runs or no task varies."""
        if math.isnan(self.standard_error):
            return UNDEFINED_INTERVAL
        half = stats.t.ppf((1 + confidence) / 2, self.degrees_of_freedom) * self.standard_error
        return Interval(self.mean - half, self.mean + half)

    def test(self, margin: float) -> PairedTest:
        """As `significance.paired_test`, for this mean."""
        if math.isnan(self.standard_error):
            return PairedTest(math.nan, math.nan, math.nan)

        def above(limit: float) -> float:
            return float(
                stats.t.sf((self.mean - limit) / self.standard_error, self.degrees_of_freedom)
            )

        def below(limit: float) -> float:
            return 1 - above(limit)

        return PairedTest(
            difference=min(1.0, 2 * min(above(0), below(0))),
            equivalence=max(above(-margin), below(margin)),
            outside=min(1.0, 2 * min(above(margin), below(-margin))),
        )


def task_mean(tasks: Sequence[np.ndarray]) -> TaskMean:
    """The mean over tasks of runs (n_t,) of each task; mean and n are NaN and 0 without tasks."""
    found = [summarise(values) for values in tasks]
    if not found or min(x.n for x in found) == 0:
        return TaskMean(math.nan, math.nan, 0, math.nan, math.nan)
    mean = float(np.mean([x.mean for x in found]))
    variances = np.array([x.sd**2 for x in found])  # NaN for a task with one run
    n = np.array([x.n for x in found])
    sd = float(np.sqrt(variances.sum()) / len(found))
    if np.isnan(sd) or not any(map(varies, tasks)):
        return TaskMean(mean, sd, int(n.min()), math.nan, math.nan)
    v = variances / n
    freedom = float(v.sum() ** 2 / (v**2 / (n - 1)).sum())
    return TaskMean(mean, sd, int(n.min()), float(np.sqrt(v.sum()) / len(found)), freedom)
