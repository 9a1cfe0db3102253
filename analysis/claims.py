"""Each claim of the paper, tested on the runs there are: a verdict, an estimate, what would settle it.

What is claimed, how it is tested and the rule that decides stand in results/paper/claims.yaml; here is
one computation for each. A verdict speaks of the runs at hand, on their backbone and data.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from analysis import (
    adapter_similarity,
    conversion_similarity,
    efficiency,
    equivalence,
    glue_scores,
    linear_map,
)
from analysis.present.typeset import UNDEFINED, Table, interval, number, p_value
from analysis.stats.rules import INCONCLUSIVE, NOT_RUN, VERDICTS, Numbers, Part, combine, load_rules
from analysis.stats.significance import Interval
from analysis.study.evidence import COMPUTATIONS, Findings
from analysis.study.selection import Stack, Study, load_stacks, open_study
from condlora.commands.cli import command

MOST_NAMED = 8  # parts named one by one; more are counted, and all are in the table of parts
KIND = {"paper": "the paper", "control": "a control of ours", "check": "a check"}


@dataclass(frozen=True)
class Claim:
    """One claim: its text and rule as the file states them, and what the runs say.

    estimate, interval, null, limit and n are those of the part that decides.
    """

    key: str
    statement: str
    kind: str
    place: str
    quantity: str
    test: str
    holds_if: str
    fails_if: str
    verdict: str
    evidence: str
    estimate: float
    interval: Interval
    null: float
    limit: float
    n: int
    unit: str
    digits: int
    settle: str
    parts: list[Part]

    @property
    def shown(self) -> str:
        """ "estimate [low, high], null, limit, n = N units" as text; a dash where there is nothing."""
        if not self.n:
            return UNDEFINED
        values = [number(self.estimate, self.digits), interval(*self.interval, self.digits)]
        text = " ".join(value for value in values if value != UNDEFINED)
        for name, value in (("null", self.null), ("limit", self.limit)):
            if not math.isnan(value):
                text += f"; {name} {number(value, self.digits)}"
        return f"{text}; n = {self.n} {self.unit}"


def collect(study: Study, stacks: list[Stack], numbers: Numbers) -> Findings:
    """Runs what the claims rest on; `stacks` are the matrices of the study's finished cells."""
    scores = glue_scores.scores(study.done)
    return Findings(
        scores=scores,
        differences=equivalence.compare(
            scores,
            equivalence.load_examples(study.done),
            numbers,
            seed=study.settings.baseline_seed,
        ),
        costs=efficiency.costs(study.done),
        conversion=conversion_similarity.figure1(stacks, study.settings),
        adapters=adapter_similarity.compare(stacks, study.settings),
        linear_map=linear_map.linear_maps(stacks, study.settings),
    )


def evaluate(
    findings: Findings, numbers: Numbers, stated: dict[str, dict[str, Any]]
) -> list[Claim]:
    """All claims of the file, in its order."""
    return [
        _claim(key, fields, *COMPUTATIONS[key](findings, numbers)) for key, fields in stated.items()
    ]


def _claim(key: str, fields: dict[str, Any], parts: list[Part], note: str = "") -> Claim:
    decided, part = combine(parts)
    part = part or Part("", NOT_RUN)
    settle = ""
    if decided in (INCONCLUSIVE, NOT_RUN):
        settle = fields["settle"] + _needed(parts, fields["unit"])
    return Claim(
        key=key,
        **{
            k: fields[k] for k in ("statement", "place", "quantity", "test", "holds_if", "fails_if")
        },
        kind=KIND[fields["kind"]],
        verdict=decided,
        evidence="; ".join(filter(None, [_summary(parts, part, fields["digits"]), note])),
        estimate=part.estimate,
        interval=part.interval,
        null=part.null,
        limit=part.limit,
        n=part.n,
        unit=fields["unit"],
        digits=fields["digits"],
        settle=settle,
        parts=parts,
    )


def _summary(parts: list[Part], deciding: Part, digits: int) -> str:
    """Which parts came to what, or how many where they are too many to name; "" for one part."""
    if len(parts) < 2:
        return ""
    told = []
    for wanted in VERDICTS:
        found = [part for part in parts if part.verdict == wanted]
        names = ", ".join(
            p.name if wanted == NOT_RUN else f"{p.name} {number(p.estimate, digits)}" for p in found
        )
        if found:
            told.append(f"{wanted}: {names if len(parts) <= MOST_NAMED else len(found)}")
    return f"{len(parts)} parts, shown is {deciding.name}; {'; '.join(told)}"


def _needed(parts: list[Part], unit: str) -> str:
    """How many runs the hardest part needs and which parts were not run: the end of a sentence."""
    is_one = len(parts) == 1
    undecided = [part for part in parts if part.verdict == INCONCLUSIVE]
    known = [part for part in undecided if part.needs]
    text = ""
    if known:
        most = max(known, key=lambda part: part.needs)
        text += f"; about {most.needs:,} {unit}" + ("" if is_one else f" of {most.name}")
    if len(known) < len(undecided):
        named = [part.name for part in undecided if not part.needs]
        of = "" if is_one or len(named) > MOST_NAMED else f" of {', '.join(named)}"
        text += f"; how many{of} cannot be said from these runs"
    missing = [part.name for part in parts if part.verdict == NOT_RUN]
    if missing and not is_one:
        text += f"; not run: {', '.join(missing) if len(missing) <= MOST_NAMED else len(missing)}"
    return text


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


def in_order(claims: list[Claim]) -> list[Claim]:
    """What does not hold first, then what is open, what holds, and what was not run."""
    return sorted(claims, key=lambda claim: VERDICTS.index(claim.verdict))


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


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    numbers, stated = load_rules(cfg.margin_points)
    claims = evaluate(collect(study, load_stacks(study.done), numbers), numbers, stated)
    for claim in in_order(claims):
        print(f"{claim.verdict:>13}  {claim.statement}")
    print(f"Claims: {write(claims, study.folder / 'claims.json')}")


if __name__ == "__main__":
    main()
