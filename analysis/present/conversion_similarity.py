"""Figure 1 as heat maps, tables and a section of the report; computed in `analysis.maths.conversion_similarity`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from analysis.maths import subspace
from analysis.maths.conversion_similarity import (
    CONTROL,
    GAUSSIAN,
    TRAINED,
    TRANSPOSED,
    ConversionSimilarity,
)
from analysis.present import typeset
from analysis.present.figures import Panel, heatmap_grid, round_up, save
from analysis.present.paper_figure import paper_panel, pictures_as_published
from analysis.present.typeset import Picture, Section
from analysis.stats import formatting
from analysis.stats.significance import summarise
from analysis.study.names import MATRIX_LABEL, TASKS
from analysis.study.paper import published

SOURCE_LABEL = {
    TRAINED: "trained LoRA",
    GAUSSIAN: "Gaussian matrices",
    CONTROL: "Gaussian A, B, W₀⁻¹",
}


TYPES = (
    "Types: W₀ maps inputs to outputs, A reads inputs, B writes outputs. If the outputs of a layer are expressed in another "
    "basis (W₀ becomes MW₀, B becomes MB), W₀⁻¹B is unchanged, with another M in every layer; if the inputs are (W₀ becomes "
    "W₀N, A becomes AN), W₀⁻ᵀA′ is unchanged, and W₀⁻ᵀ is the inverse of A = θW₀. The paper's W₀⁻¹A′ applies a map from "
    "outputs to inputs to A′, whose columns belong to the inputs: it exists because W₀ is square, and even a rotation of the "
    "inputs alone or of the outputs alone changes its φ. It means something only if inputs and outputs share one basis, "
    "which queries, keys and values do not share with the residual stream. So one half of Figure 1, W₀→A, mixes two spaces; "
    "the row W₀⁻ᵀA′ is the consistent reading."
)


def table(result: ConversionSimilarity) -> typeset.Table:
    """The means under the panels, over all tasks and seeds, with both baselines."""
    rows = []
    for module, matrix, source in _kinds(result):
        cells = [
            formatting.mean_sd(summarise(result.select(column, module, matrix, source)), 4)
            for column in ("off_diagonal", "deep", "shallow")
        ]
        rows.append([module, MATRIX_LABEL[matrix], SOURCE_LABEL[source], *cells])
    return typeset.Table(
        name="figure1_means",
        title="Figure 1 in numbers: mean φ between conversion matrices of two different layers",
        header=["modules", "matrix", "source", "all pairs", "deep half", "shallow half"],
        rows=rows,
        data=result.values,
        notes=[
            "Mean ± sd (n): over runs of all tasks and seeds for trained matrices, over draws for "
            "the Gaussian ones. A half is half of the layers; pairs lie within it. Gaussian "
            "matrices: the paper's baseline, which does not pass through W₀⁻¹. Gaussian A, B, W₀⁻¹: "
            "the control, which does, with nothing learned. The paper does not print the values of its figure.",
            *result.notes,
        ],
        text_columns=3,
    )


def table_by_task(result: ConversionSimilarity) -> typeset.Table:
    """The trained matrices' means over all pairs of layers, a column for each task."""
    trained = result.values[result.values.source == TRAINED]
    tasks = list(trained.task.unique())
    rows = []
    for (module, matrix), group in trained.groupby(["module", "matrix"], sort=False):
        found = [summarise(group.off_diagonal[group.task == task]) for task in tasks]
        rows.append([module, MATRIX_LABEL[matrix], *(formatting.mean_sd(x, 4) for x in found)])
    return typeset.Table(
        name="figure1_by_task",
        title="Figure 1 by task: mean φ between conversion matrices of trained LoRAs",
        header=["modules", "matrix", *(TASKS.get(task, task) for task in tasks)],
        rows=rows,
        data=trained,
        notes=["Over all pairs of two different layers; mean ± sd over seeds (n)."],
        text_columns=2,
    )


def _kinds(result: ConversionSimilarity) -> list[tuple[str, str, str]]:
    v = result.values[["module", "matrix", "source"]].drop_duplicates()
    return list(v.itertuples(index=False, name=None))


@dataclass(frozen=True)
class Column:
    """One column of panels: whose maps, and what stands above them."""

    source: str
    task: str
    title: str


def draw(result: ConversionSimilarity, folder: Path) -> dict[str, Path]:
    """Draws the paper's figure and one overview of all tasks per module kind; name -> png."""
    panel = paper_panel(result)
    if panel is None:
        return {}
    baselines = [
        Column(GAUSSIAN, "", "Gaussian\n(the paper's baseline)"),
        Column(CONTROL, "", "Gaussian\nA and B through W₀⁻¹"),
    ]
    task, module = panel
    trained = Column(TRAINED, task, f"trained\n{TASKS.get(task, task)}, {module}")
    figures = {"figure1": (module, [trained, *baselines])}
    for module in result.modules:
        runs = result.values[(result.values.source == TRAINED) & (result.values.module == module)]
        columns = [Column(TRAINED, t, f"trained\n{TASKS.get(t, t)}") for t in runs.task.unique()]
        figures[f"figure1_{module}"] = (module, [*columns, *baselines])
    return {
        name: save(_panels(result, of, columns), folder / name, _drawn(result, of, columns))[0]
        for name, (of, columns) in figures.items()
    }


# The paper's two matrices, and A on the side of W0 that it lives on.
ROW_TITLE = {"A": "W₀→A", TRANSPOSED: "W₀⁻ᵀA′", "B": "W₀→B"}


def _shown(result: ConversionSimilarity, module: str) -> list[str]:
    """The matrices that have a row of panels; W0^-T A' of square W0 alone."""
    return [m for m in ROW_TITLE if any(key[:2] == (module, m) for key in result.maps)]


def _panels(result: ConversionSimilarity, module: str, columns: list[Column]) -> Figure:
    runs = _runs_drawn(result, module, columns)
    layers = result.layers_of[module]
    off_diagonal = ~np.eye(len(layers), dtype=bool)
    rows, largest = [], 0.0
    for matrix in _shown(result, module):
        rows.append([])
        for column in columns:
            found = result.maps[module, matrix, column.source, column.task]
            shown = found[:runs].mean(axis=0)
            means = subspace.means_of_pairs(torch.from_numpy(found))[:, 0]
            below = f"mean {formatting.mean_sd(summarise(means.numpy()), 4)}"
            rows[-1].append(Panel(shown, f"{ROW_TITLE[matrix]}, {column.title}", below))
            largest = np.fmax(largest, np.nanmax(shown[off_diagonal]))
    return heatmap_grid(rows, limit=round_up(largest), layers=layers)


def _runs_drawn(result: ConversionSimilarity, module: str, columns: list[Column]) -> int:
    """How many maps a panel averages at most: as many draws of a baseline as there are seeds.

    Panels averaged over all draws would look smoother than panels averaged over a few seeds, for that reason alone.
    """
    return max(
        len(result.maps[module, "A", c.source, c.task]) for c in columns if c.source == TRAINED
    )


def _drawn(result: ConversionSimilarity, module: str, columns: list[Column]) -> pd.DataFrame:
    """What the panels show (`phi`), and mean, sd and n over all runs or draws."""
    x, y = np.meshgrid(*2 * [result.layers_of[module]], indexing="ij")
    runs = _runs_drawn(result, module, columns)
    tables = []
    for matrix in _shown(result, module):
        for column in columns:
            maps = result.maps[module, matrix, column.source, column.task]
            sd = maps.std(axis=0, ddof=1) if len(maps) > 1 else np.full(x.shape, np.nan)
            names = {"module": module, "matrix": matrix, "source": column.source}
            numbers = {
                "layer_x": x,
                "layer_y": y,
                "phi": maps[:runs].mean(axis=0),
                "phi_mean": maps.mean(axis=0),
                "phi_sd": sd,
            }
            flat = {name: values.ravel() for name, values in numbers.items()}
            tables.append(pd.DataFrame(names | {"task": column.task} | flat | {"n": len(maps)}))
    return pd.concat(tables)


def section(result: ConversionSimilarity, folder: Path) -> Section:
    """The heat maps of Figure 1 and their means; figures go to `folder`."""
    paths = draw(result, folder)
    panel, wanted = paper_panel(result), published("figure1")
    text = [
        "The paper's random baseline does not pass through W₀⁻¹: it compares Gaussian matrices "
        "themselves. Conversion matrices are products with W₀⁻¹, which amplifies the smallest singular "
        "directions of W₀ in any matrix. Where these directions are similar between layers, the "
        "products are similar although nothing was learned. The third kind of panel shows this control: "
        "Gaussian A and B of the same shapes through the same W₀⁻¹.",
        *([TYPES] if any(key[1] == TRANSPOSED for key in result.maps) else []),
    ]
    if panel and panel != (wanted["task"], wanted["module"]):
        text.append(
            "The paper's panel is MNLI, value modules; it was not run here. The first figure shows "
            f"{TASKS.get(panel[0], panel[0])}, {panel[1]} modules."
        )
    pictures = {name: _heat_maps(result, name, path) for name, path in paths.items()}
    shown = [*pictures_as_published(result, folder)]
    shown += [pictures.pop("figure1")] if pictures else []
    if result.modules:
        shown.append(table(result))
    details = [*pictures.values()]
    if result.modules:
        details.append(table_by_task(result))
    return Section(
        "Figure 1: similarity of conversion matrices between layers",
        [*text, *result.notes],
        shown,
        details,
    )


def _heat_maps(result: ConversionSimilarity, name: str, path: Path) -> Picture:
    panel = paper_panel(result)
    module = panel[1] if name == "figure1" else name.removeprefix("figure1_")
    what = f"{TASKS.get(panel[0], panel[0])}" if name == "figure1" else "all tasks"
    means = [
        f"{SOURCE_LABEL[source]}, {MATRIX_LABEL[matrix]}: "
        f"{formatting.number(result.select('off_diagonal', module, matrix, source).mean(), 3)}"
        for matrix in _shown(result, module)
        for source in SOURCE_LABEL
    ]
    return Picture(
        path,
        alt=f"Heat maps of φ between the layers' conversion matrices, {what}, {module} modules. "
        f"Means off the diagonal over all tasks: {'; '.join(means)}.",
        caption=f"φ between conversion matrices, {what}, {module} modules. Maps are means over "
        "seeds, or over as many draws; under each, the mean off the diagonal ± sd (n) over all "
        "seeds or draws.",
    )
