"""The decision rules of results/paper/claims.yaml: from thresholds to verdicts.

A rule takes the values of one or several parts of a claim and gives each a verdict with what it rests
on; `combine` makes them the claim's. The thresholds of the rules, levels and margins, stand in the file.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.stats.significance import (
    UNDEFINED_INTERVAL,
    Interval,
    Summary,
    empirical_p,
    holm,
    p_mean_above,
    runs_for_equivalence,
    runs_to_tell,
    summarise,
    t_interval,
)
from analysis.study.paper import published

HOLDS, FAILS, INCONCLUSIVE, NOT_RUN = "holds", "does not hold", "inconclusive", "not run"
# The order in which a report tells them.
VERDICTS = [FAILS, INCONCLUSIVE, HOLDS, NOT_RUN]


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of the rules; see the file for what each is."""

    alpha: float
    confidence: float
    power: float
    margin_points: float
    speed_margin: float
    paper_alpha: float
    most: float
    equal_phi: float
    printed_rounding: float
    resamples: int


@dataclass(frozen=True)
class Part:
    """One part of a claim with its verdict and what that rests on; NaN where undefined.

    estimate lies within interval; null is its value where there is nothing to see, and limit what
    the rule holds it against. p_holds and p_fails are the two p values of the rule, adjusted where
    the rule says so. needs: how many runs would settle it; None where it is settled or cannot be said.
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
    needs: int | None = None


def load_rules(margin_points: float | None = None) -> tuple[Thresholds, dict[str, dict[str, Any]]]:
    """The thresholds and the claims of claims.yaml, key -> its fields; texts hold the thresholds.

    margin_points: another margin of equality than the file's.
    """
    rules = published("claims")
    thresholds = Thresholds(**rules["numbers"])
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
    """What two p values say of a part with n values; an undefined p says nothing."""
    if not n:
        return NOT_RUN
    return HOLDS if p_holds < alpha else FAILS if p_fails < alpha else INCONCLUSIVE


def above_null(
    samples: Mapping[str, tuple[np.ndarray, np.ndarray]], thresholds: Thresholds
) -> list[Part]:
    """Whether the mean of values (n,) exceeds what single draws of a null (draws,) give.

    samples: part -> (values, draws). Holds by the share of draws that reach the mean; does not hold
    where the mean lies below the draws' upper quantile by a one-sided t test, Holm-adjusted over
    the parts.
    """
    p_fails, limits = [], []
    for values, draws in samples.values():
        limits.append(float(np.quantile(draws, 1 - thresholds.alpha)) if len(draws) else math.nan)
        p_fails.append(p_mean_above(-np.asarray(values), -limits[-1]))
    parts = []
    for (name, (values, draws)), limit, p in zip(
        samples.items(), limits, holm(p_fails), strict=True
    ):
        found = summarise(values)
        part = _against(limit, name, values, empirical_p(found.mean, draws), p, thresholds)
        parts.append(replace(part, null=summarise(draws).mean))
    return parts


def _against(
    limit: float,
    name: str,
    values: np.ndarray,
    p_holds: float,
    p_fails: float,
    thresholds: Thresholds,
) -> Part:
    """The part of a claim that the mean of `values` lies above `limit`, from its two p values."""
    found = summarise(values)
    decided = verdict(p_holds, p_fails, thresholds.alpha, found.n)
    needs = None
    if decided == INCONCLUSIVE:
        gap = found.mean - limit
        needs = runs_to_tell(found.sd, gap, alpha=thresholds.alpha, power=thresholds.power)
    return Part(
        name,
        decided,
        found.mean,
        t_interval(values, thresholds.confidence),
        found.n,
        limit=limit,
        p_holds=p_holds,
        p_fails=float(p_fails),
        needs=needs,
    )


def runs_to_settle_equality(found: Summary, tests: int, thresholds: Thresholds) -> int | None:
    """How many pairs would show that two scores are equal, or that they are not.

    Equality if their true difference were 0, where the mean found lies within the margin; else that
    it is beyond the margin, if it were as found. `tests` is the size of the family: its level is
    that of the strictest step of Holm's correction.
    """
    alpha, margin, power = (
        thresholds.alpha / max(tests, 1),
        thresholds.margin_points,
        thresholds.power,
    )
    if abs(found.mean) <= margin:
        return runs_for_equivalence(found.sd, margin, alpha=alpha, power=power)
    return runs_to_tell(found.sd, abs(found.mean) - margin, alpha=alpha / 2, power=power)


def above_limit(
    samples: Mapping[str, np.ndarray], limit: float, thresholds: Thresholds
) -> list[Part]:
    """Whether the mean of each part's values (n,) lies above `limit`: one-sided t tests.

    That it lies below is Holm-adjusted over the parts, as one such part decides.
    """
    p_fails = holm([p_mean_above(-np.asarray(x), -limit) for x in samples.values()])
    return [
        _against(limit, name, values, p_mean_above(values, limit), p, thresholds)
        for (name, values), p in zip(samples.items(), p_fails, strict=True)
    ]


def not_lower(name: str, ratios: np.ndarray, thresholds: Thresholds) -> Part:
    """Whether the geometric mean of ratios (n,) lies above 1 less the margin of speed."""
    logarithms, limit = np.log(np.asarray(ratios, dtype=np.float64)), 1 - thresholds.speed_margin
    part = above_limit({name: logarithms}, math.log(limit), thresholds)[0]
    interval = Interval(*map(math.exp, part.interval))
    return replace(part, estimate=math.exp(part.estimate), interval=interval, null=1.0, limit=limit)


def exact(name: str, is_so: bool | None, estimate: float, n: int, limit: float) -> Part:
    """A part that arithmetic decides; `is_so` is None where the thresholds are not there."""
    decided = NOT_RUN if is_so is None else HOLDS if is_so else FAILS
    return Part(name, decided, estimate, n=n, limit=limit)


def combine(parts: list[Part]) -> tuple[str, Part | None]:
    """The claim's verdict from its parts', and the part that decides it (None without parts).

    One part that does not hold decides; every part must hold. The part that decides is the clearest
    failure, or else the one that is furthest from holding.
    """
    verdicts = {part.verdict for part in parts}
    if FAILS in verdicts:
        decided, candidates = FAILS, [p for p in parts if p.verdict == FAILS]
        return decided, min(candidates, key=lambda p: (_known(p.p_fails, 1), -abs(p.estimate)))
    if verdicts <= {NOT_RUN}:
        return NOT_RUN, parts[0] if parts else None
    decided = HOLDS if verdicts == {HOLDS} else INCONCLUSIVE
    candidates = [p for p in parts if p.verdict == INCONCLUSIVE]
    candidates = candidates or [p for p in parts if p.verdict == HOLDS]
    return decided, max(candidates, key=lambda p: (_known(p.p_holds, 1), -_known(p.p_fails, 1)))


def _known(p: float, otherwise: float) -> float:
    return otherwise if math.isnan(p) else p
