"""Similarity of A's and of B's spans between layers: table, heat maps and a section of the report."""

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.maths.span_similarity import DRAWS, SpanSimilarity
from analysis.present import typeset
from analysis.present.figures import Panel, heatmap_grid, round_up, save
from analysis.present.typeset import Picture, Section
from analysis.stats import formatting
from analysis.study.names import TASKS

TITLE = "Do the layers share directions? A and B themselves, without W₀"


def table(tests: pd.DataFrame) -> typeset.Table:
    """Mean phi by module, matrix and task (or adapter), against chance, and the two tests."""
    rows = []
    for t in tests.itertuples():
        numbers = [formatting.number(x, 4) for x in (t.mean, t.chance, t.null_95)]
        p = [formatting.p_value(x) for x in (t.p_above, t.holm_above)]
        depth = [formatting.number(t.depth, 2), *map(formatting.p_value, (t.p_depth, t.holm_depth))]
        name = [t.module, t.matrix, TASKS.get(t.task, t.task)]
        rows.append([*name, str(t.n), *numbers, formatting.number(t.ratio, 2), *p, *depth])
    return typeset.Table(
        name="spans",
        title="Similarity between layers of A and B themselves: mean φ over pairs of two layers",
        header=["modules", "matrix", "trained", "runs", "mean φ", "chance", "95 % of draws", "ratio",
                "p above chance", "Holm", "closeness of layers", "p", "Holm"],
        rows=rows,
        data=tests,
        notes=[
            "Right singular vectors of A, left ones of B, i = j = r; chance is r / d. p above chance: exact rank test of "
            f"the runs among {DRAWS} draws of independent, uniformly random spans, with which a run is exchangeable if "
            "its layers' spans are unrelated. Closeness: Spearman's correlation of φ with −|l − m|; its p among "
            "permutations of the layers, which are exchangeable if depth plays no part. Holm: adjusted over the rows.",
            "A reads from the residual stream, whose basis all layers share; B writes the queries, keys or values of one "
            "layer, and no basis of these is shared between layers. No W₀ enters this table.",
        ],
        text_columns=3,
    )  # fmt: skip


def draw(result: SpanSimilarity, folder: Path) -> dict[str, Path]:
    """Heat maps of A and B for each module kind, mean over the runs of a task; name -> png."""
    paths = {}
    for module, layers in result.layers.items():
        off = ~np.eye(len(layers), dtype=bool)
        rows, data, largest = [], [], 0.0
        for matrix in dict.fromkeys(key[1] for key in result.maps if key[0] == module):
            rows.append([])
            for (of, kind, task), maps in result.maps.items():
                if (of, kind) != (module, matrix):
                    continue
                mean = maps.mean(axis=0)
                below = f"mean {formatting.number(mean[off].mean(), 4)}"
                rows[-1].append(Panel(mean, f"{matrix}, {TASKS.get(task, task)}\n{module}", below))
                x, y = np.meshgrid(layers, layers, indexing="ij")
                numbers = {"layer_x": x.ravel(), "layer_y": y.ravel(), "phi": mean.ravel()}
                data.append(
                    pd.DataFrame({"module": module, "matrix": matrix, "task": task} | numbers)
                )
                largest = np.fmax(largest, np.nanmax(mean[off]))
        if len(rows[0]) == 1:  # one task or adapter: A and B side by side
            rows = [[panel for row in rows for panel in row]]
        figure = heatmap_grid(rows, limit=round_up(largest), layers=layers)
        name = "spans_" + module.replace(".", "_")
        paths[module] = save(figure, folder / name, pd.concat(data))[0]
    return paths


def statement(tests: pd.DataFrame) -> str:
    """How similar A and B are, in one sentence each."""
    parts = []
    for matrix, of in tests.groupby("matrix"):
        above = (of.holm_above < 0.05).sum()
        low, high = (formatting.number(x, 2) for x in (of.ratio.min(), of.ratio.max()))
        parts.append(
            f"{matrix}: {low} to {high} times chance, above it in {above} of {len(of)} (exact rank tests, Holm-adjusted, 5 %)"
        )
    return "Mean φ between two layers' own spans. " + "; ".join(parts) + "."


def section(result: SpanSimilarity, tests: pd.DataFrame, folder: Path) -> Section:
    """The table, and the heat maps as details; figures go to `folder`."""
    if not len(tests):
        return Section(TITLE, [], [], [])
    pictures: list[typeset.Table | Picture] = [
        Picture(
            path,
            alt=f"Heat maps of φ between the layers' A and between their B, {module} modules. {statement(tests)}",
            caption=f"φ between the spans of two layers, {module} modules; mean over the runs of each task.",
        )
        for module, path in draw(result, folder).items()
    ]
    return Section(TITLE, [statement(tests)], [table(tests)], pictures)
