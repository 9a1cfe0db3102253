"""Does CondLoRA score as LoRA does: differences paired by seed, with their spread and tests.

Takes the scores of finished runs and their predictions on the test set. Seeds and test examples are two
sources of chance; each has its own interval, and the tests are over seeds.
"""

import pandas as pd

from analysis.present import typeset
from analysis.stats import formatting
from analysis.stats.rules import Thresholds
from analysis.stats.significance import Summary
from analysis.study.names import label
from analysis.study.scores import AVERAGE, title


def table(found: pd.DataFrame, thresholds: Thresholds) -> typeset.Table:
    """Every difference with its intervals, tests and the seeds that would settle it."""
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
                formatting.p_value(row.p_equivalence_holm),
                formatting.p_value(row.p_outside_holm),
                formatting.number(row.seeds_needed, 0),
            ]
        )
    confidence = f"{100 * thresholds.confidence:g} %"
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
            f"{thresholds.margin_points:g} (TOST); that it lies beyond. p are Holm's over the tasks; the average is tested by itself.",
            "Bootstrap: percentiles, the same test examples drawn for both methods and all seeds. Over "
            "few seeds the bootstrap is too narrow, so the tests use Student's; over test examples it "
            "holds the seeds as they are.",
            f"Seeds needed: for {100 * thresholds.power:g} % power to show equality if the true difference "
            "is 0, or where the mean lies beyond the margin to show that it does, if it is as found. A "
            "dash: no spread to tell from, or more than 10,000.",
        ],
        text_columns=2,
    )
