"""Shares explained by one map of W0, read on the planted scale, with intervals over runs."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.maths.explained_share import LAST, RHO, ExplainedShare, side_of
from analysis.stats.power import Share, read_off
from analysis.stats.significance import t_interval
from analysis.stats.task_means import task_mean

KEYS = ["module", "form", "source", "r", "step"]


def estimates(result: ExplainedShare, confidence: float, *, by: Sequence[str] = ()) -> pd.DataFrame:
    """A row per module, form, source, rank and step (and of `by`: "task", "layer") with the planted share.

    Each run counts once, with its mean over layers (or its value in the layer). Over several tasks the mean is that of
    the tasks' means and its interval from the variances of each task. share, low, high: the planted share rho whose mean
    response has that value; at most 1, and 0 where the value is below that of Gaussian matrices (`null`).
    """
    names = [*KEYS, *by]
    runs = result.values.groupby([*dict.fromkeys([*names, "task", "seed"])], sort=False)
    runs = runs.left_out.mean().reset_index()
    rows = []
    for key, group in runs.groupby(names, sort=False):
        named = dict(zip(names, key, strict=True))
        response = result.response[
            named["module"], side_of(named["form"]), named["source"], named["r"]
        ]
        curve = _curve(result, named, response)
        rows.append([*key, *_estimate(group, curve, confidence), curve[0]])
    numbers = ["runs", "left_out", "share", "low", "high", "null"]
    return pd.DataFrame(rows, columns=[*names, *numbers])


def _curve(result: ExplainedShare, named: dict, response: np.ndarray) -> np.ndarray:
    """The mean response to each planted share, over worlds and layers, or in one layer."""
    if "layer" not in named:
        return response.mean(axis=(1, 2))
    v = result.values
    layers = sorted(v.layer[(v.module == named["module"]) & (v.r == named["r"])].unique())
    return response[..., layers.index(named["layer"])].mean(axis=1)


def _estimate(group: pd.DataFrame, curve: np.ndarray, confidence: float) -> list[float]:
    samples = [values.left_out.to_numpy() for _, values in group.groupby("task", sort=False)]
    if len(samples) > 1:
        found = task_mean(samples)
        mean, interval = found.mean, found.interval(confidence)
    else:
        mean, interval = samples[0].mean(), t_interval(samples[0], confidence)
    share = Share(*read_off(np.array([mean, *interval]), np.array(RHO), curve))
    return [len(group), mean, *share]


def finished(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of finished runs."""
    return table[table.step == LAST]


def scale(result: ExplainedShare) -> pd.DataFrame:
    """The mean response of the statistic to each planted share: a row per module, side, source, rank and rho."""
    rows = [
        [*key, rho, values.mean(), values.mean(axis=1).std(ddof=1)]
        for key, response in result.response.items()
        for rho, values in zip(RHO, response, strict=True)
    ]
    return pd.DataFrame(rows, columns=["module", "side", "source", "r", "rho", "mean", "sd"])


def largest(table: pd.DataFrame) -> float:
    """The largest share, for the end of an axis; 0 where there is none."""
    top = np.nanmax(table[["share", "high"]].to_numpy(dtype=float), initial=0.0)
    return 0.0 if math.isnan(top) else float(top)
