"""Evaluates the claims of results/paper/claims.yaml on the finished runs of a study."""

import math
from dataclasses import dataclass
from typing import Any

from analysis.maths import adapter_similarity, conversion_similarity, linear_map
from analysis.stats import equivalence
from analysis.stats.evidence import COMPUTATIONS, Findings
from analysis.stats.formatting import UNDEFINED, interval, number
from analysis.stats.rules import INCONCLUSIVE, NOT_RUN, VERDICTS, Part, Thresholds, combine
from analysis.stats.significance import Interval
from analysis.study.costs import costs
from analysis.study.examples import load_examples
from analysis.study.scores import scores
from analysis.study.selection import Study
from analysis.study.stacks import Stack

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


def collect(study: Study, stacks: list[Stack], thresholds: Thresholds) -> Findings:
    """Runs what the claims rest on; `stacks` are the matrices of the study's finished cells."""
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
        conversion=conversion_similarity.figure1(stacks, study.settings),
        adapters=adapter_similarity.compare(stacks, study.settings),
        linear_map=linear_map.linear_maps(stacks, study.settings),
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


def in_order(claims: list[Claim]) -> list[Claim]:
    """What does not hold first, then what is open, what holds, and what was not run."""
    return sorted(claims, key=lambda claim: VERDICTS.index(claim.verdict))
