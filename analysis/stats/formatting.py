"""Thresholds as text, the same in every table and sentence."""

import math

from analysis.stats.significance import Summary

UNDEFINED = "–"


def number(value: float | None, digits: int) -> str:
    """`value` with a true minus sign and no negative zero; a dash where it is None or NaN."""
    if value is None or math.isnan(value):
        return UNDEFINED
    text = f"{value:,.{digits}f}"
    is_zero = not any(c in "123456789" for c in text)
    return text.lstrip("-") if is_zero else text.replace("-", "−")


def mean_sd(summary: Summary, digits: int, *, with_n: bool = True) -> str:
    """ "mean ± sd (n)", with dashes for what is undefined; a dash alone where there is no value."""
    if not summary.n:
        return UNDEFINED
    text = f"{number(summary.mean, digits)} ± {number(summary.sd, digits)}"
    return f"{text} ({summary.n})" if with_n else text


def interval(low: float, high: float, digits: int) -> str:
    """ "[low, high]", a dash where either end is undefined."""
    if math.isnan(low) or math.isnan(high):
        return UNDEFINED
    return f"[{number(low, digits)}, {number(high, digits)}]"


def p_value(p: float) -> str:
    """Three decimals, never zero; a dash where undefined."""
    return "< 0.001" if p < 0.001 else number(p, 3)
