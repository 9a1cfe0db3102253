"""Score differences to LoRA by what of A and B is free in each layer, for profiles that group their methods (`profile.groups`).

Every method of a group has a row, also where it has no finished run. Groups and methods stand in the order of the profile: the table
is no ranking.
"""

import pandas as pd

from analysis.present.typeset import Section, Table
from analysis.stats import formatting
from analysis.stats.significance import t_interval
from analysis.study.names import REFERENCE, TASKS, label, task_order
from analysis.study.scores import differences, scores
from analysis.study.selection import Study

TITLE = "What of A and B must be free in each layer?"


def table(study: Study, confidence: float) -> Table:
    """A row for each method of each group: parameters, and for each task the difference to LoRA with its interval over seeds."""
    runs = scores(study.done)
    runs["parameters"] = [cell.record["parameters"]["adapter"] for cell in study.done]
    gaps = differences(runs)
    tasks = sorted({*study.tasks, *(cell.task for cell in study.cells)}, key=task_order)
    rows = [
        [group, label(method), *_cells(method, runs, gaps, tasks, confidence)]
        for group, methods in study.groups.items()
        for method in methods
    ]
    return Table(
        name="freedom",
        title="Score − LoRA's by what is free in each layer",
        header=["free in each layer", "method", "parameters", *(TASKS.get(t, t) for t in tasks)],
        rows=rows,
        data=gaps,
        notes=[
            "Differences in points, paired by seed: mean, Student's interval over seeds "
            f"({100 * confidence:g} %), and the number of pairs. The order is that of the profile and no ranking."
        ],
    )


def _cells(
    method: str, runs: pd.DataFrame, gaps: pd.DataFrame, tasks: list[str], confidence: float
) -> list[str]:
    own = runs[runs.adapter == method]
    counts = " / ".join(f"{count:,}" for count in sorted(set(own.parameters)))
    found = []
    for task in tasks:
        points = gaps[(gaps.adapter == method) & (gaps.task == task)].points
        if not (own.task == task).any():
            found.append("not run")
        elif method == REFERENCE:
            found.append("reference")
        elif points.empty:
            found.append("LoRA not run")
        else:
            interval = formatting.interval(*t_interval(points, confidence), 1)
            found.append(f"{formatting.number(points.mean(), 1)} {interval} ({len(points)})")
    return [counts or formatting.UNDEFINED, *found]


def section(study: Study, confidence: float) -> Section:
    """The table for the report; empty for profiles without groups."""
    return Section(TITLE, [], [table(study, confidence)] if study.groups else [], [])
