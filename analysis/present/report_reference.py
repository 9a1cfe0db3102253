"""The comparison of a report with the committed results of its profile, or with another profile's: a line and two tables."""

from dataclasses import dataclass, field

import pandas as pd

from analysis.present.typeset import Table
from analysis.stats.agreement import UNKNOWN, WITHIN, compare_scores, compare_verdicts
from analysis.stats.claims import Claim
from analysis.stats.formatting import UNDEFINED, interval, number
from analysis.study.names import label
from analysis.study.reference import Reference
from analysis.study.scores import title


@dataclass(frozen=True)
class Comparison:
    """line: the sentence at the top of the report; agrees: whether every score and verdict is the same."""

    line: str
    agrees: bool
    tables: list[Table] = field(default_factory=list)


def compare(
    runs: pd.DataFrame, claims: list[Claim], reference: Reference, confidence: float
) -> Comparison:
    """Compares the scores and verdicts of a study with those of another report."""
    scores = compare_scores(runs, reference.scores, confidence)
    verdicts = compare_verdicts({c.key: c.verdict for c in claims}, reference.verdicts)
    within, same = int((scores.verdict == WITHIN).sum()), int(verdicts.same.sum())
    unknown = int((scores.verdict == UNKNOWN).sum())
    line = (
        f"Compared with {reference.name}: {within} of {len(scores)} scores are within seed spread"
        + (f" ({unknown} have one seed on each side)" if unknown else "")
        + f", {same} of {len(verdicts)} verdicts are the same."
    )
    agrees = bool(len(scores)) and within == len(scores) and same == len(verdicts)
    statements = {claim.key: claim.statement for claim in claims}
    return Comparison(line, agrees, [_of_scores(scores, confidence), _of_verdicts(verdicts, statements)])  # fmt: skip


def _of_scores(scores: pd.DataFrame, confidence: float) -> Table:
    rows = [
        [
            title(row.task),
            label(row.adapter),
            f"{number(row.here, 1)} ({row.n})",
            f"{number(row.other, 1)} ({row.other_n})",
            f"{number(row.difference, 1)} {interval(row.low, row.high, 1)}",
            row.verdict,
        ]
        for row in scores.itertuples()
    ]
    return Table(
        name="reference_scores",
        title="Scores compared with the reference",
        header=["task", "method", "here", "reference", "here − reference", ""],
        rows=rows,
        data=scores,
        notes=[
            f"Means in points (n seeds); the interval of their difference is a {100 * confidence:g} % t-interval for independent runs. "
            "Within seed spread: it includes zero. Of many scores about "
            f"{100 * (1 - confidence):g} % lie outside by chance."
        ],
        text_columns=2,
    )


def _of_verdicts(verdicts: pd.DataFrame, statements: dict[str, str]) -> Table:
    differ_first = verdicts.sort_values("same", kind="stable")
    rows = [
        [statements.get(row.claim, UNDEFINED), row.here, row.other, "same" if row.same else "differs"]
        for row in differ_first.itertuples()
    ]  # fmt: skip
    return Table(
        name="reference_verdicts",
        title="Verdicts compared with the reference",
        header=["claim", "here", "reference", ""],
        rows=rows,
        data=verdicts,
        text_columns=4,
    )
