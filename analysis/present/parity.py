"""The parity experiment on the page: the gap over training steps, the dial, the verdict by its rule."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path

import pandas as pd

from analysis.present import typeset
from analysis.present.parity_figures import CONFIDENCE, draw_dial, draw_gap
from analysis.present.typeset import Section
from analysis.stats import formatting, parity
from analysis.stats.parity import Contrast, Primary
from analysis.stats.significance import summarise, t_interval
from analysis.study.names import label
from analysis.study.parity import Grids, first_start, progress, rule_commits, scores
from analysis.study.scores import title

RULES = "configs/analysis/parity_rules.yaml"


def section(grids: Grids, figures: Path) -> Section:
    """The whole experiment as far as it has been run."""
    runs, rules = scores(grids), grids.rules
    found = parity.primary(runs, rules)
    turned = parity.dial(runs, rules)
    pictures = [draw_gap(runs, rules, figures)] if parity.gap_curve(runs, rules) else []
    pictures += [draw_dial(turned, runs, figures)] if turned.task.nunique() else []
    tables = [curve_table(runs, rules)] if parity.curve_parts(runs) else []
    tables += [contrast_table(runs, turned, rules)]
    return Section(
        title="Does CondLoRA end where LoRA ends?",
        text=[verdict_text(found, rules), *provenance(grids)],
        shown=[*pictures, *[table for table in tables if table.rows], progress_table(grids)],
        details=[],
    )


def verdict_text(found: Primary, rules: dict) -> str:
    """One paragraph: the verdict of the primary endpoint, its estimate, and why."""
    rule = rules["primary"]
    start = f"Primary endpoint ({RULES}, `primary`): {found.verdict}."
    if found.steps is None:
        return (
            f"{start} LoRA and CondLoRA do not yet have all their runs on {_names(rule['tasks'])} at any number of steps; "
            "what is finished is shown below without a verdict."
        )
    gains = ", ".join(
        f"{title(task)} {formatting.number(gain, 2)}" for task, gain in found.gains.items()
    )
    mean = found.contrast.mean
    return (
        f"{start} At {found.steps:,} steps CondLoRA − LoRA is {formatting.number(mean.mean, 2)} points, 90 % interval "
        f"{formatting.interval(*mean.interval(0.9), 2)}, 95 % {formatting.interval(*mean.interval(CONFIDENCE), 2)}, margin "
        f"±{rule['margin_points']:g}. Points that LoRA gained in its last doubling of the steps (at its plateau below "
        f"{rules['plateau']['points_per_doubling']:g}): {gains}."
    )


def provenance(grids: Grids) -> list[str]:
    """When the rules were fixed, and when the first of the runs they judge was started."""
    commits = rule_commits()
    if not commits:
        return ["This is no git checkout, so the commits of the rules are not shown."]
    changes = "; ".join(f"{commit} of {date}" for commit, date in commits)
    started = first_start(grids)
    amended = " ".join(
        f"Amendment of {one['date']}: {one['change']} ({one['known_then']})."
        for one in grids.rules.get("amended", [])
    )
    return [f"Commits of the rules: {changes}. {_order(commits[0][1], started)} {amended}"]


def _order(committed: str, started: str | None) -> str:
    """Whether the rules were there before the first run that they judge."""
    if started is None:
        return "No run has been started."
    is_before = datetime.fromisoformat(committed) < datetime.fromisoformat(started)
    return f"The first run was started {'after' if is_before else 'BEFORE'} the first of them, on {started}."


def curve_table(runs: pd.DataFrame, rules: dict) -> typeset.Table:
    """A row for each task and number of steps: both methods, their difference, LoRA's gain for each doubling."""
    method, reference = rules["primary"]["difference"].values()
    rows, data = [], []
    for steps, gap in parity.gap_curve(runs, rules).items():
        gains = parity.doubling_gains(runs, rules, steps)
        for task, values in gap.by_task.items():
            two = [
                summarise(parity.of_task(runs, name, str(steps), task))
                for name in (reference, method)
            ]
            found, (low, high) = summarise(values), t_interval(values, CONFIDENCE)
            rows.append(
                [
                    title(task), f"{steps:,}", *(formatting.mean_sd(one, 2) for one in two),
                    formatting.mean_sd(found, 2), formatting.interval(low, high, 2), formatting.number(gains[task], 2),
                ]
            )  # fmt: skip
            numbers = {
                "task": task,
                "steps": steps,
                "mean": found.mean,
                "sd": found.sd,
                "n": found.n,
            }
            data.append(numbers | {"low": low, "high": high, "lora_gain_per_doubling": gains[task]})
    return typeset.Table(
        name="parity_curve",
        title="CondLoRA and LoRA over training steps, test scores in points",
        header=["task", "steps", label(reference), label(method), "difference, paired by seed", "95 %", "LoRA's gain per doubling"],
        rows=rows,
        data=pd.DataFrame(data),
        notes=["Mean ± standard deviation (seeds). A run that collapsed or diverged counts, see the rules."],
    )  # fmt: skip


def contrast_table(runs: pd.DataFrame, turned: pd.DataFrame, rules: dict) -> typeset.Table:
    """Every secondary comparison that has runs; no verdict rests on one of them alone."""
    named: list[tuple[str, Contrast]] = [
        ("slope of the gap per doubling", parity.slope(runs, rules))
    ]
    for (kind, k), found in parity.dial_contrasts(turned, rules).items():
        other = "one pair for all layers" if kind == "sharing" else "the shared pair without W0"
        named.append((f"{kind}: CondLoRA, a pair for every {_layers(k)}, minus {other}", found))
    named += [
        (f"{label(name)} − CondLoRA, 4,800 steps", found)
        for name, found in parity.others(runs, rules).items()
    ]
    named.append(("CondLoRA − LoRA, MPNet-base", parity.gap(runs, rules, "paper_size")))
    small = parity.gap(runs, rules, "appendix", rules["secondary"]["appendix"])
    named.append(("CondLoRA − LoRA, appendix (in no verdict)", small))
    rows, data = [], []
    for name, found in named:
        by_task = {task: summarise(values) for task, values in found.by_task.items()}
        if not by_task:
            continue
        shown = "; ".join(f"{title(t)} {formatting.mean_sd(s, 2)}" for t, s in by_task.items())
        mean = found.mean
        low, high = mean.interval(CONFIDENCE) if mean else (math.nan, math.nan)
        centre = mean.mean if mean else math.nan
        rows.append([name, formatting.number(centre, 2), formatting.interval(low, high, 2), shown])
        data.append({"comparison": name, "mean": centre, "low": low, "high": high})
    return typeset.Table(
        name="parity_secondary",
        title="Secondary comparisons, points",
        header=["comparison", "mean over tasks", "95 %", "by task: mean ± sd (seeds)"],
        rows=rows,
        data=pd.DataFrame(data),
        notes=["Described, unadjusted; the mean is given where all tasks have runs."],
    )


def progress_table(grids: Grids) -> typeset.Table:
    """What has been run of what was planned."""
    found = progress(grids)
    rows = [[r.part, f"{r.steps:,}", str(r.planned), str(r.done)] for r in found.itertuples()]
    return typeset.Table(
        name="parity_progress",
        title="Runs of the experiment",
        header=["part", "steps", "planned", "counted"],
        rows=rows,
        data=found,
        notes=[f"Where time is short, parts are left out in this order: {', '.join(grids.rules['cut_first'])}."],
    )  # fmt: skip


def _layers(k: int) -> str:
    return "layer" if k == 1 else f"{k} layers"


def _names(tasks: list[str]) -> str:
    return ", ".join(map(title, tasks))
