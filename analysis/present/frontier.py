"""The frontier of score against trainable parameters, training time and memory: figure and table."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from analysis.present.figures import METHOD_STYLE, save
from analysis.present.typeset import Picture, Section, Table
from analysis.stats import formatting
from analysis.stats.frontier import COMPARED_WITH, frontier
from analysis.stats.significance import Summary
from analysis.study.names import label
from analysis.study.rank_selection import method_of
from condlora.errors import NoFinishedRuns
from condlora.grid.cells import Cell

AXES = {  # column -> name of the axis
    "parameters": "trainable parameters, without the head",
    "time": "training time relative to LoRA",
    "memory_mib": "peak memory, MiB",
}
NAMES_IN_A_COLUMN = 30
POINTS_BELOW = 20  # methods so far below the best are named, not drawn: the rest were one spot
WIDE = 5.0  # of the panel of parameters, where most methods lie close together; the others' is 3
MARK = 0.025, 0.03  # about a mark's width and height, of that panel's axes


def table(found: pd.DataFrame, notes: list[str]) -> Table:
    """Every method, fewest parameters first; the number in front is the one in the figure."""
    rows = [
        [
            f"{n} {label(row.method)}",
            f"{row.parameters:,.0f}",
            formatting.mean_sd(Summary(row.score, row.sd, row.n), 2),
            formatting.interval(row.low, row.high, 2),
            *_compared(row),
            formatting.number(row.time, 2),
            formatting.number(row.memory_mib, 0),
            "yes" if row.on_frontier else "",
        ]
        for n, row in enumerate(found.itertuples(), start=1)
    ]
    return Table(
        name="frontier",
        title="Score against parameters, time and memory",
        header=["method", "parameters", "score", "interval", *(f"minus {label(m)}" for m in COMPARED_WITH), "time relative to LoRA", "MiB", "on the frontier"],
        rows=rows,
        data=found,
        notes=notes,
    )  # fmt: skip


def _compared(row) -> list[str]:
    """ "mean [low, high]" of the differences from each of COMPARED_WITH."""
    cells = []
    for other in COMPARED_WITH:
        mean, low, high = (getattr(row, f"minus_{other}{end}") for end in ("", "_low", "_high"))
        ends = "" if np.isnan(low) else f" {formatting.interval(low, high, 2)}"
        cells.append(formatting.number(mean, 2) + ends)
    return cells


def draw(found: pd.DataFrame, folder: Path) -> Path:
    """Score against each of AXES; a number a method, its interval over seeds, the frontier as a step line.

    Methods more than POINTS_BELOW under the best are named with their score and not drawn.
    """
    shown = found[found.score >= found.score.max() - POINTS_BELOW]
    drawn = [column for column in AXES if shown[column].notna().any()]
    ratios = [WIDE, *(3 for _ in drawn[1:]), 1.7 * -(-len(found) // NAMES_IN_A_COLUMN)]
    fig, axes = plt.subplots(
        1, len(ratios), figsize=(sum(ratios), 4.8), width_ratios=ratios, layout="constrained"
    )
    for ax, column in zip(axes, drawn, strict=False):
        ax.sharey(axes[0])
        ax.set_xlabel(AXES[column])
        _scatter(shown, column, ax)
    axes[0].set_ylabel("score, points")
    room = 0.08 * (shown.score.max() - shown.score.min()) + 0.5
    axes[0].set_ylim(shown.score.min() - room, shown.score.max() + room)  # long intervals are cut
    front = shown[shown.on_frontier].sort_values("parameters")
    axes[0].step(front.parameters, front.score, where="post", color="0.5", linewidth=0.9, zorder=1)
    least = shown.parameters[shown.parameters > 0].min()
    if (shown.parameters == 0).any():
        axes[0].set_xscale("symlog", linthresh=least, linscale=0.3)
        axes[0].set_xlim(left=0)
    else:
        axes[0].set_xscale("log")
        axes[0].set_xlim(left=0.6 * least)
        is_narrow = shown.parameters.max() < 100 * least
        axes[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if is_narrow else (1,)))
        axes[0].xaxis.set_major_formatter(EngFormatter(sep=""))
        axes[0].xaxis.set_minor_formatter(NullFormatter())
    _name(found, set(found.index) - set(shown.index), axes[-1])
    return save(fig, folder / "frontier", found)[0]


def _scatter(shown: pd.DataFrame, column: str, ax: Axes) -> None:
    places = side_by_side(shown) if column == "parameters" else shown[column]
    for number, x, row in zip(shown.index + 1, places, shown.itertuples(), strict=True):
        colour = _colour(row.method)
        if np.isnan(x):
            continue
        ax.plot([x, x], [row.low, row.high], color=colour, linewidth=0.6, alpha=0.6)
        ax.plot(
            [x], [row.score], "o", markersize=9, markeredgecolor=colour, markerfacecolor="white"
        )
        ax.annotate(
            str(number), (x, row.score), fontsize=5.5, color=colour, ha="center", va="center"
        )
    ax.grid(axis="y", color="0.92", linewidth=0.6)


def side_by_side(shown: pd.DataFrame) -> pd.Series:
    """Positions of the marks on the axis of parameters, shifted where marks of equal parameters would overlap."""
    width, height = MARK
    counts = shown.parameters[shown.parameters > 0]
    step = (counts.max() / counts.min()) ** width
    near = height * (shown.score.max() - shown.score.min())
    places = shown.parameters.astype(float)
    for _, group in shown.sort_values("score", ascending=False).groupby("parameters", sort=False):
        columns: dict[int, float] = {}  # 0, 1, -1, 2 ... -> the score of the last mark in it
        for index, score in group.score.items():
            ways = sorted(range(-len(group), len(group)), key=lambda way: (abs(way), -way))
            way = next(w for w in ways if columns.get(w, np.inf) - score >= near)
            columns[way] = score
            places[index] *= step**way
    return places


def _name(found: pd.DataFrame, below: set[int], ax: Axes) -> None:
    """The methods' names, by number, next to the panels; with the score where a method is not drawn."""
    ax.set_axis_off()
    names = [
        f"{row.Index + 1} {label(row.method)}" + f" ({row.score:.1f}, below)" * (row.Index in below)
        for row in found.itertuples()
    ]
    columns = [names[k : k + NAMES_IN_A_COLUMN] for k in range(0, len(names), NAMES_IN_A_COLUMN)]
    for k, column in enumerate(columns):
        ax.text(
            k / len(columns), 1, "\n".join(column), fontsize=6.5, va="top", transform=ax.transAxes
        )


def _colour(method: str) -> str:
    return METHOD_STYLE.get(method_of(method), {}).get("color", "0.35")


def section(cells: list[Cell], confidence: float, folder: Path) -> Section:
    """The frontier's figure and table; empty where there are two methods or fewer."""
    try:
        found, notes = frontier(cells, confidence)
    except NoFinishedRuns as error:
        return Section("The frontier: score against cost", [str(error)], [], [])
    if len(found) < 3:
        return Section("The frontier: score against cost", [], [], [])
    best = ", ".join(label(method) for method in found.method[found.on_frontier])
    alt = f"Score against trainable parameters, training time and memory for {len(found)} methods. On the frontier: {best}."
    caption = "Each number is a method of the table; lines are intervals over seeds, the step line is the frontier; where the marks of methods with equally many parameters would lie on each other, they stand side by side."
    picture = Picture(draw(found, folder), alt, caption)
    return Section("The frontier: score against cost", notes, [picture, table(found, [])], [])
