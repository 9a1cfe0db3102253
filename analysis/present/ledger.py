"""The ledger of claims of the LoRA paper and of papers on its variants, as a section of the report."""

import pandas as pd

from analysis.present.typeset import Section, Table
from analysis.stats.formatting import UNDEFINED, interval, number
from analysis.stats.ledger import Entry, Evidence, entries
from analysis.stats.rules import NOT_TESTED, Thresholds
from analysis.study.paper import published


def section(evidence: Evidence, thresholds: Thresholds) -> Section:
    """The table, and how many of its claims these runs can test."""
    found, ledger = entries(evidence, thresholds), published("ledger")
    tested = sum(entry.verdict != NOT_TESTED for entry in found)
    text = (
        f"{tested} of {len(found)} claims of other papers are tested by these runs. The list is of {ledger['fixed']} (known then: "
        f"{ledger['known_then']}). A verdict applies to these runs, not to the models and data of those papers."
    )
    return Section("Claims of the LoRA paper and of papers on its variants", [text], [table(found)], [])  # fmt: skip


def table(found: list[Entry]) -> Table:
    """A row per claim: source, statement, verdict, what decides it, and the test."""
    rows = [
        [entry.source, entry.statement, _verdict(entry), _shown(entry), entry.test]
        for entry in found
    ]
    header = ["source", "claim", "verdict", "estimate [interval]; limit; n", "test"]
    return Table(
        name="ledger",
        title="Claims of other papers",
        header=header,
        rows=rows,
        data=pd.DataFrame(rows, columns=header),
        notes=[
            "Differences of scores are in points, the mean over the tasks that both methods ran; n is the number of seeds of the task "
            "with fewest, for matrices of runs or seeds. The list is results/paper/ledger.yaml."
        ],
        text_columns=len(header),
    )


def _verdict(entry: Entry) -> str:
    return f"{entry.verdict}: {entry.reason}" if entry.reason else entry.verdict


def _shown(entry: Entry) -> str:
    if entry.part is None:
        return UNDEFINED
    digits = 1 if entry.unit == "points" else 3
    part = entry.part
    ends = interval(*part.interval, digits)
    text = number(part.estimate, digits) + (f" {ends}" if ends != UNDEFINED else "")
    return f"{text}; limit {number(part.limit, digits)}; n = {part.n}"
