"""The figures of the parity experiment: the gap over training steps with the scores, and the dial."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from analysis.present.figures import method_style, save
from analysis.present.typeset import Picture
from analysis.stats import parity
from analysis.stats.parity import Contrast
from analysis.stats.significance import t_interval
from analysis.study.names import task_order
from analysis.study.scores import title

TASK_COLOURS = {"sst2": "#0072B2", "stsb": "#009E73", "cola": "#CC79A7"}  # Okabe and Ito
CONFIDENCE = 0.95


def draw_gap(runs: pd.DataFrame, rules: dict, figures: Path) -> Picture:
    """The gap over steps with intervals, and next to it the scores of both methods on each task."""
    curve = parity.gap_curve(runs, rules)
    tasks = [
        t for t in rules["primary"]["tasks"] if any(t in one.by_task for one in curve.values())
    ]
    fig, axes = plt.subplots(
        1, 1 + len(tasks), figsize=(3.6 + 2.1 * len(tasks), 3.0), layout="constrained", sharex=True,
        width_ratios=[1.6] + [1] * len(tasks),
    )  # fmt: skip
    drawn = _gap_panel(axes[0], curve, tasks, rules["primary"]["margin_points"])
    for ax, task in zip(axes[1:], tasks, strict=True):
        drawn += _score_panel(ax, runs, task, rules)
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_xticks(list(curve), [f"{n:,}" for n in curve])
        ax.minorticks_off()
    fig.supxlabel("training steps of 16 examples (separate runs, linear decay)", fontsize=9)
    stem = figures / "parity_gap"
    save(fig, stem, pd.DataFrame(drawn))
    return Picture(
        stem.with_suffix(".png"),
        alt="CondLoRA minus LoRA over training steps, and the scores of both on each task",
        caption=(
            "Left: CondLoRA − LoRA in points of the test set, paired by seed; a dot is a seed, a line the mean of a task, bars "
            "95 % intervals (Student), black the mean over the tasks. Grey: the margin of the rule. Right: the scores. The "
            "learning rates of each method were searched at each number of steps."
        ),
    )


def _gap_panel(ax: Axes, curve: dict[int, Contrast], tasks: list[str], margin: float) -> list[dict]:
    ax.axhspan(-margin, margin, color="0.92")
    ax.axhline(0, color="0.4", linewidth=0.8)
    rows = []
    for n, task in enumerate(tasks):
        own = {steps: one.by_task[task] for steps, one in curve.items() if task in one.by_task}
        shift = {steps: steps * 2 ** (0.12 * (n - 1)) for steps in own}
        colour = TASK_COLOURS.get(task, "0.5")
        for steps, values in own.items():
            ax.scatter(
                [shift[steps]] * len(values), values, s=9, color=colour, alpha=0.5, linewidths=0
            )
            low, high = t_interval(values, CONFIDENCE)
            mean = float(values.mean())
            _bar(ax, shift[steps], mean, low, high, colour)
            rows.append({"panel": "gap", "task": task, "steps": steps, "points": mean, "low": low, "high": high, "n": len(values)})  # fmt: skip
        ax.plot(
            list(shift.values()), [v.mean() for v in own.values()], color=colour, label=title(task)
        )
    means = {steps: one.mean for steps, one in curve.items() if one.mean is not None}
    if means:
        at = [steps * 2**0.28 for steps in means]
        ax.plot(
            at,
            [m.mean for m in means.values()],
            color="black",
            marker="D",
            markersize=4,
            label="mean over tasks",
        )
        for x, (steps, m) in zip(at, means.items(), strict=True):
            low, high = m.interval(CONFIDENCE)
            _bar(ax, x, m.mean, low, high, "black")
            rows.append({"panel": "gap", "task": "mean", "steps": steps, "points": m.mean, "low": low, "high": high, "n": m.n})  # fmt: skip
    ax.set_ylabel("CondLoRA − LoRA, points")
    ax.legend(frameon=False, fontsize=7)
    return rows


def _bar(ax: Axes, x: float, mean: float, low: float, high: float, colour: str) -> None:
    if not math.isnan(low):
        ax.errorbar(x, mean, [[mean - low], [high - mean]], color=colour, capsize=2, linewidth=1)


def _score_panel(ax: Axes, runs: pd.DataFrame, task: str, rules: dict) -> list[dict]:
    methods, rows = list(rules["primary"]["difference"].values())[::-1], []
    for name in methods:
        own = runs[(runs.adapter == name) & (runs.task == task) & runs.part.str.isdigit()]
        by_steps = own.groupby("steps").points
        style = method_style(name, methods)
        ax.scatter(own.steps, own.points, s=9, alpha=0.5, linewidths=0, color=style["color"])
        ax.plot(by_steps.mean(), **style, markersize=4)
        rows += [
            {"panel": name, "task": task, "steps": steps, "points": values.mean(), "n": len(values)}
            for steps, values in by_steps
        ]
    ax.set_title(title(task))
    ax.legend(frameon=False, fontsize=7)
    return rows


def draw_dial(turned: pd.DataFrame, runs: pd.DataFrame, figures: Path) -> Picture:
    """The scores over the number of layers that share a pair, with LoRA's as a line."""
    tasks = sorted(turned.task.unique(), key=task_order)
    fig, axes = plt.subplots(
        1, len(tasks), figsize=(1 + 2.6 * len(tasks), 2.8), layout="constrained", squeeze=False
    )
    methods = list(turned.method.unique())
    for ax, task in zip(axes[0], tasks, strict=True):
        for name in methods:
            own = turned[(turned.method == name) & (turned.task == task)]
            style = method_style(name, methods)
            ax.scatter(
                own.layers_per_map,
                own.points,
                s=9,
                alpha=0.5,
                linewidths=0,
                color=style.get("color"),
            )
            ax.plot(own.groupby("layers_per_map").points.mean(), **style, markersize=4)
        lora = runs[(runs.adapter == "lora") & (runs.task == task) & (runs.part == "4800")].points
        if len(lora):
            ax.axhline(
                lora.mean(),
                **{k: v for k, v in method_style("lora", ["lora"]).items() if k != "marker"},
            )
        ax.set_xticks(sorted(turned.layers_per_map.unique()))
        ax.set_title(title(task))
    axes[0][0].legend(frameon=False, fontsize=7)
    axes[0][0].set_ylabel("test score, points")
    fig.supxlabel("layers that share a pair of maps", fontsize=9)
    stem = figures / "parity_dial"
    save(fig, stem, turned)
    return Picture(
        stem.with_suffix(".png"),
        alt="Scores over the number of layers that share a pair of maps",
        caption="With one layer to a pair CondLoRA can make every update of LoRA; with six all layers share. Dots are seeds.",
    )
