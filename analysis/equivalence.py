"""Does CondLoRA score as LoRA does: differences paired by seed, with their spread and tests.

Takes the scores of finished runs and their predictions on the test set. Seeds and test examples are two
sources of chance; each has its own interval, and the tests are over seeds.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from analysis.glue_scores import AVERAGE, POINTS, differences, scores, title
from analysis.present import typeset
from analysis.present.figures import label
from analysis.stats.rules import Numbers, load_rules, runs_to_settle_equality
from analysis.stats.significance import (
    Summary,
    bootstrap_interval,
    holm,
    paired_test,
    percentiles,
    resampled_scores,
    summarise,
    t_interval,
)
from analysis.study.selection import REFERENCE, TASKS, adapter_order, open_study, task_order
from condlora.commands.cli import command
from condlora.errors import UserError
from condlora.grid.cells import Cell

COLUMNS = [
    *("adapter", "task", "n", "mean", "sd"),
    *(f"{name}_{end}" for name in ("t", "seeds", "examples") for end in ("low", "high")),
    *("p_difference", "p_equivalence", "p_outside"),
]


@dataclass(frozen=True)
class Examples:
    """One task's test set: references (n,) and the predictions (n,) of each (adapter, seed)."""

    metric: str
    references: np.ndarray
    predictions: dict[tuple[str, int], np.ndarray]


def load_examples(cells: Iterable[Cell]) -> dict[str, Examples]:
    """The stored test predictions of finished runs, task -> Examples.

    Raises UserError where the runs of one task were tested on other examples, which nothing pairs.
    """
    found: dict[str, Examples] = {}
    for cell in cells:
        table = pd.read_parquet(
            cell.folder / "predictions_test.parquet", columns=["label", "prediction"]
        )
        of_task = found.setdefault(
            cell.task, Examples(cell.record["headline"], table.label.to_numpy(), {})
        )
        if not np.array_equal(of_task.references, table.label.to_numpy()):
            raise UserError(
                f"{cell.folder} was tested on other examples than the runs of '{cell.task}' before "
                "it: do those runs again with the same data."
            )
        of_task.predictions[cell.adapter, cell.seed] = table.prediction.to_numpy()
    return found


def compare(
    runs: pd.DataFrame, examples: dict[str, Examples], numbers: Numbers, *, seed: int
) -> pd.DataFrame:
    """One row per method and task (and the average) with the difference to LoRA's score in points.

    runs: as glue_scores.scores gives them; examples: as load_examples does; seed: of the bootstrap.
    Intervals: t_ over seeds (Student's), seeds_ and examples_ bootstrapped. p values that end in
    _holm are adjusted over the method's tasks; the average is a family of its own.
    """

    @functools.cache
    def resampled(adapter: str, task: str, seeds: tuple[int, ...]) -> np.ndarray:
        if task == AVERAGE:
            return np.mean([resampled(adapter, t, seeds) for t in TASKS], axis=0)
        rng = np.random.default_rng([seed, task_order(task)[0], 1])
        return _resampled_gap(examples[task], adapter, seeds, numbers.resamples, rng)

    rows = []
    for (adapter, task), pairs in differences(runs).groupby(["adapter", "task"], sort=False):
        # A generator of its own: a task's interval is the same whatever else was run.
        rng = np.random.default_rng([seed, task_order(task)[0], 0])
        x, found = pairs.points.to_numpy(), summarise(pairs.points)
        test = paired_test(x, numbers.margin_points)
        intervals = {
            "t": t_interval(x, numbers.confidence),
            "seeds": bootstrap_interval(
                x, numbers.confidence, resamples=numbers.resamples, rng=rng
            ),
            "examples": percentiles(
                resampled(adapter, task, tuple(pairs.seed)), numbers.confidence
            ),
        }
        ends = [end for interval in intervals.values() for end in interval]
        p = [test.difference, test.equivalence, test.outside]
        rows.append([adapter, task, found.n, found.mean, found.sd, *ends, *p])
    return _adjusted(pd.DataFrame(rows, columns=COLUMNS), numbers)


def _resampled_gap(
    examples: Examples,
    adapter: str,
    seeds: tuple[int, ...],
    resamples: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """The mean difference over seeds, in points, on bootstrap samples of the test set (resamples,)."""
    runs = [(name, seed) for name in (adapter, REFERENCE) for seed in seeds]
    predictions = np.stack([examples.predictions[run] for run in runs])
    scores = resampled_scores(
        examples.metric, examples.references, predictions, resamples=resamples, rng=rng
    )
    ours, theirs = scores[:, : len(seeds)], scores[:, len(seeds) :]
    return POINTS * (ours - theirs).mean(axis=1)


def _adjusted(found: pd.DataFrame, numbers: Numbers) -> pd.DataFrame:
    """Adds Holm's adjustment over each method's tasks and the seeds that would settle each row.

    The average is a family of its own, and so are tasks that are not GLUE's.
    """
    family = [(row.adapter, row.task == AVERAGE, row.task in TASKS) for row in found.itertuples()]
    groups = found.groupby(pd.Series(family, index=found.index), sort=False)
    for name in ("p_difference", "p_equivalence", "p_outside"):
        found[f"{name}_holm"] = groups[name].transform(holm)
    sizes = groups.task.transform("size")
    found["seeds_needed"] = [
        runs_to_settle_equality(Summary(row.mean, row.sd, row.n), size, numbers)
        for row, size in zip(found.itertuples(), sizes, strict=True)
    ]
    order = [(task_order(row.task), adapter_order(row.adapter)) for row in found.itertuples()]
    return found.iloc[sorted(range(len(order)), key=order.__getitem__)].reset_index(drop=True)


def table(found: pd.DataFrame, numbers: Numbers) -> typeset.Table:
    """Every difference with its intervals, tests and the seeds that would settle it."""
    rows = []
    for row in found.itertuples():
        digits = 2 if row.task == AVERAGE else 1
        rows.append(
            [
                title(row.task),
                label(row.adapter),
                typeset.spread(Summary(row.mean, row.sd, row.n), digits),
                typeset.interval(row.t_low, row.t_high, digits),
                typeset.interval(row.seeds_low, row.seeds_high, digits),
                typeset.interval(row.examples_low, row.examples_high, digits),
                typeset.p_value(row.p_difference_holm),
                typeset.p_value(row.p_equivalence_holm),
                typeset.p_value(row.p_outside_holm),
                typeset.number(row.seeds_needed, 0),
            ]
        )
    confidence = f"{100 * numbers.confidence:g} %"
    return typeset.Table(
        name="table2_tests",
        title="Table 2's differences, tested: score less LoRA's of the same seed, points",
        header=[
            "task",
            "method",
            "mean ± sd (seeds)",
            f"{confidence}, seeds, Student",
            f"{confidence}, seeds, bootstrap",
            f"{confidence}, test examples, bootstrap",
            "p, not zero",
            "p, within the margin",
            "p, beyond the margin",
            "seeds needed",
        ],
        rows=rows,
        data=found,
        notes=[
            f"Paired t tests over seeds: that the mean is not zero; that it lies within the margin of "
            f"{numbers.margin_points:g} (TOST); that it lies beyond. p are Holm's over the tasks; the average is tested by itself.",
            "Bootstrap: percentiles, the same test examples drawn for both methods and all seeds. Over "
            "few seeds the bootstrap is too narrow, so the tests use Student's; over test examples it "
            "holds the seeds as they are.",
            f"Seeds needed: for {100 * numbers.power:g} % power to show equality if the true difference "
            "is 0, or where the mean lies beyond the margin to show that it does, if it is as found. A "
            "dash: no spread to tell from, or more than 10,000.",
        ],
        text_columns=2,
    )


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    numbers, _ = load_rules(cfg.margin_points)
    examples, seed = load_examples(study.done), study.settings.baseline_seed
    found = compare(scores(study.done), examples, numbers, seed=seed)
    typeset.write(table(found, numbers), study.folder / "tables")
    print(f"Table 2's differences: {study.folder / 'tables' / 'table2_tests.md'}")


if __name__ == "__main__":
    main()
