"""The table of score differences to LoRA, with their intervals and tests."""

import pandas as pd

from analysis.present import typeset
from analysis.stats import formatting
from analysis.stats.rules import Thresholds
from analysis.stats.significance import Summary
from analysis.study.names import label
from analysis.study.scores import AVERAGE, title


def table(found: pd.DataFrame, thresholds: Thresholds) -> typeset.Table:
    """Every difference with its intervals and tests."""
    rows = []
    for row in found.itertuples():
        digits = 2 if row.task == AVERAGE else 1
        rows.append(
            [
                title(row.task),
                label(row.adapter),
                formatting.mean_sd(Summary(row.mean, row.sd, row.n), digits),
                formatting.interval(row.t_low, row.t_high, digits),
                formatting.interval(row.seeds_low, row.seeds_high, digits),
                formatting.interval(row.examples_low, row.examples_high, digits),
                formatting.p_value(row.p_difference_holm),
                formatting.p_value(row.p_equivalence),
                formatting.p_value(row.p_outside_holm),
            ]
        )
    confidence = f"{100 * thresholds.confidence:g} %"
    return typeset.Table(
        name="table2_tests",
        title="Table 2: score difference to LoRA, paired by seed, in points",
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
        ],
        rows=rows,
        data=found,
        notes=[
            "Paired t tests over seeds: the mean is not zero; it lies within the margin of "
            f"{thresholds.margin_points:g} (TOST); it lies beyond the margin. p values of the first and the third are "
            "Holm-adjusted over the tasks; those of TOST are not, as a claim about all tasks needs every one of them.",
            "Avg.: the mean over the eight tasks; its standard error comes from the variances of the tasks, with "
            "Satterthwaite's degrees of freedom, as seeds of different tasks are independent; ± is the standard "
            "deviation of a mean of one run from each task.",
            "Bootstrap: percentiles; the same test examples are drawn for both methods and all seeds, and seeds within "
            "each task. With few seeds the bootstrap interval is too narrow, so the tests use Student's "
            "distribution; the bootstrap over test examples keeps the seeds fixed.",
        ],
        text_columns=2,
    )
