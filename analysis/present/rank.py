"""Scores and parameters over the rank r as a table, a figure and a section of the report."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from analysis.present import rank_similarity
from analysis.present.figures import COLUMN_WIDTH, METHOD_LINE, method_style, save
from analysis.present.typeset import Picture, Section, Table
from analysis.stats import formatting
from analysis.stats.rank_runs import COMPARED, RankStudy
from analysis.stats.significance import summarise
from analysis.study.names import REFERENCE, TASKS, adapter_order, label, task_order


def table(result: RankStudy) -> Table:
    """Parameters and scores of both methods at each rank, and their difference paired by seed."""
    rows = []
    runs = result.runs[result.runs.method.isin(COMPARED)]
    for task, r in sorted(set(zip(runs.task, runs.r, strict=True)), key=_task_and_rank):
        own = runs[(runs.task == task) & (runs.r == r)]
        wide = own.pivot(index="seed", columns="method", values="score_points")
        wide = wide.reindex(columns=list(COMPARED))
        counts = [_parameters(own[own.method == method]) for method in COMPARED]
        found = [wide[method].dropna() for method in COMPARED]
        found.append((wide["condlora"] - wide[REFERENCE]).dropna())
        scores = [formatting.mean_sd(summarise(points), 1) for points in found]
        rows.append([TASKS.get(task, task), str(r), *counts, *scores])
    return Table(
        name="rank",
        title="Scores and parameters over the rank",
        header=[
            "task",
            "r",
            "parameters, LoRA",
            "parameters, CondLoRA",
            "score, LoRA",
            "score, CondLoRA",
            "CondLoRA − LoRA",
        ],
        rows=rows,
        data=result.runs,
        notes=[
            "Scores in points on the test examples, mean ± sd over seeds (n); the difference is "
            "paired by seed. Parameters: trainable, the classification head not counted. alpha is "
            f"{' / '.join(f'{alpha:g}' for alpha in sorted(set(runs.alpha)))} at all ranks.",
            *result.notes,
        ],
    )


def _task_and_rank(key: tuple[str, int]) -> tuple:
    return *task_order(key[0]), key[1]


def _parameters(runs: pd.DataFrame) -> str:
    counts = sorted(set(runs.adapter_parameters))
    return " / ".join(f"{count:,}" for count in counts) or formatting.UNDEFINED


def draw(result: RankStudy, folder: Path) -> dict[str, Path]:
    """The figures, into `folder`; name -> png. None where each method has one rank alone."""
    if result.over_ranks.empty:
        return {}
    paths = {"rank": _draw_scores(result, folder)}
    if len(result.similarity):
        paths["rank_similarity"] = rank_similarity.draw(result.similarity, folder)
    return paths


def _draw_scores(result: RankStudy, folder: Path) -> Path:
    """Above: score against r; below: score against parameters. A column for each task."""
    runs = result.over_ranks
    ranks, tasks = sorted(set(runs.r)), sorted(set(runs.task), key=task_order)
    fig, axes = plt.subplots(
        2,
        len(tasks),
        figsize=(max(COLUMN_WIDTH, 2.2 * len(tasks)), 3.6),
        layout="constrained",
        sharey="col",
        squeeze=False,
    )
    drawn, methods = [], sorted(set(runs.method), key=adapter_order)
    for (top, bottom), task in zip(axes.T, tasks, strict=True):
        own = runs[runs.task == task]
        for method in methods:
            points = own[own.method == method].groupby("r", as_index=False)
            points = points.agg(
                adapter_parameters=("adapter_parameters", "mean"),
                mean=("score_points", "mean"),
                lowest=("score_points", "min"),
                highest=("score_points", "max"),
                n=("score_points", "size"),
            )
            drawn.append(points.assign(task=task, method=method))
            style = method_style(method, methods) | {"linestyle": METHOD_LINE.get(method, ":")}
            _line(top, points.r, points, style)
            _line(bottom, points.adapter_parameters, points, style)
        top.set_title(TASKS.get(task, task))
        top.set_xscale("log", base=2)
        top.set_xticks(ranks, [str(r) for r in ranks])
        top.set_xlabel("rank r")
        bottom.set_xscale("log")
        for ax in (top, bottom):
            ax.minorticks_off()
            ax.grid(axis="y", color="0.9", linewidth=0.5)
    for ax in axes[:, 0]:
        ax.set_ylabel("test score, points")
    fig.supxlabel("trainable parameters, head not counted", fontsize=9)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=7)  # fmt: skip
    return save(fig, folder / "rank", pd.concat(drawn))[0]


def _line(ax: Axes, x: pd.Series, points: pd.DataFrame, style: dict[str, str]) -> None:
    ax.errorbar(
        x,
        points["mean"],
        yerr=[points["mean"] - points.lowest, points.highest - points["mean"]],
        linewidth=1,
        markersize=4,
        capsize=2,
        elinewidth=0.7,
        **style,
    )


def section(result: RankStudy, folder: Path) -> Section:
    """Scores, similarities and parameters over the rank; figures go to `folder`."""
    title = "Does the rank matter?"
    paths = draw(result, folder)
    details = [rank_similarity.table(result.similarity)] if len(result.similarity) else []
    if not paths:
        return Section(title, result.notes, [], details)
    shown = [Picture(paths["rank"], _alt(result), _CAPTION), table(result)]
    if "rank_similarity" in paths:
        picture = rank_similarity.picture(result.similarity, paths["rank_similarity"])
        details.insert(0, picture)
    text = [*rank_similarity.statements(result.similarity), *result.notes]
    return Section(title, text, shown, details)


_CAPTION = (
    "Test score against the rank (above) and against trainable parameters (below): mean over "
    "seeds, bars from the lowest to the highest seed where there are several."
)


def _alt(result: RankStudy) -> str:
    means = result.runs.groupby(["task", "method", "r"]).score_points.mean()
    listed = (
        f"{TASKS.get(task, task)}, {label(method)}, r = {r}: {formatting.number(points, 1)}"
        for (task, method, r), points in means.items()
    )
    return f"Test scores against the rank. Means in points: {'; '.join(listed)}."
