"""Which rate comes next, from the rates and scores so far: pure functions."""

from __future__ import annotations

import math

Scores = dict[float, float | None]  # of each rate, None where a trial failed


def value_of(scores: Scores, rate: float) -> float:
    return -math.inf if scores[rate] is None else scores[rate]


def best_rate(scores: Scores) -> float:
    """The rate of the best score, of equals the lowest."""
    return max(scores, key=lambda rate: (value_of(scores, rate), -rate))


def beyond_edge(scores: Scores, first: list[float], extend: int) -> float | None:
    """Where the best rate is the lowest or the highest: the next one on that side, by the factor between the first rates.

    None where the best lies inside, no rate has a score, or there are `extend` rates on that side already.
    """
    best = best_rate(scores)
    if len(first) < 2 or not math.isfinite(value_of(scores, best)):
        return None
    if best == min(scores) and sum(rate < first[0] for rate in scores) < extend:
        return float(f"{best * first[0] / first[1]:.3g}")
    if best == max(scores) and sum(rate > first[-1] for rate in scores) < extend:
        return float(f"{best * first[-1] / first[-2]:.3g}")
    return None


def next_rate(scores: Scores) -> float:
    """The rate to try after these, of two digits; a score is None where the trial failed.

    Beyond the best, as far as its neighbour is, where it is the lowest or highest yet; else in the middle, by ratio, of the
    wider gap next to it, or of the one on the side of the better score. Where all failed: below them, then above.
    """
    rates = sorted(scores)
    value = {rate: value_of(scores, rate) for rate in rates}
    best = best_rate(scores)
    at = rates.index(best)  # of all that failed the lowest
    if value[best] == -math.inf and len(rates) % 2 == 0:
        at = len(rates) - 1
    if at == 0:
        found = rates[0] ** 2 / rates[1]
    elif at == len(rates) - 1:
        found = rates[-1] ** 2 / rates[-2]
    else:
        neighbour = max(
            (rates[at - 1], rates[at + 1]),
            key=lambda rate: (round(abs(math.log(rate / best)), 1), value[rate]),
        )
        found = math.sqrt(best * neighbour)
    return float(f"{found:.2g}")
