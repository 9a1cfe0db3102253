"""Each claim of the paper, tested on the runs there are: a verdict, an estimate, what would settle it.

What is claimed, how it is tested and the rule that decides stand in results/paper/claims.yaml; here is
one computation for each. A verdict speaks of the runs at hand, on their backbone and data.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.present.typeset import Table
from analysis.stats.claims import Claim, in_order
from analysis.stats.formatting import UNDEFINED, interval, number, p_value


def table(claims: list[Claim]) -> Table:
    """Every claim in a row: verdict, what decides it, and what would settle it."""
    rows = [
        [
            claim.verdict,
            claim.statement,
            claim.shown,
            claim.settle or UNDEFINED,
            f"{claim.place}, {claim.kind}",
        ]
        for claim in in_order(claims)
    ]
    header = ["verdict", "claim", "estimate [interval], n", "what would settle it", "where"]
    return Table(
        name="claims",
        title="Every claim and its verdict",
        header=header,
        rows=rows,
        data=pd.DataFrame(rows, columns=header),
        notes=[
            "Estimate, interval and n are those of the part of a claim that decides it: the clearest "
            "failure, or else the part furthest from holding. All parts are in claims_parts."
        ],
        text_columns=len(header),
    )


def table_of_parts(claims: list[Claim]) -> Table:
    """Every part of every claim, as the verdicts rest on it."""
    rows, data = [], []
    for claim in in_order(claims):
        for part in claim.parts:
            shown = [number(x, claim.digits) for x in (part.estimate, part.null, part.limit)]
            shown.insert(1, interval(*part.interval, claim.digits))
            p = [p_value(part.p_holds), p_value(part.p_fails)]
            needs = UNDEFINED if part.needs is None else f"{part.needs:,}"
            rows.append(
                [claim.key, part.name, part.verdict, *shown, *p, str(part.n), claim.unit, needs]
            )
            ends = {"low": part.interval.low, "high": part.interval.high}
            data.append({"claim": claim.key} | asdict(part) | ends)
    return Table(
        name="claims_parts",
        title="Every part of every claim",
        header=[
            *("claim", "part", "verdict", "estimate", "interval", "null", "limit"),
            *("p, holds", "p, does not hold", "n", "unit", "n needed"),
        ],
        rows=rows,
        data=pd.DataFrame(data).drop(columns="interval"),
        notes=[
            "Null: what there is with nothing to see; limit: what the rule holds the estimate against. "
            "The rules are in results/paper/claims.yaml. n needed: for 80 % power, see the rule."
        ],
        text_columns=3,
    )


def write(claims: list[Claim], path: Path) -> Path:
    """Writes the claims with all their parts as JSON; what is undefined is null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = _without_nan([asdict(claim) for claim in claims])
    text = json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _without_nan(value: Any) -> Any:
    """NaN as None, and floats to nine digits: the last bits of a sum must not change the file."""
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.9g}")
    return value
