"""The shares of A, B and delta A that one map of W0 explains: tables, figures and a section of the report."""

from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from analysis.maths.explained_share import (
    CONTROL_WORLDS,
    GAUSSIAN_W0,
    LAST,
    NO_W0,
    OTHER_LAYER,
    OWN,
    RHO,
    SOURCES,
    SPECTRUM,
    WORLDS,
    ExplainedShare,
)
from analysis.present import typeset
from analysis.present.figures import save
from analysis.present.typeset import Picture, Section
from analysis.stats import formatting, shares
from analysis.study.names import TASKS

TITLE = "How much of A, B and ΔA does one map of W₀ explain?"
SOURCE = {
    OWN: "own W₀",
    OTHER_LAYER: "another layer's W₀",
    GAUSSIAN_W0: "Gaussian matrix",
    SPECTRUM: "W₀'s spectrum alone",
    NO_W0: "no W₀",
}
FORM = {
    "A_code": "A = θW₀′",
    "A_consistent": "A = θW₀",
    "delta_A_code": "ΔA = θW₀′",
    "delta_A_consistent": "ΔA = θW₀",
    "B": "B = W₀θ′",
}
# Colour, marker and line of a form in every figure here (colours: Okabe and Ito).
STYLE = {
    "A_code": ("#56B4E9", "o", ":"),
    "A_consistent": ("#0072B2", "s", ":"),
    "delta_A_code": ("#E69F00", "^", "--"),
    "delta_A_consistent": ("#D55E00", "v", "--"),
    "B": ("#009E73", "D", "-"),
}


def tables(result: ExplainedShare, confidence: float) -> list[typeset.Table]:
    """The shares against the controls, and as details those by task, by layer, over steps and over ranks, and the scale."""
    found = [_against_controls(result, confidence)]
    found.append(_one_source(result, confidence, "task", "shares_by_task", "by task"))
    found.append(_one_source(result, confidence, "layer", "shares_by_layer", "layer by layer"))
    if result.values.step.nunique() > 1:
        found.append(_one_source(result, confidence, "step", "shares_by_step", "over training steps"))  # fmt: skip
    if result.values.r.nunique() > 1:
        found.append(_one_source(result, confidence, "r", "shares_by_rank", "over ranks"))
    return [*found, _scale(result)]


def _against_controls(result: ExplainedShare, confidence: float) -> typeset.Table:
    table = shares.finished(shares.estimates(result, confidence))
    table = table[table.r == result.r]
    by_source = {key: row for key, row in _rows_by(table, ["module", "form", "source"])}
    rows = []
    for module, form in table[["module", "form"]].drop_duplicates().itertuples(index=False):
        own = by_source[module, form, OWN]
        cells = [_share(by_source.get((module, form, source))) for source in SOURCES]
        raw = formatting.number(own.left_out, 3)
        rows.append([module, FORM[form], str(own.runs), *cells, raw])
    return typeset.Table(
        name="shares",
        title="Share of A, B and ΔA that one map of W₀ explains in a left-out layer, on the planted scale",
        header=["modules", "matrix", "runs", *SOURCE.values(), "φ, own W₀"],
        rows=rows,
        data=table,
        notes=[
            f"Rank {result.r}; share ρ with its {100 * confidence:g} % interval over runs (of several tasks: from each task's "
            "variance). The map is fitted on the other layers; φ of what it gives with the left-out layer's A or B is read on "
            f"the scale of planted worlds on the same matrices, {len(RHO)} shares ρ, of which one map explains ρ of the energy: "
            f"{WORLDS} worlds for each share on W₀, {CONTROL_WORLDS} on a control. 1 is the hypothesis of one map for all layers; 0 is what Gaussian A and B give, or less. "
            "ΔA is A minus the start A₀ of its run. No W₀: one common A or B for all layers.",
            *result.notes,
        ],
        text_columns=2,
    )


def _rows_by(table: pd.DataFrame, names: list[str]):
    for row in table.itertuples():
        yield tuple(getattr(row, name) for name in names), row


def _share(row) -> str:
    if row is None:
        return formatting.UNDEFINED
    text = formatting.number(row.share, 3)
    interval = formatting.interval(row.low, row.high, 3)
    return text if interval == formatting.UNDEFINED else f"{text} {interval}"


def _own(result: ExplainedShare, confidence: float, by: str) -> pd.DataFrame:
    """The layer's own W0's estimates over one column; of steps and layers at the rank of the controls."""
    extra = [by] if by in ("task", "layer") else []
    table = shares.estimates(result, confidence, by=extra)
    table = table[table.source == OWN]
    if by != "r":
        table = table[table.r == result.r]
    return table if by == "step" else shares.finished(table)


def _one_source(
    result: ExplainedShare, confidence: float, by: str, name: str, what: str
) -> typeset.Table:
    table = _own(result, confidence, by)
    if by == "step":
        table = table[table.step != LAST]
    places = sorted(table[by].unique()) if by != "task" else list(table[by].unique())
    found = dict(_rows_by(table, ["module", "form", by]))
    kinds = table[["module", "form"]].drop_duplicates().itertuples(index=False)
    rows = [
        [module, FORM[form], *(_share(found.get((module, form, place))) for place in places)]
        for module, form in kinds
    ]
    return typeset.Table(
        name=name,
        title=f"Share that one map of the layers' own W₀ explains, {what}",
        header=["modules", "matrix", *(TASKS.get(place, str(place)) for place in places)],
        rows=rows,
        data=table,
        notes=["As the table of shares; columns are " + {"task": "tasks", "layer": "layers", "step": "optimizer steps", "r": "ranks"}[by] + "."],
        text_columns=2,
    )  # fmt: skip


def _scale(result: ExplainedShare) -> typeset.Table:
    table = shares.scale(result)
    keys = table[["module", "side", "source", "r"]].drop_duplicates().itertuples(index=False)
    means = dict(_rows_by(table, ["module", "side", "source", "r", "rho"]))
    rows = [
        [module, side.replace("W", "W₀").replace("'", "′"), SOURCE[source], str(r)]
        + [formatting.number(means[module, side, source, r, rho].mean, 3) for rho in RHO]
        for module, side, source, r in keys
    ]
    return typeset.Table(
        name="shares_scale",
        title="The scale of the shares: φ of the left-out-layer map on planted worlds",
        header=["modules", "side", "matrix in W₀'s place", "r", *(f"ρ = {rho:g}" for rho in RHO)],
        rows=rows,
        data=table,
        notes=["Mean over planted worlds and over layers."],
        text_columns=3,
    )


def draw(result: ExplainedShare, confidence: float, folder: Path) -> dict[str, Path]:
    """Shares against the controls, by layer, and over steps and ranks where there are any; name -> png."""
    paths = {"shares": _draw_controls(result, confidence, folder)}
    whats = {"layer": "layer"}
    if result.values.step.nunique() > 1:
        whats["step"] = "optimizer steps"
    if result.values.r.nunique() > 1:
        whats["r"] = "rank"
    for by, what in whats.items():
        name = f"shares_by_{'rank' if by == 'r' else by}"
        paths[name] = _draw_over(result, confidence, by, what, folder / name)
    return paths


def _axes(modules: list[str], height: float) -> tuple[plt.Figure, list[Axes]]:
    size = (3.4 * max(2, len(modules)), height)
    fig, axes = plt.subplots(1, len(modules), figsize=size, layout="constrained", sharey=True, squeeze=False)  # fmt: skip
    return fig, list(axes.flat)


def _draw_controls(result: ExplainedShare, confidence: float, folder: Path) -> Path:
    table = shares.finished(shares.estimates(result, confidence))
    table = table[table.r == result.r]
    fig, axes = _axes(list(table.module.unique()), 3.0)
    for ax, (module, of_module) in zip(axes, table.groupby("module", sort=False), strict=True):
        for n, (form, of_form) in enumerate(of_module.groupby("form", sort=False)):
            colour, marker, _ = STYLE[form]
            by_source = of_form.set_index("source")
            present = [source for source in SOURCES if source in by_source.index]
            places = [SOURCES.index(source) + 0.14 * (n - 2) for source in present]
            rows = by_source.loc[present]
            errors = [(rows.share - rows.low).to_numpy(), (rows.high - rows.share).to_numpy()]
            ax.errorbar(
                rows.share, places, xerr=errors, color=colour, marker=marker, linestyle="none",
                markersize=4, label=FORM[form], linewidth=1,
            )  # fmt: skip
        ax.set_yticks(range(len(SOURCES)), [SOURCE[source] for source in SOURCES])
        ax.set_title(module)
        ax.set_xlabel("share ρ explained")
        ax.axvline(0, color="0.8", zorder=0)
        ax.grid(axis="x", color="0.92")
        ax.set_axisbelow(True)
    axes[0].invert_yaxis()
    _legend(fig, axes[0])
    return save(fig, folder / "shares", table)[0]


def _draw_over(result: ExplainedShare, confidence: float, by: str, what: str, stem: Path) -> Path:
    table = _own(result, confidence, by)
    if by == "step":
        table = table[table.step != LAST]
    fig, axes = _axes(list(table.module.unique()), 2.8)
    for ax, (module, of_module) in zip(axes, table.groupby("module", sort=False), strict=True):
        for form, rows in of_module.sort_values(by).groupby("form", sort=False):
            colour, marker, line = STYLE[form]
            ax.plot(rows[by], rows.share, color=colour, marker=marker, linestyle=line, markersize=4, label=FORM[form])  # fmt: skip
            ax.fill_between(rows[by], rows.low, rows.high, color=colour, alpha=0.15, linewidth=0)
        if by != "layer":
            ax.set_xscale("log", base=2)
        ticks = sorted(of_module[by].unique())
        ax.set_xticks(ticks, list(map(str, ticks)))
        ax.minorticks_off()
        ax.set_title(module)
        ax.set_xlabel(what)
        ax.grid(axis="y", color="0.92")
    axes[0].set_ylabel("share ρ explained")
    axes[0].set_ylim(bottom=0)
    _legend(fig, axes[0])
    return save(fig, stem, table)[0]


def _legend(fig: plt.Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=7, frameon=False)


def statement(result: ExplainedShare, confidence: float) -> str:
    """The shares of each matrix on its own W0 and on the best control, in one sentence each."""
    table = shares.finished(shares.estimates(result, confidence))
    table = table[table.r == result.r]
    parts = []
    for form, of_form in table.groupby("form", sort=False):
        own = of_form[of_form.source == OWN].share
        controls = of_form[of_form.source != OWN].groupby("module").share.max()
        low, high = formatting.number(own.min(), 2), formatting.number(own.max(), 2)
        shown = low if low == high else f"{low} to {high}"
        parts.append(f"{FORM[form]}: {shown} (best control {formatting.number(controls.max(), 2)})")
    return (
        "Share of the energy that one map of W₀, fitted on the other layers, explains in a left-out layer, over module "
        f"kinds: {'; '.join(parts)}. The hypothesis of one map for all layers is 1."
    )


def section(result: ExplainedShare, confidence: float, folder: Path) -> Section:
    """The shares with their controls; by task, layer, step and rank as details."""
    if not len(result.values):
        return Section(TITLE, [], [], [])
    first, *details = tables(result, confidence)
    text = statement(result, confidence)
    pictures = [
        Picture(path, alt=f"{_CAPTION[name]} {text}", caption=_CAPTION[name])
        for name, path in draw(result, confidence, folder).items()
    ]
    return Section(TITLE, [text, *result.notes], [pictures[0], first], [*pictures[1:], *details])


_CAPTION = {
    "shares": "Share ρ that one map explains in a left-out layer, with the layer's own W₀ and with controls in its place; "
    "intervals over runs.",
    "shares_by_layer": "The same for each left-out layer, own W₀.",
    "shares_by_step": "The same over training, own W₀.",
    "shares_by_rank": "The same over ranks, own W₀.",
}
