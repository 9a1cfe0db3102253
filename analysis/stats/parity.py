"""Whether CondLoRA ends where LoRA ends: the endpoints of configs/analysis/parity_rules.yaml, from the runs' scores.

All scores and differences are in points. A difference is paired by seed within a task; a mean over tasks has variances from
each task (`analysis.stats.task_means`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.stats.task_means import TaskMean, task_mean

HOLDS, FAILS, INCONCLUSIVE, NOT_RUN = "holds", "fails", "inconclusive", "not run"


@dataclass(frozen=True)
class Contrast:
    """One method minus another: by_task has the differences (seeds,) of each task, mean is None where a task has none."""

    by_task: dict[str, np.ndarray]
    mean: TaskMean | None


@dataclass(frozen=True)
class Primary:
    """The primary endpoint.

    steps: the last budget at which both methods have all their runs. gains: LoRA's points in its last doubling of the
    steps, by task; NaN where there is no smaller budget.
    """

    verdict: str
    steps: int | None
    contrast: Contrast | None
    gains: dict[str, float]


def contrast(first: pd.DataFrame, second: pd.DataFrame, tasks: list[str]) -> Contrast:
    """`first` minus `second`, each with task, seed and points; pairs are the seeds that both have."""
    pairs = _paired(first, second)
    by_task = {
        task: pairs.loc[pairs.task == task, "difference"].to_numpy()
        for task in tasks
        if (pairs.task == task).any()
    }
    complete = set(by_task) == set(tasks)
    return Contrast(by_task, task_mean([by_task[task] for task in tasks]) if complete else None)


def _paired(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    pairs = first.merge(second, on=["task", "seed"], suffixes=("", "_second")).sort_values("seed")
    return pairs.assign(difference=pairs.points - pairs.points_second)


def of_method(runs: pd.DataFrame, adapter: str, part: str) -> pd.DataFrame:
    """The runs of one method in one part."""
    return runs[(runs.adapter == adapter) & (runs.part == part)]


def of_task(runs: pd.DataFrame, adapter: str, part: str, task: str) -> pd.Series:
    """The points of one method's runs on one task in one part."""
    own = of_method(runs, adapter, part)
    return own.loc[own.task == task, "points"]


def curve_parts(runs: pd.DataFrame) -> list[str]:
    """The parts of the curve that have runs, by their number of steps."""
    return sorted({part for part in runs.part if part.isdigit()}, key=int)


def gap(runs: pd.DataFrame, rules: dict, part: str, tasks: list[str] | None = None) -> Contrast:
    """The primary difference, CondLoRA minus LoRA, in one part; on the primary endpoint's tasks or on others."""
    method, reference = rules["primary"]["difference"].values()
    two = (of_method(runs, name, part) for name in (method, reference))
    return contrast(*two, tasks or rules["primary"]["tasks"])


def gap_curve(runs: pd.DataFrame, rules: dict) -> dict[int, Contrast]:
    """steps -> the primary difference at each budget that has pairs."""
    found = {int(part): gap(runs, rules, part) for part in curve_parts(runs)}
    return {steps: one for steps, one in found.items() if one.by_task}


def doubling_gains(runs: pd.DataFrame, rules: dict, last: int) -> dict[str, float]:
    """By task, the points that LoRA's mean gains for each doubling of the steps, between `last` and the budget before it."""
    reference = rules["primary"]["difference"]["reference"]
    steps = [int(part) for part in curve_parts(runs) if int(part) <= last]
    found = dict.fromkeys(rules["primary"]["tasks"], math.nan)
    if len(steps) < 2 or steps[-1] != last:
        return found
    before, doublings = steps[-2], math.log2(last / steps[-2])
    for task in found:
        means = [of_task(runs, reference, str(n), task).mean() for n in (before, last)]
        found[task] = float((means[1] - means[0]) / doublings)
    return found


def is_complete(runs: pd.DataFrame, rules: dict, part: str) -> bool:
    """Whether both methods of the primary endpoint have each task and seed that the rules name for a budget."""
    planned = {
        (task, seed) for task in rules["primary"]["tasks"] for seed in rules["seeds"][int(part)]
    }
    return all(
        planned <= set(zip(own.task, own.seed, strict=True))
        for own in (of_method(runs, name, part) for name in rules["primary"]["difference"].values())
    )


def primary(runs: pd.DataFrame, rules: dict) -> Primary:
    """The primary endpoint at the last complete budget; not run while there is none."""
    complete = [part for part in curve_parts(runs) if is_complete(runs, rules, part)]
    if not complete:
        return Primary(NOT_RUN, None, None, {})
    steps = int(complete[-1])
    found, gains = gap_curve(runs, rules)[steps], doubling_gains(runs, rules, steps)
    limit = rules["plateau"]["points_per_doubling"]
    if not all(gain < limit for gain in gains.values()):  # NaN is no plateau
        return Primary(rules["plateau"]["otherwise"], steps, found, gains)
    return Primary(verdict(found.mean, rules["primary"]), steps, found, gains)


def verdict(mean: TaskMean, rule: dict) -> str:
    """TOST at the rule's margin and alpha, by the interval of confidence 1 - 2 alpha."""
    low, high = mean.interval(1 - 2 * rule["alpha"])
    margin = rule["margin_points"]
    if math.isnan(low):
        return INCONCLUSIVE
    if -margin < low and high < margin:
        return HOLDS
    return FAILS if low > margin or high < -margin else INCONCLUSIVE


def slope(runs: pd.DataFrame, rules: dict) -> Contrast:
    """Points of difference for each doubling of the steps: the least-squares slope of each task and seed.

    Over the budgets that all seeds have by the rules; a seed that lacks one of those that have runs is left out.
    """
    method, reference = rules["primary"]["difference"].values()
    rows = [
        _paired(of_method(runs, method, part), of_method(runs, reference, part))
        for part in curve_parts(runs)
        if len(rules["seeds"][int(part)]) == _most_seeds(rules)
    ]
    rows = [pairs for pairs in rows if len(pairs)]
    if len(rows) < 2:
        return Contrast({}, None)
    wide = pd.concat(rows).pivot(index=["task", "seed"], columns="steps", values="difference")
    wide = wide.dropna()
    x = np.log2(wide.columns.to_numpy(dtype=float))
    slopes = wide.to_numpy() @ (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    tasks = wide.index.get_level_values("task")
    by_task = {t: slopes[tasks == t] for t in rules["primary"]["tasks"] if (tasks == t).any()}
    complete = set(by_task) == set(rules["primary"]["tasks"])
    return Contrast(by_task, task_mean(list(by_task.values())) if complete else None)


def _most_seeds(rules: dict) -> int:
    return max(len(rules["seeds"][n]) for n in rules["seeds"] if isinstance(n, int))


def dial(runs: pd.DataFrame, rules: dict) -> pd.DataFrame:
    """The runs of the dial: those of its own part with k layers to a pair, and those of all layers at its steps.

    Columns: method (`condlora` or the shared pair), layers_per_map, task, seed, points.
    """
    rule, own = rules["secondary"]["dial"], runs[runs.part == "dial"]
    whole = runs[(runs.part == "4800") & runs.seed.isin(rules["seeds"]["dial"])]
    most, rows = max(rule["layers_per_map"]), []
    for method in dict.fromkeys(rule["conditioning"]):
        for k in rule["layers_per_map"]:
            found = (
                whole[whole.adapter == method]
                if k == most
                else own[own.adapter == f"{method}_k{k}"]
            )
            rows.append(found.assign(method=method, layers_per_map=k))
    names = ["method", "layers_per_map", "task", "seed", "points"]
    return pd.concat(rows)[names].reset_index(drop=True)


def dial_contrasts(turned: pd.DataFrame, rules: dict) -> dict[tuple[str, int], Contrast]:
    """("sharing", k): CondLoRA at k less CondLoRA with one pair; ("conditioning", k): less the shared pair at the same k."""
    rule, tasks = rules["secondary"]["dial"], rules["primary"]["tasks"]
    ours, other = rule["conditioning"]
    most, found = max(rule["layers_per_map"]), {}

    def runs_of(method: str, k: int) -> pd.DataFrame:
        return turned[(turned.method == method) & (turned.layers_per_map == k)]

    for k in rule["layers_per_map"]:
        if k != most:
            found["sharing", k] = contrast(runs_of(ours, k), runs_of(ours, most), tasks)
        found["conditioning", k] = contrast(runs_of(ours, k), runs_of(other, k), tasks)
    return {key: value for key, value in found.items() if value.by_task}


def others(runs: pd.DataFrame, rules: dict) -> dict[str, Contrast]:
    """Each other method less CondLoRA at 4,800 steps."""
    ours = of_method(runs, rules["primary"]["difference"]["method"], "4800")
    found = {
        name: contrast(of_method(runs, name, "4800"), ours, rules["primary"]["tasks"])
        for name in rules["secondary"]["others"]
    }
    return {name: value for name, value in found.items() if value.by_task}
