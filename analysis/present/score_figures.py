"""The figure of Table 2: score differences to LoRA, by task for few methods, else by method."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.present.figures import METHOD_STYLE, method_style
from analysis.study.names import adapter_order, label

FEW_METHODS = 3  # more have a row each
TICKS = (0, 5, 10, 20, 50)  # points, both ways; the scale is a logarithm beyond the first


def draw(gaps: pd.DataFrame, tasks: dict[str, str], margin_points: float) -> Figure:
    """Dots: `points` of each row's adapter, task and seed.

    tasks: those drawn, in order, with their titles; margin_points: half the width of the band of equality.
    """
    gaps = gaps[gaps.task.isin(tasks)]
    adapters = sorted(set(gaps.adapter), key=adapter_order)
    drawn = _by_task if len(adapters) <= FEW_METHODS else _by_method
    return drawn(gaps, adapters, tasks, margin_points)


def _within(ax: Axes, margin_points: float) -> None:
    """The band of equality."""
    within = f"within {margin_points:g} point{'s' * (margin_points != 1)}"
    ax.axvspan(-margin_points, margin_points, color="0.92", label=within)
    ax.axvline(0, color="0.4", linewidth=0.8)


def _by_task(
    gaps: pd.DataFrame, adapters: list[str], tasks: dict[str, str], margin_points: float
) -> Figure:
    """A row a task."""
    rows = max(0.32 * len(tasks), 0.17 * len(adapters))  # room for the legend
    fig, ax = plt.subplots(figsize=(5.2, rows + 0.9), layout="constrained")
    _within(ax, margin_points)
    for n, adapter in enumerate(adapters):
        chosen = gaps[gaps.adapter == adapter]
        # Seeds below each other, so that equal differences do not hide each other.
        height = (
            chosen.task.map(list(tasks).index) + 0.15 * n + 0.07 * chosen.groupby("task").cumcount()
        )
        style = method_style(adapter, adapters)
        ax.scatter(chosen.points, height, s=22, linewidths=0, alpha=0.8, **style)
    ax.set_yticks(range(len(tasks)), tasks.values())
    ax.set_ylim(len(tasks) - 0.3, -0.4)
    ax.set_xlabel("score difference to LoRA, paired by seed, points")
    ax.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return fig


def _by_method(
    gaps: pd.DataFrame, adapters: list[str], tasks: dict[str, str], margin_points: float
) -> Figure:
    """A panel per task with a row per method, in the order of names: three seeds do not rank methods."""
    colours = {a: METHOD_STYLE.get(a, {}).get("color", "0.3") for a in adapters}
    fig, axes = plt.subplots(
        1,
        len(tasks),
        figsize=(1.7 + 2.4 * len(tasks), 0.9 + 0.16 * len(adapters)),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for ax, (task, name) in zip(axes[0], tasks.items(), strict=True):
        _within(ax, margin_points)
        own = gaps[gaps.task == task]
        rows = own.adapter.map(adapters.index)
        ax.scatter(own.points, rows, s=14, linewidths=0, alpha=0.7, c=own.adapter.map(colours))
        ax.grid(axis="y", color="0.92", linewidth=0.5)
        ax.set_axisbelow(True)
        ax.set_title(name)
    ax.set_xscale("symlog", linthresh=TICKS[1])
    low, high = ax.get_xlim()
    ticks = sorted(t for t in {*TICKS, *(-t for t in TICKS)} if low <= t <= high)
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_yticks(range(len(adapters)), [label(a) for a in adapters])
    ax.set_ylim(len(adapters) - 0.4, -0.6)
    for ax in axes[0]:
        ax.minorticks_off()
    fig.supxlabel("score difference to LoRA, paired by seed, points", fontsize=9)
    return fig
