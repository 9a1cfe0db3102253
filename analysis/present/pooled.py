"""Runs of one recipe made by several versions: pooled differences with a verdict, and the components of the variance."""

import pandas as pd

from analysis.present.typeset import Section, Table
from analysis.stats import pooled
from analysis.stats.formatting import UNDEFINED, interval, number
from analysis.stats.rules import NOT_TESTED, Thresholds
from analysis.study.names import label
from analysis.study.plateau import plateau_rule, reference_gains
from analysis.study.scores import scores, title
from analysis.study.versions import of_all_versions
from condlora.grid.cells import Cell

COMPARED = "condlora"


def section(done: list[Cell], others: list[Cell], thresholds: Thresholds) -> Section:
    """others: finished runs of the same recipes, as of `versions.other_versions`; nothing is said without one."""
    name = "One verdict from all runs of a recipe"
    if not others:
        return Section(name, [], [], [])
    runs = of_all_versions(scores(done), scores(others))
    found = pooled.components(runs)
    cells = [*done, *others]
    verdicts = pooled.verdicts(runs, COMPARED, reference_gains(cells), thresholds)
    text = (
        f"{len(others)} runs elsewhere have the recipes of runs here. A seed that both have is one training repeated, so it "
        "counts once, as the mean of its runs; what differs between these runs is numerical noise: "
        f"{_median(found.sd_versions)} points between versions of one seed and {_median(found.sd_seeds)} between seeds "
        "(medians over tasks and methods)."
    )
    return Section(name, [text], [_verdict_table(verdicts, thresholds)], [_component_table(found)])


def _median(values: pd.Series) -> str:
    return number(values.median(), 2)


def _verdict_table(found: pd.DataFrame, thresholds: Thresholds) -> Table:
    rows = [
        [
            title(row.task),
            str(row.seeds),
            f"{number(row.mean, 1)} {interval(row.low, row.high, 1)}",
            plateau_rule()["otherwise"] if row.verdict == NOT_TESTED else row.verdict,
        ]
        for row in found.itertuples()
    ]
    return Table(
        name="pooled",
        title=f"{label(COMPARED)} − LoRA over all versions",
        header=["task", "seeds", "difference in points", "equal scores"],
        rows=rows,
        data=found,
        notes=[
            f"Mean over seeds [{100 * thresholds.confidence:g} % t-interval], paired by seed; seeds are the units. The verdict "
            f"is by the rule of results/paper/claims.yaml for equal scores, margin {thresholds.margin_points:g} points."
        ],
        text_columns=1,
    )


def _component_table(found: pd.DataFrame) -> Table:
    rows = [
        [
            title(row.task),
            label(row.adapter),
            *(str(n) for n in (row.runs, row.seeds, row.repeated)),
            *(number(sd, 2) for sd in (row.sd_versions, row.sd_seeds)),
        ]
        for row in found.itertuples()
    ]
    header = ["task", "method", "runs", "seeds", "seeds with several runs"]
    return Table(
        name="variance_components",
        title="Components of the variance: versions and seeds",
        header=[*header, "sd, versions", "sd, seeds"],
        rows=rows,
        data=found,
        notes=[
            "In points, from a one-way random-effects analysis of variance (seeds at random, versions within seeds). "
            f"{UNDEFINED}: no seed has two runs, or there is one seed."
        ],
        text_columns=2,
    )
