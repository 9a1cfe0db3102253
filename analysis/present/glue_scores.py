"""Table 2: scores on the eight GLUE tasks and score differences to LoRA, as a table and a figure."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from analysis.present import score_figures, typeset
from analysis.present.figures import save
from analysis.present.typeset import Picture, Section
from analysis.stats import formatting
from analysis.stats.rules import load_rules
from analysis.stats.significance import Summary, one_example_points, summarise
from analysis.stats.task_means import task_mean
from analysis.study.names import REFERENCE, TASKS, adapter_order, label
from analysis.study.paper import published
from analysis.study.scores import AVERAGE, by_task, differences, over_seeds, own_tasks, title


def table2(runs: pd.DataFrame) -> typeset.Table:
    """Our rows, the paper's rows, and their differences."""
    paper = published("table2")
    adapters = sorted(set(runs.adapter), key=adapter_order)
    gaps = differences(runs)

    own = own_tasks(runs)

    def ours(frame: pd.DataFrame, adapter: str, column: str) -> list[str]:
        return _row(
            lambda task: formatting.mean_sd(_summary(frame, adapter, task, column), _digits(task)),
            own,
        )

    def printed(value: Callable[[str], float]) -> list[str]:
        return _row(lambda task: formatting.number(value(task), _digits(task)), own)

    rows = [[label(a), *ours(runs, a, "score_points")] for a in adapters]
    rows += [
        [f"{label(a)} − {label(REFERENCE)}", *ours(gaps, a, "points")]
        for a in adapters
        if a != REFERENCE and REFERENCE in adapters
    ]
    majority = runs.groupby("task").majority_points.first()
    rows.append(["Majority class", *printed(lambda task: majority.get(task, float("nan")))])
    rows += _test_set(runs, own)

    def published_score(adapter: str, task: str) -> float:
        if task == AVERAGE:
            return paper["mean_of_row"][adapter]
        return paper["scores"][adapter].get(task, float("nan"))

    for a in paper["scores"]:
        rows.append([f"Paper: {label(a)}", *printed(lambda t, a=a: published_score(a, t))])
        printed_average = formatting.number(paper["printed_average"][a], 2)
        rows[-1][-1:] = [formatting.number(paper["mean_of_row"][a], 3), printed_average]
    rows.append(
        [
            "Paper: CondLoRA − LoRA",
            *printed(lambda t: published_score("condlora", t) - published_score("lora", t)),
        ]
    )
    for a in (a for a in paper["scores"] if a in adapters):
        gap = printed(
            lambda t, a=a: _summary(runs, a, t, "score_points").mean - published_score(a, t)
        )
        rows.append([f"Ours − paper: {label(a)}", *gap])
    return typeset.Table(
        name="table2",
        title="Table 2: GLUE scores in points",
        header=["", *TASKS.values(), *own, "Avg.", "Avg. as printed"],
        rows=[
            row + [formatting.UNDEFINED] * (len(TASKS) + len(own) + 3 - len(row)) for row in rows
        ],
        data=runs,
        notes=[
            "Mean ± sd over seeds (n); differences of methods are paired by seed. MNLI: accuracy over matched and mismatched together (separately "
            "in the csv); CoLA: Matthews correlation; STS-B: Pearson correlation; elsewhere "
            "accuracy. Avg.: mean over the eight tasks of their means; ± is the standard deviation of "
            "a mean of one run from each task, n the smallest number of runs of a task.",
            "One test example: the points that one more correct answer adds to an accuracy, 100 / n; "
            "accuracies of two runs differ by a multiple of it. Correlations have no such step.",
            "Majority class: accuracy of a constant prediction of the most frequent training class; "
            "not defined for CoLA's and STS-B's correlations.",
            "The averages that the paper prints are not the means of its printed rows. Both are "
            "shown; Avg. is the mean of the printed row, and differences are computed from it.",
            *[f"Not GLUE tasks, in no average: {', '.join(own)}."] * bool(own),
        ],
    )


def _summary(frame: pd.DataFrame, adapter: str, task: str, column: str) -> Summary:
    """`column` over the seeds of a task, or of the mean over the eight tasks; empty where a task has no run."""
    if task != AVERAGE:
        return summarise(over_seeds(frame, adapter, task, column))
    return task_mean(by_task(frame, adapter, column) or []).summary


def _test_set(runs: pd.DataFrame, own: list[str]) -> list[list[str]]:
    """The number of test examples of each task, and what one of them is worth."""
    first = runs.groupby("task").first()
    sizes, worth = {}, {}
    for task in set(first.index) - {AVERAGE}:
        n = int(first.test_examples[task])
        sizes[task] = f"{n:,}"
        worth[task] = formatting.number(one_example_points(first.headline[task], n), 2)
    return [
        [name, *_row(lambda task, of=of: of.get(task, formatting.UNDEFINED), own)]
        for name, of in (("Test examples, n", sizes), ("One test example", worth))
    ]


def draw_differences(
    runs: pd.DataFrame, folder: Path, margin_points: float | None = None
) -> Path | None:
    """Dots: score difference to LoRA for every seed; None without a pair of runs.

    margin_points: half the width of the band of equality, if it is not that of claims.yaml.
    """
    gaps = differences(runs)
    if gaps.empty:
        return None
    tasks = [t for t in [*TASKS, *own_tasks(gaps)] if t in set(gaps.task)]
    margin_points = load_rules(margin_points)[0].margin_points
    fig = score_figures.draw(gaps, {task: title(task) for task in tasks}, margin_points)
    return save(fig, folder / "table2_differences", gaps)[0]


def section(
    runs: pd.DataFrame, tests: typeset.Table, margin_points: float, folder: Path
) -> Section:
    """Table 2, the dots of the differences and their `tests`; the figure goes to `folder`."""
    path = draw_differences(runs, folder, margin_points)
    pictures = []
    if path:
        gaps = differences(runs)
        means = [
            f"{title(task)} {formatting.number(gaps.points[gaps.task == task].mean(), 1)}"
            for task in [*TASKS, *own_tasks(gaps)]
            if task in set(gaps.task)
        ]
        alt = "Score difference to LoRA by task, one dot per seed; means in points: " + ", ".join(
            means
        )
        caption = "Score difference to LoRA, paired by seed; one dot per seed."
        pictures = [Picture(path, alt, caption)]
    return Section(
        "Table 2: does CondLoRA score as LoRA does?", [], [table2(runs), *pictures, tests], []
    )


def _row(text: Callable[[str], str], own: list[str]) -> list[str]:
    return [text(task) for task in [*TASKS, *own, AVERAGE]]


def _digits(task: str) -> int:
    return 2 if task == AVERAGE else 1  # as the paper prints them
