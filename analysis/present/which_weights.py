"""Which attention weights LoRA adapts: scores of the runs, with the published scores of Hu et al. in columns of their own.

A row for each choice of table 5 in Hu et al. 2022 (arXiv 2106.09685), in its order. The published model, data and protocol are
others, so their numbers are in no column of ours.
"""

import pandas as pd

from analysis.present.typeset import Section, Table
from analysis.stats import formatting
from analysis.stats.significance import summarise
from analysis.study.names import TASKS, label, task_order
from analysis.study.paper import published
from analysis.study.scores import scores
from condlora.errors import NoFinishedRuns
from condlora.grid.cells import Cell

PREFIX = "lora_on_"
PUBLISHED = {"wikisql": "WikiSQL", "mnli": "MultiNLI"}


def chosen(cells: list[Cell]) -> list[Cell]:
    """The finished runs of LoRA on chosen weights."""
    return [cell for cell in cells if cell.adapter.startswith(PREFIX)]


def table(cells: list[Cell]) -> Table:
    """Scores by choice of weights and task.

    Raises:
        NoFinishedRuns: no run is of `adapter=lora_on`.
    """
    own = chosen(cells)
    if not own:
        raise NoFinishedRuns(
            "No finished run here is of LoRA on chosen weights: train with profile=which_weights first."
        )
    runs = scores(own)
    runs["parameters"] = [cell.record["parameters"]["adapter"] for cell in own]
    paper = published("which_weights")
    tasks = sorted(set(runs.task), key=task_order)
    rows = [_row(choice, runs, tasks, paper) for choice in paper["ranks"]]
    missing = [row[0] for row in rows if formatting.UNDEFINED in row[3 : 3 + len(tasks)]]
    notes = [
        "Our runs: points on the test examples, mean ± sd over seeds (n); parameters without the classification head.",
        f"Hu et al.: {paper['source']}, {paper['place']}, {paper['backbone']} with {paper['trainable_parameters']} trained "
        f"parameters, validation accuracy in per cent; sd over seeds {paper['sd']['wikisql']} on WikiSQL and "
        f"{paper['sd']['mnli']} on MultiNLI. Another model, other data and another protocol: compare orders, not numbers.",
    ]
    if missing:
        notes.append(f"Not run on every task: {'; '.join(missing)}.")
    return Table(
        name="which_weights",
        title="Which weights LoRA adapts, at equal numbers of parameters",
        header=[
            "weights",
            "r",
            "parameters",
            *(TASKS.get(task, task) for task in tasks),
            *(f"Hu et al., {name}" for name in PUBLISHED.values()),
        ],
        rows=rows,
        data=runs,
        notes=notes,
    )


def _row(choice: str, runs: pd.DataFrame, tasks: list[str], paper: dict) -> list[str]:
    own = runs[runs.adapter == PREFIX + choice]
    by_task = [own[own.task == task].score_points for task in tasks]
    counts = sorted(set(own.parameters))
    return [
        label(PREFIX + choice).removeprefix("LoRA of "),
        str(paper["ranks"][choice]),
        " / ".join(f"{count:,}" for count in counts) or formatting.UNDEFINED,
        *(formatting.mean_sd(summarise(points), 1) for points in by_task),
        *(formatting.number(paper["scores"][name][choice], 1) for name in PUBLISHED),
    ]


def section(cells: list[Cell]) -> Section:
    """The table for the report; empty where no run is of LoRA on chosen weights."""
    title = "Which weights should LoRA adapt?"
    return Section(title, [], [table(cells)] if chosen(cells) else [], [])
