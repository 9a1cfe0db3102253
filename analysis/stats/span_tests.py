"""Tests of the similarity of A's and of B's spans between layers."""

import math

import numpy as np
import pandas as pd
from scipy import stats

from analysis.maths.conversion_similarity import GAUSSIAN, TRAINED
from analysis.maths.span_similarity import SpanSimilarity
from analysis.stats.significance import holm

PERMUTATIONS = 9999


def span_tests(result: SpanSimilarity, seed: int) -> pd.DataFrame:
    """A row per module, matrix and task, with two tests of its runs.

    p_above: the runs' mean phi over pairs of layers against draws of independent, uniformly random spans. Under that null
    hypothesis runs and draws are exchangeable, so the rank test is exact (of one run: its rank among the draws).
    depth: Spearman's correlation of phi with the closeness of the two layers, mean map of the task's runs; p_depth: among
    permutations of the layers, which are exchangeable where depth plays no part (a Mantel test).
    holm_: adjusted over all rows.
    """
    rng, rows, v = np.random.default_rng(seed), [], result.values
    for (module, matrix, task), maps in result.maps.items():
        own = v[(v.module == module) & (v.matrix == matrix)]
        x = own.off_diagonal[(own.source == TRAINED) & (own.task == task)].to_numpy()
        null = own.off_diagonal[own.source == GAUSSIAN].to_numpy()
        above = math.nan
        if np.isfinite(x).all():
            above = stats.mannwhitneyu(x, null, alternative="greater", method="exact").pvalue
        depth, p_depth = closeness(maps.mean(axis=0), rng)
        chance = result.chance[module, matrix]
        rows.append([module, matrix, task, len(x), x.mean(), chance, x.mean() / chance])
        rows[-1] += [np.quantile(null, 0.95), above, depth, p_depth]
    names = ["module", "matrix", "task", "n", "mean", "chance", "ratio", "null_95"]
    tests = pd.DataFrame(rows, columns=[*names, "p_above", "depth", "p_depth"])
    for name in ("above", "depth"):
        tests[f"holm_{name}"] = holm(tests[f"p_{name}"].to_numpy())
    return tests


def closeness(phi: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Spearman's correlation of phi (L, L) with -|l - m| over pairs, and its one-sided permutation p value.

    NaN where phi is undefined, or with fewer than four layers, of which too few orders exist.
    """
    L = len(phi)
    first, second = np.triu_indices(L, k=1)
    if L < 4 or not np.isfinite(phi).all():
        return math.nan, math.nan
    near = stats.rankdata(-np.abs(first - second))
    near = (near - near.mean()) / near.std()
    ranks = np.zeros((L, L))
    ranks[first, second] = stats.rankdata(phi[first, second])
    ranks += ranks.T
    order = np.array([np.arange(L), *(rng.permutation(L) for _ in range(PERMUTATIONS))])
    x = ranks[order[:, first], order[:, second]]
    found = ((x - x[0].mean()) / x[0].std()) @ near / len(near)
    reached = (found[1:] >= found[0] - 1e-12).sum()
    return float(found[0]), float((1 + reached) / (1 + PERMUTATIONS))
