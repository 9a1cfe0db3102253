"""Table 4: trainable parameters, training speed, memory and time.

Takes the records of finished runs. Speeds are compared only between runs of the same task and
seed: tasks differ in the length of their sentences, and so in examples a second.
"""

import math

import pandas as pd
from omegaconf import DictConfig

from analysis.present import typeset
from analysis.present.figures import label
from analysis.present.typeset import Section
from analysis.stats.significance import summarise
from analysis.study.selection import (
    REFERENCE,
    TASKS,
    adapter_order,
    against_reference,
    open_study,
    published,
    task_order,
)
from condlora.commands.cli import command
from condlora.grid.cells import Cell

OF_ITS_OWN = (
    "train_seconds",
    "evaluation_seconds",
    "total_seconds",
    "peak_memory_mib",
)


def costs(cells: list[Cell]) -> pd.DataFrame:
    """One row per finished run: parameters, speed, seconds and memory, as recorded.

    Seconds and memory of runs that were trained together are the fleet's and no run's: NaN. Their speed is that of some
    steps which each made alone.
    """
    rows = []
    for cell in cells:
        record = cell.record
        if record.get("fleet", 1) > 1:
            record = record | dict.fromkeys(OF_ITS_OWN, math.nan)
        rows.append(
            {
                "task": cell.task,
                "adapter": cell.adapter,
                "seed": cell.seed,
                "layers": record["backbone"]["layers"],
                "adapter_parameters": record["parameters"]["adapter"],
                "trainable_parameters": record["parameters"]["trainable"],
                "backbone_parameters": record["parameters"]["backbone"],
                "train_examples_per_second": record["train_examples_per_second"],
                "merged_speed_over_backbone": _number(record.get("merged_speed_over_backbone")),
                "train_seconds": record["train_seconds"],
                "evaluation_seconds": record["evaluation_seconds"],
                "total_seconds": record["total_seconds"],
                "peak_memory_mib": record["peak_memory_mib"],
                "device": record["environment"]["device"],
                "conditions": conditions(record["environment"]),
            }
        )
    return pd.DataFrame(rows)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def conditions(environment: dict) -> str:
    """What a speed depends on besides the method."""
    keys = ("device", "threads", "processes", "precision", "attention")
    return ", ".join(f"{key} {environment.get(key)}" for key in keys)


def ratios(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """`column` of each other method over LoRA's, for each task and seed that both finished."""
    return against_reference(runs, column, "div", "ratio")


def speed_ratios(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """As `ratios`, of the pairs alone whose two runs were timed under the same conditions."""
    return pd.concat([ratios(alike, column) for _, alike in runs.groupby("conditions")])


def overall_speed(runs: pd.DataFrame) -> dict[str, float]:
    """Training examples over training seconds of each method, all its runs together.

    Only tasks and seeds that every method finished count, so that each is timed on the same work.
    """
    examples = runs.train_examples_per_second * runs.train_seconds
    work = runs.assign(examples=examples)
    shared = work.groupby(["task", "seed"]).filter(
        lambda group: group.adapter.nunique() == runs.adapter.nunique()
    )
    totals = shared.groupby("adapter")[["examples", "train_seconds"]].sum(min_count=1)
    return (totals.examples / totals.train_seconds).to_dict()


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
                typeset.number(smaller.ratio[smaller.adapter == adapter].mean(), 4),
                _counts(own.trainable_parameters),
                typeset.number(overall.get(adapter), 1),
                _ratio(speed[speed.adapter == adapter].ratio, 3),
                _ratio(own.merged_speed_over_backbone.dropna(), 3),
                typeset.number(own.peak_memory_mib.max(), 0),
                typeset.number(own.train_seconds.sum(min_count=1), 0),
                typeset.number(own.total_seconds.sum(min_count=1), 0),
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
                typeset.UNDEFINED if is_reference else typeset.number(count / reference, 4),
                typeset.UNDEFINED,
                typeset.number(rate[adapter], 3),
                typeset.UNDEFINED
                if is_reference
                else typeset.number(rate[adapter] / rate[REFERENCE], 3),
                *[typeset.UNDEFINED] * 5,
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
                    typeset.spread(summarise(own.train_examples_per_second), 1),
                    _ratio(ratio, 3),
                    typeset.spread(summarise(own.train_seconds), 1),
                    typeset.number(own.peak_memory_mib.max(), 0),
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
    return typeset.spread(summarise(values), digits)


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    runs = costs(study.done)
    for table in (table4(runs), table_by_task(runs)):
        typeset.write(table, study.folder / "tables")
    print(f"Table 4: {study.folder / 'tables' / 'table4.md'}")


if __name__ == "__main__":
    main()
