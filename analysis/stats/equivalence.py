"""Score differences to LoRA, paired by task and seed, with intervals and tests.

Seeds and test examples are two sources of variation. Each has its own interval; the tests are over seeds.
"""

import functools

import numpy as np
import pandas as pd

from analysis.stats.rules import Thresholds
from analysis.stats.significance import (
    Summary,
    bootstrap_interval,
    holm,
    paired_test,
    percentiles,
    resampled_scores,
    summarise,
    t_interval,
)
from analysis.stats.task_means import task_mean
from analysis.study.examples import Examples
from analysis.study.names import REFERENCE, TASKS, adapter_order, task_order
from analysis.study.scores import AVERAGE, POINTS, by_task, differences

COLUMNS = [
    *("adapter", "task", "n", "mean", "sd"),
    *(f"{name}_{end}" for name in ("t", "seeds", "examples") for end in ("low", "high")),
    *("p_difference", "p_equivalence", "p_outside"),
]


def compare(
    runs: pd.DataFrame, examples: dict[str, Examples], thresholds: Thresholds, *, seed: int
) -> pd.DataFrame:
    """One row per method and task, and one for the mean over the eight tasks; differences to LoRA in points.

    runs: as of `scores.scores`; examples: as of `load_examples`; seed: of the bootstrap. Intervals: t_ over seeds
    (Student's; of the mean over tasks as in `task_means`), seeds_ and examples_ by bootstrap. p_difference_holm and
    p_outside_holm are adjusted over the method's tasks, as one rejection decides; p_equivalence is not, as a claim
    about all tasks needs every one of them (intersection-union test).
    """

    @functools.cache
    def resampled(adapter: str, task: str, seeds: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng([seed, task_order(task)[0], 1])
        return _resampled_differences(examples[task], adapter, seeds, thresholds.resamples, rng)

    rows, gaps = [], differences(runs)
    for (adapter, task), pairs in gaps.groupby(["adapter", "task"], sort=False):
        # Each task has a generator of its own, so that its interval does not depend on other tasks.
        rng = np.random.default_rng([seed, task_order(task)[0], 0])
        x, resamples = pairs.points.to_numpy(), thresholds.resamples
        intervals = [
            t_interval(x, thresholds.confidence),
            bootstrap_interval(x, thresholds.confidence, resamples=resamples, rng=rng),
            percentiles(resampled(adapter, task, tuple(pairs.seed)), thresholds.confidence),
        ]
        test = paired_test(x, thresholds.margin_points)
        rows.append(_row(adapter, task, summarise(x), intervals, test))
    for adapter in gaps.adapter.unique():
        tasks = by_task(gaps, adapter, "points")
        if tasks is None:
            continue
        rng = np.random.default_rng([seed, task_order(AVERAGE)[0], 0])
        own = gaps[gaps.adapter == adapter].groupby("task").seed.apply(tuple)
        mean = task_mean(tasks)
        intervals = [
            mean.interval(thresholds.confidence),
            _bootstrap_of_mean(tasks, thresholds, rng),
            percentiles(
                np.mean([resampled(adapter, task, own[task]) for task in TASKS], axis=0),
                thresholds.confidence,
            ),
        ]
        test = mean.test(thresholds.margin_points)
        rows.append(_row(adapter, AVERAGE, mean.summary, intervals, test))
    return _adjusted(pd.DataFrame(rows, columns=COLUMNS))


def _row(adapter, task, found: Summary, intervals, test) -> list:
    ends = [end for interval in intervals for end in interval]
    p = [test.difference, test.equivalence, test.outside]
    return [adapter, task, found.n, found.mean, found.sd, *ends, *p]


def _bootstrap_of_mean(
    tasks: list[np.ndarray], thresholds: Thresholds, rng: np.random.Generator
) -> tuple[float, float]:
    """Seeds resampled within each task; undefined where a task has fewer than two."""
    if min(map(len, tasks)) < 2:
        return percentiles(np.array([]), thresholds.confidence)
    means = [rng.choice(x, size=(thresholds.resamples, len(x))).mean(axis=1) for x in tasks]
    return percentiles(np.mean(means, axis=0), thresholds.confidence)


def _resampled_differences(
    examples: Examples,
    adapter: str,
    seeds: tuple[int, ...],
    resamples: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """The mean difference over seeds, in points, on bootstrap samples of the test set; (resamples,)."""
    runs = [(name, seed) for name in (adapter, REFERENCE) for seed in seeds]
    predictions = np.stack([examples.predictions[run] for run in runs])
    scores = resampled_scores(
        examples.metric, examples.references, predictions, resamples=resamples, rng=rng
    )
    ours, reference = scores[:, : len(seeds)], scores[:, len(seeds) :]
    return POINTS * (ours - reference).mean(axis=1)


def _adjusted(found: pd.DataFrame) -> pd.DataFrame:
    """Adds Holm's adjustment over each method's tasks and sorts the rows.

    The mean over tasks is a family of its own, and so are tasks that are not GLUE's.
    """
    family = [(row.adapter, row.task == AVERAGE, row.task in TASKS) for row in found.itertuples()]
    groups = found.groupby(pd.Series(family, index=found.index), sort=False)
    for name in ("p_difference", "p_outside"):
        found[f"{name}_holm"] = groups[name].transform(holm)
    order = [(task_order(row.task), adapter_order(row.adapter)) for row in found.itertuples()]
    return found.iloc[sorted(range(len(order)), key=order.__getitem__)].reset_index(drop=True)
