"""Table 2: scores on the eight GLUE tasks, with mean, sd and number of seeds.

Takes the records of finished runs; differences between methods are paired by task and seed.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from analysis.present import score_figures, typeset
from analysis.present.figures import label, save
from analysis.present.typeset import Picture, Section
from analysis.stats.rules import load_rules
from analysis.stats.significance import Summary, one_example_points, summarise
from analysis.study.selection import (
    REFERENCE,
    TASKS,
    adapter_order,
    against_reference,
    open_study,
    published,
)
from condlora.commands.cli import command
from condlora.grid.cells import Cell

AVERAGE = "average"
POINTS = 100  # the paper gives scores in points


def scores(cells: list[Cell]) -> pd.DataFrame:
    """One row per finished run: task, adapter, seed, headline score in points, and every metric.

    The row of the `average` task is a seed's mean over the eight tasks; it exists only where that
    seed finished all eight. Metrics are fractions, as recorded.
    """
    rows = []
    for cell in cells:
        record = cell.record
        row = {
            "task": cell.task,
            "adapter": cell.adapter,
            "seed": cell.seed,
            "headline": record["headline"],
            "score_points": POINTS * record["test"][record["headline"]],
            "majority_points": _points(record["data"]["majority_score"]),
            "test_examples": record["data"]["counts"]["test"],
            "validation_score_points": POINTS * record["validation"][record["headline"]],
        }
        rows.append(row | {f"test_{name}": value for name, value in record["test"].items()})
    runs = pd.DataFrame(rows)
    of_paper = runs[runs.task.isin(list(TASKS))]
    averages = [
        {"task": AVERAGE, "adapter": adapter, "seed": seed, "score_points": group.mean()}
        for (adapter, seed), group in of_paper.groupby(["adapter", "seed"]).score_points
        if set(of_paper.task[group.index]) == set(TASKS)
    ]
    return pd.concat([runs, pd.DataFrame(averages)], ignore_index=True) if averages else runs


def differences(runs: pd.DataFrame) -> pd.DataFrame:
    """Score of each other method less LoRA's, in points, for each task and seed both finished."""
    return against_reference(runs, "score_points", "sub", "points")


def of(frame: pd.DataFrame, adapter: str, task: str, column: str) -> Summary:
    """`column` of one method on one task, over seeds."""
    return summarise(
        frame.loc[(frame.adapter == adapter) & (frame.task == task), column].to_numpy()
    )


def table2(runs: pd.DataFrame) -> typeset.Table:
    """Our rows, the paper's rows, and their differences."""
    paper = published("table2")
    adapters = sorted(set(runs.adapter), key=adapter_order)
    gaps = differences(runs)

    own = own_tasks(runs)

    def ours(frame: pd.DataFrame, adapter: str, column: str) -> list[str]:
        return _row(
            lambda task: typeset.spread(of(frame, adapter, task, column), _digits(task)), own
        )

    def printed(value: Callable[[str], float]) -> list[str]:
        return _row(lambda task: typeset.number(value(task), _digits(task)), own)

    rows = [[label(a), *ours(runs, a, "score_points")] for a in adapters]
    rows += [
        [f"{label(a)} − {label(REFERENCE)}", *ours(gaps, a, "points")]
        for a in adapters
        if a != REFERENCE and REFERENCE in adapters
    ]
    majority = runs.groupby("task").majority_points.first()
    rows.append(["Commonest class", *printed(lambda task: majority.get(task, float("nan")))])
    rows += _test_set(runs, own)

    def published_score(adapter: str, task: str) -> float:
        if task == AVERAGE:
            return paper["mean_of_row"][adapter]
        return paper["scores"][adapter].get(task, float("nan"))

    for a in paper["scores"]:
        rows.append([f"Paper: {label(a)}", *printed(lambda t, a=a: published_score(a, t))])
        printed_average = typeset.number(paper["printed_average"][a], 2)
        rows[-1][-1:] = [typeset.number(paper["mean_of_row"][a], 3), printed_average]
    rows.append(
        [
            "Paper: CondLoRA − LoRA",
            *printed(lambda t: published_score("condlora", t) - published_score("lora", t)),
        ]
    )
    for a in (a for a in paper["scores"] if a in adapters):
        gap = printed(lambda t, a=a: of(runs, a, t, "score_points").mean - published_score(a, t))
        rows.append([f"Ours − paper: {label(a)}", *gap])
    return typeset.Table(
        name="table2",
        title="Table 2: GLUE scores in points",
        header=["", *TASKS.values(), *own, "Avg.", "Avg. as printed"],
        rows=[row + [typeset.UNDEFINED] * (len(TASKS) + len(own) + 3 - len(row)) for row in rows],
        data=runs,
        notes=[
            "Mean ± sd over seeds (n); differences of methods are paired by seed. MNLI: accuracy over matched and mismatched together (apart "
            "in the csv); CoLA: Matthews correlation; STS-B: Pearson correlation; elsewhere "
            "accuracy. Avg.: the mean over the eight tasks of each seed that finished all eight.",
            "One test example: what one more right answer adds to an accuracy, 100 / n points, so that "
            "a smaller difference in one run is none; a correlation has no such step.",
            "Commonest class: accuracy of always answering the commonest training class; "
            "not defined for CoLA's and STS-B's correlations.",
            "The averages the paper prints are not the means of the rows it prints. Both are "
            "shown: Avg. is the mean of the printed row, and differences use it.",
            *[f"Not of GLUE and no part of an average: {', '.join(own)}."] * bool(own),
        ],
    )


def own_tasks(runs: pd.DataFrame) -> list[str]:
    """Tasks that are not the paper's: a user's own, shown beside GLUE's and averaged with none."""
    return sorted(set(runs.task) - {*TASKS, AVERAGE})


def _test_set(runs: pd.DataFrame, own: list[str]) -> list[list[str]]:
    """The number of test examples of each task, and what one of them is worth."""
    first = runs.groupby("task").first()
    sizes, worth = {}, {}
    for task in set(first.index) - {AVERAGE}:
        n = int(first.test_examples[task])
        sizes[task] = f"{n:,}"
        worth[task] = typeset.number(one_example_points(first.headline[task], n), 2)
    return [
        [name, *_row(lambda task, of=of: of.get(task, typeset.UNDEFINED), own)]
        for name, of in (("Test examples, n", sizes), ("One test example", worth))
    ]


def draw_differences(
    runs: pd.DataFrame, folder: Path, margin_points: float | None = None
) -> Path | None:
    """Dots: score of each method less LoRA's for every seed; None without a pair of runs.

    margin_points: half the width of the band of equality, where it is not the claims' own.
    """
    gaps = differences(runs)
    if gaps.empty:
        return None
    tasks = [t for t in [*TASKS, *own_tasks(gaps), AVERAGE] if t in set(gaps.task)]
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
            f"{title(task)} {typeset.number(gaps.points[gaps.task == task].mean(), 1)}"
            for task in [*TASKS, *own_tasks(gaps)]
            if task in set(gaps.task)
        ]
        alt = "Score less LoRA's by task, one dot per seed; means in points: " + ", ".join(means)
        caption = "Score less LoRA's of the same seed; one dot per seed."
        pictures = [Picture(path, alt, caption)]
    return Section(
        "Table 2: does CondLoRA score as LoRA does?", [], [table2(runs), *pictures, tests], []
    )


def title(task: str) -> str:
    """A task as tables name it."""
    return "Avg." if task == AVERAGE else TASKS.get(task, task)


def _row(text: Callable[[str], str], own: list[str]) -> list[str]:
    return [text(task) for task in [*TASKS, *own, AVERAGE]]


def _digits(task: str) -> int:
    return 2 if task == AVERAGE else 1  # as the paper prints them


def _points(fraction: float | None) -> float:
    return float("nan") if fraction is None else POINTS * fraction


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    runs = scores(study.done)
    typeset.write(table2(runs), study.folder / "tables")
    draw_differences(runs, study.folder / "figures", cfg.margin_points)
    print(f"Table 2: {study.folder / 'tables' / 'table2.md'}")


if __name__ == "__main__":
    main()
