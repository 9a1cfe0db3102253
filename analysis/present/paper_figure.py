"""Figure 1 on the paper's terms: colours from 0 to 1, the diagonal 1, two decimals in the cells, the mean in the title.

The figures of `analysis.present.conversion_similarity` show the small values off the diagonal instead.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from analysis.maths.conversion_similarity import GAUSSIAN, TRAINED, ConversionSimilarity
from analysis.present.figures import COLOURS, save
from analysis.present.typeset import Picture
from analysis.stats import formatting
from analysis.study.names import TASKS
from analysis.study.paper import published


def paper_panel(result: ConversionSimilarity) -> tuple[str, str] | None:
    """(task, modules) of the paper's figure, or the nearest that was run: its modules, then the first there are."""
    paper = published("figure1")
    runs = result.values[result.values.source == TRAINED]
    available = dict.fromkeys(zip(runs.task, runs.module, strict=True))

    def distance(panel: tuple[str, str]) -> tuple[bool, bool]:
        return panel[1] != paper["module"], panel[0] != paper["task"]

    return min(available, key=distance, default=None)


def draw(result: ConversionSimilarity, folder: Path) -> Path | None:
    """W0->A and W0->B of the paper's panel or the nearest there is, above Gaussian matrices; returns the png.

    Each map is the mean over the runs of the task, or over as many draws.
    """
    panel = paper_panel(result)
    if panel is None:
        return None
    task, module = panel
    layers = result.layers_of[module]
    fig, axes = plt.subplots(2, 2, figsize=(7.2, 7.4), layout="constrained")
    data = []
    runs = len(result.maps[module, "A", TRAINED, task])
    for row, source, of, name in (
        (0, TRAINED, task, f"{TASKS.get(task, task)}, {module}"),
        (1, GAUSSIAN, "", "Gaussian"),
    ):
        for ax, matrix in zip(axes[row], ("A", "B"), strict=True):
            phi = result.maps[module, matrix, source, of][:runs].mean(axis=0)
            mean = phi[~np.eye(len(phi), dtype=bool)].mean()
            title = f"W₀→{matrix}, {name}\nmean {formatting.number(mean, 3)}"
            image = _cells(phi, ax, title, layers)
            x, y = np.meshgrid(layers, layers, indexing="ij")
            numbers = {"layer_x": x.ravel(), "layer_y": y.ravel(), "phi": phi.ravel()}
            names = {"module": module, "matrix": matrix, "source": source, "task": of}
            data.append(pd.DataFrame(names | numbers))
    fig.colorbar(image, ax=axes, location="bottom", label="φ", shrink=0.5, aspect=40)
    return save(fig, folder / "figure1_paper", pd.concat(data))[0]


def _cells(phi: np.ndarray, ax: Axes, title: str, layers: list[int]) -> AxesImage:
    """A heat map (L, L) from 0 to 1 with its values."""
    image = ax.imshow(phi, cmap=COLOURS, vmin=0, vmax=1)
    size = 60 / max(12, len(phi))
    for (row, column), value in np.ndenumerate(phi):
        text = f"{value:.2f}".removeprefix("0") if value < 0.995 else "1.0"
        colour = "white" if value < 0.55 else "black"
        ax.text(column, row, text, color=colour, fontsize=size, ha="center", va="center")
    ax.set_xticks(range(len(layers)), list(map(str, layers)))
    ax.set_yticks(range(len(layers)), list(map(str, layers)))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title)
    return image


def pictures_as_published(result: ConversionSimilarity, folder: Path) -> list[Picture]:
    """The figure as the report shows it; empty where there is none."""
    path = draw(result, folder)
    if path is None:
        return []
    task, module = paper_panel(result)
    caption = (
        f"Figure 1 as the paper draws it, for {TASKS.get(task, task)}, {module} modules: the colour scale runs from 0 to 1, and the diagonal is 1. "
        "The title gives the mean over pairs of two different layers. On this scale the difference to Gaussian matrices is "
        "hardly visible; the next figures use a finer scale."
    )
    return [Picture(path, alt=caption, caption=caption)]
