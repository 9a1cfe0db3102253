"""The decision rules of results/paper/claims.yaml: from values to verdicts, here and nowhere else.

A rule takes the values of one or several parts of a claim and gives each part a verdict and the numbers it rests on;
`combine` gives the verdict of the claim. The file holds the thresholds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.stats.significance import (
    UNDEFINED_INTERVAL,
    Interval,
    empirical_p,
    holm,
    p_mean_above,
    summarise,
    t_interval,
)
from analysis.study.paper import published

HOLDS, FAILS, NOT_RESOLVED = "holds", "does not hold", "not resolved"
NOT_TESTED, NOT_RUN = "not tested", "not run"
VERDICTS = [FAILS, NOT_RESOLVED, NOT_TESTED, HOLDS, NOT_RUN]  # the order of a report


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of the rules; the file explains each."""

    alpha: float
    confidence: float
    margin_points: float
    margin_phi: float
    speed_margin: float
    paper_alpha: float
    most: float
    equal_phi: float
    printed_rounding: float
    resamples: int


@dataclass(frozen=True)
class Part:
    """One part of a claim, its verdict and the numbers it rests on; NaN where undefined.

    estimate lies within interval. null: its value under the null hypothesis; limit: the decision threshold. p_holds and
    p_fails: the two p values of the rule, adjusted where the rule says so. reason: why a part was not tested.
    """

    name: str
    verdict: str
    estimate: float = math.nan
    interval: Interval = UNDEFINED_INTERVAL
    n: int = 0
    null: float = math.nan
    limit: float = math.nan
    p_holds: float = math.nan
    p_fails: float = math.nan
    reason: str = ""


def load_rules(margin_points: float | None = None) -> tuple[Thresholds, dict[str, dict[str, Any]]]:
    """The thresholds and the claims of claims.yaml, key -> fields; thresholds are filled into the texts.

    margin_points: a margin of equality other than the file's.
    """
    rules = published("claims")
    thresholds = Thresholds(**rules["thresholds"])
    if margin_points is not None:
        thresholds = replace(thresholds, margin_points=margin_points)
    values = vars(thresholds)
    claims = {
        key: {
            name: text.format(**values) if isinstance(text, str) else text
            for name, text in fields.items()
        }
        for key, fields in rules["claims"].items()
    }
    return thresholds, claims


def verdict(p_holds: float, p_fails: float, alpha: float, n: int) -> str:
    """The verdict of a part with n values; an undefined p value decides nothing."""
    if not n:
        return NOT_RUN
    return HOLDS if p_holds < alpha else FAILS if p_fails < alpha else NOT_RESOLVED


def above_null(
    samples: Mapping[str, tuple[np.ndarray, np.ndarray]], thresholds: Thresholds
) -> list[Part]:
    """Whether the mean of values (n,) exceeds single draws of a null hypothesis (draws,).

    samples: part -> (values, draws). Holds by the share of draws that reach the mean. Does not hold where the mean is
    less than `margin_phi` above the mean of the draws, by a one-sided t test, Holm-adjusted over the parts: a smaller
    excess would not be visible in two decimals, while a mean among noisy draws alone would prove nothing.
    """
    limits = [summarise(draws).mean + thresholds.margin_phi for _, draws in samples.values()]
    p_fails = [
        p_mean_above(-np.asarray(values), -limit)
        for (values, _), limit in zip(samples.values(), limits, strict=True)
    ]
    parts = []
    for (name, (values, draws)), limit, p in zip(
        samples.items(), limits, holm(p_fails), strict=True
    ):
        p_holds = empirical_p(summarise(values).mean, draws)
        part = _part(limit, name, values, p_holds, p, thresholds)
        parts.append(replace(part, null=summarise(draws).mean))
    return parts


def _part(
    limit: float,
    name: str,
    values: np.ndarray,
    p_holds: float,
    p_fails: float,
    thresholds: Thresholds,
) -> Part:
    """The part about the mean of `values` with the two p values of its rule."""
    found = summarise(values)
    return Part(
        name,
        verdict(p_holds, p_fails, thresholds.alpha, found.n),
        found.mean,
        t_interval(values, thresholds.confidence),
        found.n,
        limit=limit,
        p_holds=p_holds,
        p_fails=float(p_fails),
    )


def above_limit(
    samples: Mapping[str, np.ndarray], limit: float, thresholds: Thresholds
) -> list[Part]:
    """Whether the mean of each part's values (n,) exceeds `limit`, by one-sided t tests.

    The tests of "below" are Holm-adjusted over the parts, as one such part decides.
    """
    p_fails = holm([p_mean_above(-np.asarray(x), -limit) for x in samples.values()])
    return [
        _part(limit, name, values, p_mean_above(values, limit), p, thresholds)
        for (name, values), p in zip(samples.items(), p_fails, strict=True)
    ]


def not_lower(name: str, ratios: np.ndarray, thresholds: Thresholds) -> Part:
    """Whether the geometric mean of ratios (n,) exceeds 1 minus the margin of speed."""
    logarithms, limit = np.log(np.asarray(ratios, dtype=np.float64)), 1 - thresholds.speed_margin
    part = above_limit({name: logarithms}, math.log(limit), thresholds)[0]
    interval = Interval(*map(math.exp, part.interval))
    return replace(part, estimate=math.exp(part.estimate), interval=interval, null=1.0, limit=limit)


def exact(name: str, is_true: bool | None, estimate: float, n: int, limit: float) -> Part:
    """A part that arithmetic decides; `is_true` is None where the values are missing."""
    decided = NOT_RUN if is_true is None else HOLDS if is_true else FAILS
    return Part(name, decided, estimate, n=n, limit=limit)


def not_tested(part: Part, reason: str) -> Part:
    """The same part with its estimate and interval, without a verdict."""
    return replace(part, verdict=NOT_TESTED, reason=reason)


def combine(parts: list[Part]) -> tuple[str, Part | None]:
    """The verdict of a claim from its parts, and the part that decides it (None without parts).

    A claim holds if every part holds (an intersection-union test: no adjustment for the number of parts) and does not
    hold if one part does not. It is not tested if no part has a verdict for that reason. The deciding part is the
    clearest failure, or else the part furthest from holding.
    """
    verdicts = {part.verdict for part in parts}
    if FAILS in verdicts:
        decided, candidates = FAILS, [p for p in parts if p.verdict == FAILS]
        return decided, min(candidates, key=lambda p: (_known(p.p_fails, 1), -abs(p.estimate)))
    if verdicts <= {NOT_RUN}:
        return NOT_RUN, parts[0] if parts else None
    decided = HOLDS if verdicts == {HOLDS} else NOT_RESOLVED
    if verdicts <= {NOT_TESTED, NOT_RUN}:
        decided = NOT_TESTED
    for wanted in (NOT_RESOLVED, NOT_TESTED, HOLDS):
        candidates = [p for p in parts if p.verdict == wanted]
        if candidates:
            break
    return decided, max(candidates, key=lambda p: (_known(p.p_holds, 1), -_known(p.p_fails, 1)))


def _known(p: float, otherwise: float) -> float:
    return otherwise if math.isnan(p) else p
