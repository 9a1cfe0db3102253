"""The claims as tables and as JSON.

results/paper/claims.yaml states what is claimed, how it is tested and which rule decides. A verdict applies to the
finished runs, on their backbone and data.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.present.typeset import Table
from analysis.stats.claims import KINDS, Claim, in_order
from analysis.stats.formatting import UNDEFINED, interval, number, p_value


def table(claims: list[Claim]) -> Table:
    """Every claim in a row: verdict, what decides it, and what would decide it."""
    rows = [
        [
            claim.verdict,
            claim.statement,
            claim.shown,
            claim.settle or UNDEFINED,
            f"{claim.place}, {KINDS[claim.kind]}",
        ]
        for claim in in_order(claims)
    ]
    header = ["verdict", "claim", "estimate [interval], n", "what would decide it", "where"]
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
    """Every part of every claim, with the numbers that its verdict rests on."""
    rows, data = [], []
    for claim in in_order(claims):
        for part in claim.parts:
            shown = [number(x, claim.digits) for x in (part.estimate, part.null, part.limit)]
            shown.insert(1, interval(*part.interval, claim.digits))
            p = [p_value(part.p_holds), p_value(part.p_fails)]
            rows.append([claim.key, part.name, part.verdict, *shown, *p, str(part.n), claim.unit])
            ends = {"low": part.interval.low, "high": part.interval.high}
            data.append({"claim": claim.key} | asdict(part) | ends)
    return Table(
        name="claims_parts",
        title="Every part of every claim",
        header=[
            *("claim", "part", "verdict", "estimate", "interval", "null", "limit"),
            *("p, holds", "p, does not hold", "n", "unit"),
        ],
        rows=rows,
        data=pd.DataFrame(data).drop(columns="interval"),
        notes=[
            "Null: the value under the null hypothesis; limit: the decision threshold (of 'does not hold', for claims against draws). The rules are in "
            "results/paper/claims.yaml."
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
