"""Magnitude and direction of the updates: table and a section of the report."""

import pandas as pd

from analysis.maths.magnitude_direction import PUBLISHED
from analysis.present import typeset
from analysis.present.typeset import Section
from analysis.stats import formatting
from analysis.stats.significance import summarise, t_interval
from analysis.study.names import adapter_order, label

TITLE = "DoRA's question: do magnitude and direction change together?"


def table(found: pd.DataFrame) -> typeset.Table:
    """The correlation over layers, mean over runs with its interval, by method and module kind."""
    rows = []
    kinds = sorted(set(zip(found.method, found.module, strict=True)), key=lambda k: (k[1], adapter_order(k[0])))  # fmt: skip
    for method, module in kinds:
        of = found[(found.method == method) & (found.module == module)]
        interval = formatting.interval(*t_interval(of.correlation.to_numpy(), 0.95), 2)
        cells = [formatting.mean_sd(summarise(of.correlation.to_numpy()), 2), interval]
        cells += [formatting.mean_sd(summarise(of[x].to_numpy()), 4) for x in ("delta_M", "delta_D")]  # fmt: skip
        rows.append([module, label(method), str(of.layers.iloc[0]), *cells])
    published = ", ".join(
        f"{name} {formatting.number(value, 2)}" for name, value in PUBLISHED.items()
    )
    return typeset.Table(
        name="magnitude_direction",
        title="Change of magnitude and of direction of W₀'s rows",
        header=["modules", "method", "layers", "correlation", "95 % interval", "ΔM", "ΔD"],
        rows=rows,
        data=found,
        notes=[
            "ΔM: mean absolute change of the norms of W₀'s rows; ΔD: mean of 1 − cosine between a row before and after. "
            "Correlation: Pearson's, over the layers of a run; mean ± sd over runs (n). Published (Liu et al., over layers and "
            f"checkpoints of query modules of another model and task): {published}. With few layers the correlation of one run "
            "is uncertain.",
        ],
        text_columns=2,
    )


def section(found: pd.DataFrame) -> Section:
    """The table as a detail, and its numbers in a sentence."""
    if not len(found):
        return Section(TITLE, [], [], [])
    means = found.groupby(["method", "module"], sort=False).correlation.mean()
    parts = (f"{label(m)}, {kind}: {formatting.number(x, 2)}" for (m, kind), x in means.items())
    text = f"Correlation of ΔM and ΔD over layers: {'; '.join(parts)}."
    return Section(TITLE, [text], [], [table(found)])
