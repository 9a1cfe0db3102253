"""One verdict from runs of one recipe made by several versions of the code, packages or machine.

A seed that several versions have is one training repeated: rounding alone differs. So it counts once, as the mean of its
runs, and what differs between its runs is a component of the variance of its own. With y_sv the score of seed s in
version v, k_s runs of seed s and N of all S seeds, the components are those of the one-way random-effects analysis of
variance (Searle, Casella and McCulloch 1992, section 3.6):

    versions: MSW = sum over s, v of (y_sv - mean_s)^2 / (N - S)
    seeds:    (MSB - MSW) / k0, at least 0;  MSB = sum of k_s (mean_s - mean)^2 / (S - 1),  k0 = (N - sum of k_s^2 / N) / (S - 1)
"""

import math

import numpy as np
import pandas as pd

from analysis.stats.rules import NOT_TESTED, Thresholds, verdict
from analysis.stats.significance import holm, paired_test, summarise, t_interval
from analysis.stats.task_means import task_mean
from analysis.study.names import TASKS, task_order
from analysis.study.plateau import plateau_rule
from analysis.study.scores import AVERAGE, by_task, differences


def seed_means(runs: pd.DataFrame) -> pd.DataFrame:
    """task, adapter, seed and score_points, the mean over the versions of a seed; runs: a row per run."""
    keys = ["task", "adapter", "seed"]
    return runs.groupby(keys, sort=False, as_index=False).score_points.mean()


def components(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per task and method: runs, seeds, seeds with several runs, and the sd of each component in points.

    sd_versions is NaN where no seed has two runs, sd_seeds where there is one seed.
    """
    rows = []
    for (task, adapter), own in runs.groupby(["task", "adapter"], sort=False):
        groups = [group.to_numpy() for _, group in own.groupby("seed").score_points]
        repeated = sum(len(group) > 1 for group in groups)
        rows.append([task, adapter, len(own), len(groups), repeated, *_deviations(groups)])
    columns = ["task", "adapter", "runs", "seeds", "repeated", "sd_versions", "sd_seeds"]
    return pd.DataFrame(rows, columns=columns)


def _deviations(groups: list[np.ndarray]) -> tuple[float, float]:
    """Standard deviations between the versions of a seed and between seeds."""
    k = np.array([len(group) for group in groups])
    n, seeds = k.sum(), len(groups)
    within = sum(float(np.sum((group - group.mean()) ** 2)) for group in groups)
    versions = within / (n - seeds) if n > seeds else math.nan
    if seeds < 2:
        return math.sqrt(versions), math.nan
    means = np.array([group.mean() for group in groups])
    between = float(k @ (means - np.concatenate(groups).mean()) ** 2) / (seeds - 1)
    noise = 0.0 if math.isnan(versions) else versions
    effective = (n - (k**2).sum() / n) / (seeds - 1)
    return math.sqrt(versions), math.sqrt(max(0.0, (between - noise) / effective))


def verdicts(
    runs: pd.DataFrame, adapter: str, gains: dict[str, float], thresholds: Thresholds
) -> pd.DataFrame:
    """A row per task, and one for the mean of the eight tasks: `adapter` − LoRA over seeds, and the verdict on equality.

    The rule is that of claims.yaml, equal_each_task: TOST at the margin, Holm-adjusted for "does not hold", and "not
    tested" where LoRA still improves (gains: task -> points, see `plateau.reference_gains`).
    """
    pairs = differences(seed_means(runs))
    pairs = pairs[pairs.adapter == adapter]
    rows = []
    for task in sorted(set(pairs.task), key=task_order):
        x = pairs.points[pairs.task == task].to_numpy()
        found, test = summarise(x), paired_test(x, thresholds.margin_points)
        rows.append([task, found, t_interval(x, thresholds.confidence), test])
    adjusted = holm([row[-1].outside for row in rows])
    tasks = by_task(pairs, adapter, "points")
    if tasks is not None:
        mean = task_mean(tasks)
        test = mean.test(thresholds.margin_points)
        rows.append([AVERAGE, mean.summary, mean.interval(thresholds.confidence), test])
        adjusted = [*adjusted, test.outside]
    found = []
    limit = plateau_rule()["points_per_doubling"]
    for (task, summary, ends, test), outside in zip(rows, adjusted, strict=True):
        decided = verdict(test.equivalence, outside, thresholds.alpha, summary.n)
        needed = TASKS if task == AVERAGE else [task]
        if not all(gains.get(name, math.nan) < limit for name in needed):
            decided = NOT_TESTED
        found.append([task, summary.n, summary.mean, *ends, decided])
    return pd.DataFrame(found, columns=["task", "seeds", "mean", "low", "high", "verdict"])
