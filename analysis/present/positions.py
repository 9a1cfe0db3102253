"""Maps over layers and module kinds as a table, a figure and a section; computed in `analysis.maths.positions`."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from analysis.maths.positions import PHI, Positions
from analysis.present.figures import COLUMN_WIDTH, position_map, round_up, save
from analysis.present.typeset import Picture, Section, Table
from analysis.stats import formatting
from analysis.stats.significance import summarise
from analysis.study.names import MATRIX_LABEL, label


def _title(quantity: str, subject: str) -> str:
    if quantity == PHI:
        return f"φ of {MATRIX_LABEL[subject]}, LoRA and CondLoRA"
    return f"‖ΔW‖ / ‖W‖, {label(subject)}"


def table(result: Positions) -> Table:
    """Every map with standard deviations: a row per map and module kind, a column per layer."""
    v, rows = result.values, []
    layers = sorted(set(v.layer))
    for quantity, subject in result.maps:
        for module in sorted(set(v.module)):
            own = v[
                (v.quantity == quantity) & (v.matrix_or_method == subject) & (v.module == module)
            ]
            found = [summarise(own.value[own.layer == layer]) for layer in layers]
            cells = [formatting.mean_sd(x, 3, with_n=False) for x in found]
            rows.append([_title(quantity, subject), module, str(found[0].n), *cells])
    return Table(
        name="positions",
        title=f"Layers and modules: similarity and norm of updates, r = {result.r}",
        header=["", "modules", "n", *map(str, layers)],
        rows=rows,
        data=v,
        notes=[
            "Columns are layers; mean ± sd over n runs of all tasks and seeds, or pairs of runs."
        ],
        text_columns=2,
    )


def draw(result: Positions, folder: Path) -> Path:
    """A map for each quantity, the number written in each cell; all phi share one scale of colours."""
    maps = [(kind, result.map(*kind)) for kind in result.maps]
    limits = {
        quantity: max(np.nan_to_num(values).max() for (q, _), values in maps if q == quantity)
        or 1.0
        for (quantity, _), _ in maps
    }
    if PHI in limits:
        limits[PHI] = round_up(limits[PHI])
    modules, layers = maps[0][1].index, maps[0][1].columns
    fig, axes = plt.subplots(
        len(maps),
        1,
        figsize=(
            max(COLUMN_WIDTH, 0.26 * len(layers)),
            (0.2 * len(modules) + 0.3) * len(maps) + 0.3,
        ),
        layout="constrained",
        sharex=True,
        squeeze=False,
    )
    for ((quantity, subject), values), ax in zip(maps, axes.flat, strict=True):
        position_map(
            values.to_numpy(),
            ax,
            title=_title(quantity, subject),
            limit=limits[quantity],
            modules=list(modules),
            layers=list(layers),
        )
    axes[-1, 0].set_xlabel("layer", fontsize=8)
    drawn = [
        values.stack()
        .rename("value")
        .reset_index()
        .assign(quantity=quantity, matrix_or_method=subject)
        for (quantity, subject), values in maps
    ]
    return save(fig, folder / "positions", pd.concat(drawn))[0]


def section(result: Positions, folder: Path) -> Section:
    """Maps over layers and kinds of modules; the figure goes to `folder`."""
    lines = [f"{_title(*kind)}: {_extremes(result.map(*kind))}" for kind in result.maps]
    caption = (
        f"Means over runs at r = {result.r}. φ is between LoRA and CondLoRA of the same layer, task "
        "and seed; where all singular vectors are taken, that of B and that of ΔW are equal. "
        "‖ΔW‖ / ‖W‖: the size of each method's update relative to the weight."
    )
    picture = Picture(
        draw(result, folder), f"Maps over layers and kinds of modules. {'; '.join(lines)}.", caption
    )
    text = [f"{'; '.join(lines)} (means over runs at r = {result.r})."]
    return Section("Where in the encoder do the methods differ?", text, [picture], [table(result)])


def _extremes(values: pd.DataFrame) -> str:
    flat = values.stack().dropna()
    if flat.empty:
        return "undefined, as an update of zero has no direction"
    ends = ((flat.idxmin(), flat.min()), (flat.idxmax(), flat.max()))
    low, high = (
        f"{formatting.number(value, 3)} ({module}, layer {layer})"
        for (module, layer), value in ends
    )
    return f"from {low} to {high}"
