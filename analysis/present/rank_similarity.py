"""Similarities over the rank r as a table, a figure and a sentence; computed in `analysis.maths.rank_similarity`."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from analysis.maths.rank_similarity import CONTROL, METHODS, TRAINED
from analysis.present.figures import COLUMN_WIDTH, METHOD_STYLE, save
from analysis.present.typeset import Picture, Table
from analysis.stats import formatting
from analysis.stats.significance import summarise
from analysis.study.names import MATRIX_LABEL


def table(similarity: pd.DataFrame) -> Table:
    """phi over ranks: conversion matrices with their control, and LoRA against CondLoRA."""
    rows = []
    for (module, r, matrix), own in similarity.groupby(["module", "r", "matrix"], sort=False):
        cells = [
            formatting.mean_sd(summarise(own.phi[own.source == source]), 4)
            for source in (TRAINED, CONTROL, METHODS)
        ]
        random = formatting.number(own.expected.iloc[0], 4)
        rows.append([module, MATRIX_LABEL[matrix], str(r), *cells, random])
    rows.sort(key=lambda row: (row[0], row[1], int(row[2])))
    return Table(
        name="rank_similarity",
        title="Similarity φ over the rank",
        header=[
            "modules",
            "matrix",
            "r",
            "conversion, trained LoRA",
            "conversion, Gaussian A, B, W₀⁻¹",
            "LoRA and CondLoRA",
            "random subspaces",
        ],
        rows=rows,
        data=similarity,
        notes=[
            "i = j = r unless set. Conversion: φ between the conversion matrices of two different "
            "layers, mean over all pairs. LoRA and CondLoRA: φ between their matrices of the same "
            "layer, task and seed, mean over layers; for ΔW that of B where all vectors are taken. Mean ± sd over runs, or over draws (n). "
            "Random subspaces: max(i, j) / d, which grows with r by itself.",
        ],
        text_columns=2,
    )


LORA, CONTROL_COLOUR = METHOD_STYLE["lora"]["color"], "0.45"
# What a row of panels shows: its name, and lines as (source, matrix, label, colour, marker and dash).
PANELS = {
    "W₀→A": [
        (CONTROL, "A", "Gaussian A, W₀⁻¹", CONTROL_COLOUR, "--"),
        (TRAINED, "A", "trained LoRA", LORA, "o-"),
    ],
    "W₀→B": [
        (CONTROL, "B", "Gaussian B, W₀⁻¹", CONTROL_COLOUR, "--"),
        (TRAINED, "B", "trained LoRA", LORA, "o-"),
    ],
    "LoRA, CondLoRA": [
        (METHODS, "A", "A", "#000000", "^-"),
        (METHODS, "B", "B", "#CC79A7", "v--"),
    ],
}


def draw(similarity: pd.DataFrame, folder: Path) -> Path:
    """phi over its expectation for random subspaces, which by itself grows with the rank."""
    s = similarity.assign(ratio=lambda frame: frame.phi / frame.expected)
    modules, ranks = sorted(set(s.module)), sorted(set(s.r))
    fig, axes = plt.subplots(
        len(PANELS),
        len(modules),
        figsize=(max(COLUMN_WIDTH, 1.65 * len(modules)), 4.8),
        layout="constrained",
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    drawn = []
    for (name, lines), row in zip(PANELS.items(), axes, strict=True):
        for module, ax in zip(modules, row, strict=True):
            ax.axhline(1, color="0.75", linewidth=0.8)
            for source, matrix, text, colour, line in lines:
                own = s[(s.source == source) & (s.module == module) & (s.matrix == matrix)]
                points = own.groupby("r", as_index=False).agg(
                    mean=("ratio", "mean"),
                    lowest=("ratio", "min"),
                    highest=("ratio", "max"),
                    n=("ratio", "size"),
                )
                drawn.append(points.assign(source=source, module=module, matrix=matrix))
                ax.plot(points.r, points["mean"], line, color=colour, ms=3, lw=1, label=text)
                band = {"color": colour, "alpha": 0.2, "linewidth": 0}
                ax.fill_between(points.r, points.lowest, points.highest, **band)
            ax.set_xscale("log", base=2)
            ax.set_xticks(ranks, [str(r) for r in ranks])
            ax.minorticks_off()
            ax.set_title(module if ax in axes[0] else "", fontsize=8)
        row[0].set_ylabel(name, fontsize=8)
        row[-1].legend(frameon=False, fontsize=6)
    fig.supxlabel("rank r", fontsize=8)
    fig.supylabel("φ over its expectation for random subspaces", fontsize=8)
    return save(fig, folder / "rank_similarity", pd.concat(drawn))[0]


def picture(similarity: pd.DataFrame, path: Path) -> Picture:
    """The figure as a page shows it."""
    means = similarity.groupby(["source", "module", "matrix"]).apply(
        lambda own: (own.phi / own.expected).mean(), include_groups=False
    )
    listed = (f"{', '.join(key)}: {formatting.number(mean, 2)}" for key, mean in means.items())
    return Picture(
        path,
        alt="φ over its expectation for random subspaces, against the rank. Means over ranks: "
        f"{'; '.join(listed)}.",
        caption="φ over its expectation for random subspaces, against the rank; random subspaces are "
        "the line at 1. Above: LoRA's conversion matrices between layers, with Gaussian A and B "
        "through the same W₀⁻¹. Below: LoRA against CondLoRA in the same layer. Bands: from the "
        "lowest to the highest run or draw.",
    )


def statements(similarity: pd.DataFrame) -> list[str]:
    """How often the trained conversion matrices exceed every draw of their control."""
    s = similarity
    above, chance, n = 0, 0.0, 0
    for _, own in s[s.source != METHODS].groupby(["module", "r", "matrix"]):
        draws = own.phi[own.source == CONTROL]
        above += own.phi[own.source == TRAINED].mean() > draws.max()
        chance += 1 / (len(draws) + 1)
        n += 1
    if not n:
        return []
    return [
        f"In {above} of {n} combinations of module kind, matrix and rank the conversion matrices of "
        "trained LoRA are on average more similar than in every draw of Gaussian A and B through the "
        f"same W₀⁻¹; by chance alone it would be {formatting.number(chance, 1)} at most."
    ]
