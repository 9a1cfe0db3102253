"""Amplification (Hu et al., section 7.3) as tables, a figure and a section; computed in `analysis.maths.amplification`."""

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from analysis.maths.amplification import GAUSSIAN_MAPS, Amplification
from analysis.present.figures import COLUMN_WIDTH, METHOD_LINE, METHOD_STYLE, save
from analysis.present.typeset import Picture, Section, Table
from analysis.stats import formatting
from analysis.stats.significance import Summary, summarise
from analysis.study.names import adapter_order, label


def _name(method: str) -> str:
    return "Gaussian maps, W₀" if method == GAUSSIAN_MAPS else label(method)


# Column of `values` -> its heading; the first three depend on W and r alone.
COLUMNS = {
    "norm_W": "‖W‖",
    "within_W": "‖U′WV‖ of W's",
    "within_random": "of random",
    "within_delta_W": "of ΔW's",
    "norm_delta_W": "‖ΔW‖",
    "amplification": "factor",
    "first_tenth": "in W's first tenth",
    "last_tenth": "in its last tenth",
}


def table(result: Amplification) -> Table:
    """Table 7 of the LoRA paper at one rank: a row per module kind and method, means over layers."""
    return _table(result, "amplification", {result.shown_r})


def table_by_rank(result: Amplification) -> Table:
    """The same at all ranks."""
    return _table(result, "amplification_by_rank", set(result.values.r))


def _table(result: Amplification, name: str, ranks: set[int]) -> Table:
    rows = []
    for module, method, r in (kind for kind in result.kinds if kind[2] in ranks):
        found = {column: _over_runs(result, module, method, r, column) for column in COLUMNS}
        cells = [
            formatting.number(x.mean, 3) if math.isnan(x.mean) or n < 3 else _spread(x)
            for n, x in enumerate(found.values())
        ]
        rows.append([module, _name(method), str(r), str(found["within_delta_W"].n), *cells])
    return Table(
        name=name,
        title="Amplification: the norm of W within the subspaces of ΔW, of W and of random ones",
        header=["modules", "method", "r", "n", *COLUMNS.values()],
        rows=rows,
        data=result.values[result.values.r.isin(ranks)],
        notes=[
            "Means over layers, ± sd over n runs; Frobenius norms. ‖U′WV‖: U and V are the r leading "
            "left and right singular vectors of W, or random ones (root mean square, exact), or "
            "those of ΔW. Factor: ‖ΔW‖ / ‖U′WV‖ with those of ΔW, both averaged over layers first; "
            "Hu et al. report 21.5 at r = 4 for one layer of GPT-3. The last two columns: how much "
            "of ΔW's left singular space lies in the first and the last tenth of W's left singular "
            "vectors; 0.1 for random ones.",
            "Gaussian maps, W₀: what CondLoRA makes of W₀ with nothing learned; n counts draws.",
        ],
        text_columns=2,
    )


def _spread(x: Summary) -> str:
    return formatting.mean_sd(x, 3, with_n=False)


def _over_runs(result: Amplification, module: str, method: str, r: int, column: str) -> Summary:
    """Means over layers, over runs; the factor is the quotient of means, as single layers may have
    next to nothing to divide by."""
    if column == "amplification":
        over, under = (
            result.per_layer(module, method, r, name).mean(axis=1, skipna=False)
            for name in ("norm_delta_W", "within_delta_W")
        )
        return summarise((over / under).to_numpy())
    found = result.per_layer(module, method, r, column)
    return summarise(found.mean(axis=1, skipna=False).to_numpy())


def table_by_layer(result: Amplification) -> Table:
    """The amplification factor, a column for each layer."""
    rows = []
    for module, method, r in (kind for kind in result.kinds if kind[1] != GAUSSIAN_MAPS):
        factor = result.per_layer(module, method, r, "amplification")
        cells = [_spread(summarise(factor[layer])) for layer in factor]
        rows.append([module, label(method), str(r), str(len(factor)), *cells])
    return Table(
        name="amplification_by_layer",
        title="Amplification factor, layer by layer",
        header=["modules", "method", "r", "n", *map(str, sorted(set(result.values.layer)))],
        rows=rows,
        data=result.values[["module", "method", "r", "task", "seed", "layer", "amplification"]],
        notes=["Columns are layers; mean ± sd over n runs."],
        text_columns=2,
    )


def draw(result: Amplification, folder: Path) -> Path:
    """Share of the update's left space in the leading singular directions of W, by method."""
    modules = sorted({module for _, module in result.shares})
    fig, axes = plt.subplots(
        1,
        len(modules),
        figsize=(max(COLUMN_WIDTH, 1.65 * len(modules)), 2.5),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    drawn = []
    for module, ax in zip(modules, axes.flat, strict=True):
        ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":", label="random")
        methods = {method for method, of in result.shares if of == module}
        for method in sorted(methods, key=lambda m: (m != GAUSSIAN_MAPS, adapter_order(m))):
            by_layer = result.shares[method, module].mean(axis=0)  # over runs; (L, d)
            x = np.arange(1, by_layer.shape[1] + 1) / by_layer.shape[1]
            colour = METHOD_STYLE.get(method, {}).get("color", "black")
            low, high = by_layer.min(axis=0), by_layer.max(axis=0)
            line = {"color": colour, "linestyle": METHOD_LINE.get(method, "-.")}
            ax.plot(x, by_layer.mean(axis=0), linewidth=1.2, label=_name(method), **line)
            ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
            numbers = {"share": by_layer.mean(axis=0), "lowest_layer": low, "highest_layer": high}
            names = {"module": module, "method": method, "direction": range(1, len(x) + 1)}
            drawn.append(pd.DataFrame(names | numbers))
        ax.set_title(module)
        ax.set(xlim=(0, 1), ylim=(0, 1))
        ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes[0, 0].set_ylabel(f"share of ΔW's left space\n(r = {result.shown_r})", fontsize=8)
    fig.supxlabel("leading part of W's left singular directions", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=6.5)
    return save(fig, folder / "amplification_shares", pd.concat(drawn))[0]


def section(result: Amplification, folder: Path) -> Section:
    """Table 7 and appendix H.3 of the LoRA paper for our runs; the figure goes to `folder`."""
    return Section(
        "The LoRA paper's question: does an update amplify what W already has?",
        _statements(result),
        [table(result), Picture(draw(result, folder), _alt(result), _caption(result))],
        details(result),
    )


def details(result: Amplification) -> list[Table]:
    several = result.values.r.nunique() > 1
    return [table_by_rank(result), table_by_layer(result)] if several else [table_by_layer(result)]


def _caption(result: Amplification) -> str:
    return (
        f"How much of ΔW's left singular space (r = {result.shown_r}) lies in the leading left "
        "singular directions of W, taken from the largest singular value on. Mean over runs and "
        "layers; bands from the lowest to the highest layer. Gaussian maps, W₀: CondLoRA with "
        "nothing learned."
    )


def _alt(result: Amplification) -> str:
    tenths = (
        f"{_name(method)}, {module}: {formatting.number(_over_runs(result, module, method, r, 'first_tenth').mean, 2)}"
        for module, method, r in result.kinds
        if r == result.shown_r
    )
    return f"Share of ΔW's left space in W's leading directions. First tenth: {'; '.join(tenths)}."


def _statements(result: Amplification) -> list[str]:
    """What the table says at the rank shown, one sentence for each method and module kind."""
    lines = []
    for module, method, r in (kind for kind in result.kinds if kind[2] == result.shown_r):
        found = {name: _over_runs(result, module, method, r, name).mean for name in COLUMNS}
        size = f"ΔW is {formatting.number(found['amplification'], 2)} times as large as W; W's norm there "
        what = (
            "with nothing learned, W's norm within its directions "
            if method == GAUSSIAN_MAPS
            else f"within its own directions {size}"
        )
        over_random = found["within_delta_W"] / found["within_random"]
        lines.append(
            f"{_name(method)}, {module}, r = {r}: {what}is {formatting.number(over_random, 1)} times that "
            "in random directions and "
            f"{formatting.number(found['within_delta_W'] / found['within_W'], 2)} times that in W's own "
            "leading ones."
        )
    return lines
