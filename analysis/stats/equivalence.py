"""TODO"""

import functools

import numpy as np
import pandas as pd

from analysis.stats.rules import Thresholds, runs_to_settle_equality
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
from analysis.study.examples import Examples
from analysis.study.names import REFERENCE, TASKS, adapter_order, task_order
from analysis.study.scores import AVERAGE, POINTS, differences

COLUMNS = [
    *("adapter", "task", "n", "mean", "sd"),
    *(f"{name}_{end}" for name in ("t", "seeds", "examples") for end in ("low", "high")),
    *("p_difference", "p_equivalence", "p_outside"),
]


def compare(
    runs: pd.DataFrame, examples: dict[str, Examples], thresholds: Thresholds, *, seed: int
) -> pd.DataFrame:
    """One row per method and task (and the average) with the difference to LoRA's score in points.

    runs: as glue_scores.scores gives them; examples: as load_examples does; seed: of the bootstrap.
    Intervals: t_ over seeds (Student's), seeds_ and examples_ bootstrapped. p values that end in
    _holm are adjusted over the method's tasks; the average is a family of its own.
    """

    @functools.cache
    def resampled(adapter: str, task: str, seeds: tuple[int, ...]) -> np.ndarray:
        if task == AVERAGE:
            return np.mean([resampled(adapter, t, seeds) for t in TASKS], axis=0)
        rng = np.random.default_rng([seed, task_order(task)[0], 1])
        return _resampled_gap(examples[task], adapter, seeds, thresholds.resamples, rng)

    rows = []
    for (adapter, task), pairs in differences(runs).groupby(["adapter", "task"], sort=False):
        # A generator of its own: a task's interval is the same whatever else was run.
        rng = np.random.default_rng([seed, task_order(task)[0], 0])
        x, found = pairs.points.to_numpy(), summarise(pairs.points)
        test = paired_test(x, thresholds.margin_points)
        intervals = {
            "t": t_interval(x, thresholds.confidence),
            "seeds": bootstrap_interval(
                x, thresholds.confidence, resamples=thresholds.resamples, rng=rng
            ),
            "examples": percentiles(
                resampled(adapter, task, tuple(pairs.seed)), thresholds.confidence
            ),
        }
        ends = [end for interval in intervals.values() for end in interval]
        p = [test.difference, test.equivalence, test.outside]
        rows.append([adapter, task, found.n, found.mean, found.sd, *ends, *p])
    return _adjusted(pd.DataFrame(rows, columns=COLUMNS), thresholds)


def _resampled_gap(
    examples: Examples,
    adapter: str,
    seeds: tuple[int, ...],
    resamples: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """The mean difference over seeds, in points, on bootstrap samples of the test set (resamples,)."""
    runs = [(name, seed) for name in (adapter, REFERENCE) for seed in seeds]
    predictions = np.stack([examples.predictions[run] for run in runs])
    scores = resampled_scores(
        examples.metric, examples.references, predictions, resamples=resamples, rng=rng
    )
    ours, theirs = scores[:, : len(seeds)], scores[:, len(seeds) :]
    return POINTS * (ours - theirs).mean(axis=1)


def _adjusted(found: pd.DataFrame, thresholds: Thresholds) -> pd.DataFrame:
    """Adds Holm's adjustment over each method's tasks and the seeds that would settle each row.

    The average is a family of its own, and so are tasks that are not GLUE's.
    """
    family = [(row.adapter, row.task == AVERAGE, row.task in TASKS) for row in found.itertuples()]
    groups = found.groupby(pd.Series(family, index=found.index), sort=False)
    for name in ("p_difference", "p_equivalence", "p_outside"):
        found[f"{name}_holm"] = groups[name].transform(holm)
    sizes = groups.task.transform("size")
    found["seeds_needed"] = [
        runs_to_settle_equality(Summary(row.mean, row.sd, row.n), size, thresholds)
        for row, size in zip(found.itertuples(), sizes, strict=True)
    ]
    order = [(task_order(row.task), adapter_order(row.adapter)) for row in found.itertuples()]
    return found.iloc[sorted(range(len(order)), key=order.__getitem__)].reset_index(drop=True)
