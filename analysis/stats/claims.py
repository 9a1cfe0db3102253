"""Evaluates the claims of results/paper/claims.yaml on the finished runs of a study."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.stats import equivalence
from analysis.stats.evidence import COMPUTATIONS, Findings
from analysis.stats.formatting import UNDEFINED, interval, number
from analysis.stats.rules import (
    NOT_RESOLVED,
    NOT_RUN,
    NOT_TESTED,
    VERDICTS,
    Part,
    Thresholds,
    combine,
)
from analysis.stats.significance import Interval
from analysis.study.costs import costs
from analysis.study.examples import load_examples
from analysis.study.plateau import reference_gains
from analysis.study.scores import scores
from analysis.study.selection import Study

MATRICES = ("linear_map", "conversion", "adapters")  # the analyses of matrices that claims rest on
MOST_NAMED = 8  # parts named one by one; more are counted, and all are in the table of parts
KINDS = {  # in the order of a report
    "paper": "claim of the paper",
    "generalisation": "our generalisation",
    "control": "our control",
    "check": "check of printed numbers or arithmetic",
}


@dataclass(frozen=True)
class Claim:
    """One claim: its text and rule as the file states them, and its verdict on the finished runs.

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
        """ "estimate [low, high], null, limit, n = N units" as text; a dash without a value."""
        if not self.n:
            return UNDEFINED
        values = [number(self.estimate, self.digits), interval(*self.interval, self.digits)]
        text = " ".join(value for value in values if value != UNDEFINED)
        for name, value in (("null", self.null), ("limit", self.limit)):
            if not math.isnan(value):
                text += f"; {name} {number(value, self.digits)}"
        return f"{text}; n = {self.n} {self.unit}"


def collect(study: Study, matrices: Mapping[str, Any], thresholds: Thresholds) -> Findings:
    """Computes the findings that the claims rest on.

    matrices: the results of MATRICES for the study's finished cells, see `analysis.maths.together`.
    """
    runs = scores(study.done)
    return Findings(
        scores=runs,
        differences=equivalence.compare(
            runs,
            load_examples(study.done),
            thresholds,
            seed=study.settings.baseline_seed,
        ),
        costs=costs(study.done),
        **{name: matrices[name] for name in MATRICES},
        gains=reference_gains(study.done),
    )


def evaluate(
    findings: Findings, thresholds: Thresholds, stated: dict[str, dict[str, Any]]
) -> list[Claim]:
    """All claims of the file, in its order."""
    return [
        _claim(key, fields, *COMPUTATIONS[key](findings, thresholds))
        for key, fields in stated.items()
    ]


def _claim(key: str, fields: dict[str, Any], parts: list[Part], note: str = "") -> Claim:
    decided, part = combine(parts)
    part = part or Part("", NOT_RUN)
    settle, reason = "", part.reason if decided == NOT_TESTED else ""
    if decided in (NOT_RESOLVED, NOT_TESTED, NOT_RUN):
        settle = fields["settle"] + _not_run(parts)
    return Claim(
        key=key,
        **{
            k: fields[k] for k in ("statement", "place", "quantity", "test", "holds_if", "fails_if")
        },
        kind=fields["kind"],
        verdict=decided,
        evidence="; ".join(filter(None, [reason, _summary(parts, part, fields["digits"]), note])),
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
    """The parts by verdict, named or counted; "" for a single part."""
    if len(parts) < 2:
        return ""
    lines = []
    for wanted in VERDICTS:
        found = [part for part in parts if part.verdict == wanted]
        names = ", ".join(
            p.name if wanted == NOT_RUN else f"{p.name} {number(p.estimate, digits)}" for p in found
        )
        if found:
            lines.append(f"{wanted}: {names if len(parts) <= MOST_NAMED else len(found)}")
    return f"{len(parts)} parts; the deciding one is {deciding.name}; {'; '.join(lines)}"


def _not_run(parts: list[Part]) -> str:
    """The parts that were not run: the end of a sentence."""
    missing = [part.name for part in parts if part.verdict == NOT_RUN]
    if not missing or len(parts) == 1:
        return ""
    return f"; not run: {', '.join(missing) if len(missing) <= MOST_NAMED else len(missing)}"


def in_order(claims: list[Claim]) -> list[Claim]:
    """The paper's claims first, then the other kinds; within a kind in the order of VERDICTS."""
    kinds = list(KINDS)
    return sorted(claims, key=lambda c: (kinds.index(c.kind), VERDICTS.index(c.verdict)))


def counts(claims: list[Claim]) -> dict[str, int]:
    """verdict -> number of the paper's claims with it; generalisations, controls and checks do not count."""
    own = [claim.verdict for claim in claims if claim.kind == "paper"]
    return {name: own.count(name) for name in VERDICTS}
