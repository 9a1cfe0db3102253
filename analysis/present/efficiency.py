"""Table 4: trainable parameters, training speed, memory and time, as tables.

Speeds are compared only between runs of the same task and seed: tasks differ in the length of their sentences, and so in
examples per second.
"""

import pandas as pd

from analysis.present import typeset
from analysis.present.typeset import Section
from analysis.stats import formatting
from analysis.stats.significance import summarise
from analysis.study.costs import overall_speed, ratios, speed_ratios
from analysis.study.names import REFERENCE, TASKS, adapter_order, label, task_order
from analysis.study.paper import published


def table4(runs: pd.DataFrame) -> typeset.Table:
    """One row a method over all its runs, then the paper's rows."""
    paper = published("table4")
    speed = speed_ratios(runs, "train_examples_per_second")
    smaller = ratios(runs, "adapter_parameters")
    overall = overall_speed(runs)
    rows = []
    for adapter in sorted(set(runs.adapter), key=adapter_order):
        own = runs[runs.adapter == adapter]
        rows.append(
            [
                label(adapter),
                _counts(own.adapter_parameters),
                formatting.number(smaller.ratio[smaller.adapter == adapter].mean(), 4),
                _counts(own.trainable_parameters),
                formatting.number(overall.get(adapter), 1),
                _ratio(speed[speed.adapter == adapter].ratio, 3),
                _ratio(own.merged_speed_over_backbone.dropna(), 3),
                formatting.number(own.peak_memory_mib.max(), 0),
                formatting.number(own.train_seconds.sum(min_count=1), 0),
                formatting.number(own.total_seconds.sum(min_count=1), 0),
                str(len(own)),
            ]
        )
    for adapter, count in paper["trainable_parameters"].items():
        rate = paper["train_examples_per_second"]
        reference = paper["trainable_parameters"][REFERENCE]
        is_reference = adapter == REFERENCE
        rows.append(
            [
                f"Paper: {label(adapter)}",
                f"{count:,}",
                formatting.UNDEFINED if is_reference else formatting.number(count / reference, 4),
                formatting.UNDEFINED,
                formatting.number(rate[adapter], 3),
                formatting.UNDEFINED
                if is_reference
                else formatting.number(rate[adapter] / rate[REFERENCE], 3),
                *[formatting.UNDEFINED] * 5,
            ]
        )
    return typeset.Table(
        name="table4",
        title="Table 4: parameters and speed",
        header=[
            "",
            "adapter parameters",
            "ratio to LoRA",
            "with head",
            "train examples/s",
            "ratio to LoRA, same task and seed",
            "merged, speed over the backbone's",
            "peak memory, MiB",
            "training, s",
            "whole run, s",
            "runs",
        ],
        rows=rows,
        data=runs,
        notes=[
            "Adapter parameters: trainable, the classification head not counted, as in the paper; "
            "with head: a range where tasks have heads of different sizes. Ratio of speeds: mean ± "
            "sd over pairs of runs (n) with the same device, threads, precision and attention. Merged: "
            "in inference, over the backbone without an adapter timed by turns on the same batch, mean "
            "± sd over runs; none for methods that add tokens, which cannot be merged. Memory: the largest of any run; seconds: summed over the runs; none of these for "
            "runs that were trained together (runtime.fleet), whose speed is that of some steps made alone.",
            "Train examples/s: all examples over all training seconds of the tasks and seeds that "
            "every method finished; it depends on the tasks' sentence lengths, so see also "
            "table4_by_task. The paper does not state its task. Paper: RoBERTa-base on "
            f"{paper['device']}; its ratios are computed from its printed numbers.",
        ],
    )


def table_by_task(runs: pd.DataFrame) -> typeset.Table:
    """Speed, memory and seconds task by task."""
    speed = speed_ratios(runs, "train_examples_per_second")
    rows = []
    for task in sorted(set(runs.task), key=task_order):
        for adapter in sorted(set(runs.adapter[runs.task == task]), key=adapter_order):
            own = runs[(runs.task == task) & (runs.adapter == adapter)]
            ratio = speed[(speed.task == task) & (speed.adapter == adapter)].ratio
            rows.append(
                [
                    TASKS.get(task, task),
                    label(adapter),
                    formatting.mean_sd(summarise(own.train_examples_per_second), 1),
                    _ratio(ratio, 3),
                    formatting.mean_sd(summarise(own.train_seconds), 1),
                    formatting.number(own.peak_memory_mib.max(), 0),
                ]
            )
    return typeset.Table(
        name="table4_by_task",
        title="Table 4 by task: training speed",
        header=[
            "task",
            "method",
            "train examples/s",
            "ratio to LoRA, same seed",
            "training, s",
            "peak memory, MiB",
        ],
        rows=rows,
        data=speed,
        notes=["Mean ± sd over seeds (n); memory: the largest of any seed."],
        text_columns=2,
    )


def section(runs: pd.DataFrame) -> Section:
    """Table 4, and task by task for who opens it."""
    return Section(
        "Table 4: is CondLoRA smaller and faster?", [], [table4(runs)], [table_by_task(runs)]
    )


def _counts(parameters: pd.Series) -> str:
    smallest, largest = parameters.min(), parameters.max()
    return f"{smallest:,}" if smallest == largest else f"{smallest:,}–{largest:,}"


def _ratio(values: pd.Series, digits: int) -> str:
    return formatting.mean_sd(summarise(values), digits)
