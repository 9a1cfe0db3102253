"""Claims of the LoRA paper and of papers on its variants, tested on our runs: results/paper/ledger.yaml.

A claim about scores is about the mean over the tasks that both methods ran, with variances from each task, and is not
tested while LoRA still improves on one of them, by the rule of the parity experiment. A claim about matrices is about runs: each
run's value is a mean over layers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.maths.amplification import Amplification
from analysis.maths.lora_subspace import RANKS, TASKS, LoraSubspace
from analysis.stats.rules import (
    NOT_TESTED,
    Part,
    Thresholds,
    above_limit,
    combine,
    not_tested,
    verdict,
)
from analysis.stats.task_means import TaskMean, task_mean
from analysis.study.names import REFERENCE
from analysis.study.paper import published
from analysis.study.plateau import plateau_rule

NO_RUNS = "no runs here that can test it"
NOT_KNOWN = "whether LoRA still improves is not known without its runs"


@dataclass(frozen=True)
class Evidence:
    """What the claims rest on; None where there is nothing.

    scores: as of `scores.scores`; gains: as of `plateau.reference_gains`; ranks: a row per run as of `RankStudy.runs`;
    directions: as of `magnitude_and_direction`.
    """

    scores: pd.DataFrame
    gains: dict[str, float]
    ranks: pd.DataFrame | None = None
    subspaces: LoraSubspace | None = None
    amplification: Amplification | None = None
    directions: pd.DataFrame | None = None


@dataclass(frozen=True)
class Entry:
    """A claim of the ledger with its verdict; estimate, interval, limit and n are those of the part that decides."""

    key: str
    source: str
    statement: str
    test: str
    verdict: str
    part: Part | None
    unit: str
    reason: str = ""


def entries(evidence: Evidence, thresholds: Thresholds) -> list[Entry]:
    """All claims of the file, in its order."""
    ledger = published("ledger")
    found = []
    for key, claim in ledger["claims"].items():
        parts = _parts(claim, evidence, thresholds)
        decided, part = combine([p for p in parts if p.n])
        if part is None:
            decided, reason = NOT_TESTED, NO_RUNS
        else:
            reason = part.reason if decided == NOT_TESTED else ""
        test = ledger["tests"][claim["test"]].format(**vars(thresholds))
        unit = "runs" if claim["test"] == "above" else "points"
        found.append(Entry(key, claim["source"], claim["statement"], test, decided, part, unit, reason))  # fmt: skip
    return found


def _parts(claim: dict[str, Any], evidence: Evidence, thresholds: Thresholds) -> list[Part]:
    if claim.get("measure") == "rank_one":
        return _of_scores(_rank_one(evidence.ranks), claim["test"], evidence.gains, thresholds)
    if "compare" in claim:
        tasks = _differences(evidence.scores, *claim["compare"])
        return _of_scores(tasks, claim["test"], evidence.gains, thresholds)
    return above_limit(MEASURES[claim["measure"]](evidence), claim["limit"], thresholds)


# Scores


def _differences(scores: pd.DataFrame, method: str, reference: str) -> dict[str, np.ndarray]:
    """task -> differences in points (seeds,), paired by seed, of the tasks that both ran."""
    wide = scores.pivot(index=["task", "seed"], columns="adapter", values="score_points")
    if not {method, reference} <= set(wide):
        return {}
    gaps = (wide[method] - wide[reference]).dropna()
    return {task: gap.to_numpy() for task, gap in gaps.groupby("task", sort=False)}


def _rank_one(ranks: pd.DataFrame | None) -> dict[str, np.ndarray]:
    """LoRA at rank 1 − LoRA at the highest rank of the runs, in points; task -> (seeds,)."""
    if ranks is None or not len(ranks):
        return {}
    own = ranks[ranks.method == REFERENCE]
    wide = own.pivot_table(index=["task", "seed"], columns="r", values="score_points")
    if 1 not in wide or wide.columns.max() == 1:
        return {}
    gaps = (wide[1] - wide[wide.columns.max()]).dropna()
    return {task: gap.to_numpy() for task, gap in gaps.groupby("task", sort=False)}


def _of_scores(
    tasks: dict[str, np.ndarray], test: str, gains: dict[str, float], thresholds: Thresholds
) -> list[Part]:
    """The one part of a claim about scores; none without pairs of runs."""
    if not tasks:
        return []
    mean = task_mean(list(tasks.values()))
    margin = thresholds.margin_points
    if test == "equal":
        tested, limit = mean.test(margin), margin
        p_holds, p_fails = tested.equivalence, tested.outside
    else:
        limit = 0.0 if test == "better" else -margin
        p_holds = _p_above(mean, limit)
        p_fails = 1 - p_holds
    decided = verdict(p_holds, p_fails, thresholds.alpha, mean.n)
    ends = mean.interval(thresholds.confidence)
    part = Part("mean of tasks", decided, mean.mean, ends, mean.n, 0.0, limit, p_holds, p_fails)
    rule = plateau_rule()
    if not tasks.keys() <= gains.keys():
        return [not_tested(part, NOT_KNOWN)]
    if all(gains[task] < rule["points_per_doubling"] for task in tasks):
        return [part]
    return [not_tested(part, rule["otherwise"].removeprefix("not tested: "))]


def _p_above(mean: TaskMean, limit: float) -> float:
    """One-sided p value that a mean over tasks is above a limit; NaN where undefined."""
    shifted = replace(mean, mean=mean.mean - limit).test(0.0)
    half = shifted.difference / 2
    return half if mean.mean > limit else 1 - half


# Matrices: each gives part -> values (runs,)

Samples = Mapping[str, np.ndarray]


def _top_direction(evidence: Evidence) -> Samples:
    """φ(1, 1) of A between LoRA's ranks 8 and 64."""
    found = evidence.subspaces.between(RANKS) if evidence.subspaces else []
    return {
        c.module: c.at(1, 1).mean(axis=1)
        for c in found
        if c.method == REFERENCE and c.counts == (8, 64)
    }


def _amplification(compute: Callable[[pd.DataFrame], pd.Series]) -> Callable[[Evidence], Samples]:
    def values(evidence: Evidence) -> Samples:
        if evidence.amplification is None:
            return {}
        v = evidence.amplification.values
        own = v[(v.method == REFERENCE) & (v.r == evidence.amplification.shown_r)]
        of_runs = own.assign(value=compute(own)).groupby(["module", "task", "seed"]).value.mean()
        return {module: x.to_numpy() for module, x in of_runs.groupby("module")}

    return values


def _correlation(method: str, sign: int) -> Callable[[Evidence], Samples]:
    """The correlation over layers of the changes of magnitude and direction, query modules as in the source."""

    def values(evidence: Evidence) -> Samples:
        d = evidence.directions
        if d is None:
            return {}
        x = d.correlation[(d.method == method) & (d.module == "query")].dropna().to_numpy()
        return {"query": sign * x} if len(x) else {}

    return values


def _a_minus_b_across_tasks(evidence: Evidence) -> Samples:
    """φ of all directions of A − that of B between two tasks of one seed, a value for each seed: mean over pairs of tasks.

    The left space of ΔW is that of B.
    """
    found = evidence.subspaces.between(TASKS) if evidence.subspaces else []
    own = {(c.module, c.matrix): c for c in found if c.method == REFERENCE}
    samples = {}
    for module in dict.fromkeys(module for module, _ in own):
        A, B = own[module, "A"], own[module, "delta_W"]
        gap = (A.at(*A.counts) - B.at(*B.counts)).mean(axis=1)
        seeds = np.array([seed for _, seed, _ in A.pairs])
        samples[module] = np.array([gap[seeds == seed].mean() for seed in np.unique(seeds)])
    return samples


MEASURES: dict[str, Callable[[Evidence], Samples]] = {
    "top_direction": _top_direction,
    "within_delta_minus_random": _amplification(lambda v: v.within_delta_W - v.within_random),
    "within_leading_minus_delta": _amplification(lambda v: v.within_W - v.within_delta_W),
    "amplification": _amplification(lambda v: v.amplification),
    "correlation_lora": _correlation(REFERENCE, 1),
    "minus_correlation_full": _correlation("full", -1),
    "a_minus_b_across_tasks": _a_minus_b_across_tasks,
}
