"""The one place that sets the plotting style; figures are byte-equal when drawn again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from analysis.present.typeset import CSV_FORMAT
from analysis.study.names import METHOD_NAMES, label

plt.rcdefaults()  # a matplotlibrc of the user's must not change a figure
plt.rcParams.update(
    {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "xtick.labelsize": 6.5,
        "ytick.labelsize": 6.5,
        "pdf.fonttype": 42,  # text stays text, as publishers ask
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)

# Sequential, even in lightness: the same order in grey and for colour-blind readers.
COLOURS = "cividis"
# Colour, marker and name of a method, the same in every figure and table (colours: Okabe and Ito).
METHOD_STYLE = {
    "lora": {"color": "#0072B2", "marker": "o", "label": METHOD_NAMES["lora"]},
    "condlora": {"color": "#D55E00", "marker": "s", "label": METHOD_NAMES["condlora"]},
}
# Of methods that are not the paper's, in the order in which a figure lists them.
OTHER_STYLES = [("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"), ("#000000", "X")]  # fmt: skip
# In addition to colour and marker, so that lines differ in grey as well.
METHOD_LINE = {"lora": "-", "condlora": "--"}
COLUMN_WIDTH = 3.3  # inches: one column of a two-column page


def method_style(method: str, listed: Sequence[str]) -> dict[str, str]:
    """Colour, marker and name of a method, among those that a figure lists."""
    if method in METHOD_STYLE:
        return METHOD_STYLE[method]
    others = [name for name in listed if name not in METHOD_STYLE]
    colour, marker = OTHER_STYLES[others.index(method) % len(OTHER_STYLES)]
    return {"color": colour, "marker": marker, "label": label(method)}


def heatmap(
    matrix: np.ndarray, ax: Axes, *, title: str, limit: float, layers: Sequence[int]
) -> AxesImage:
    """Draws phi over pairs of layers (L, L) with colours from 0 to `limit`.

    `layers` are their numbers counted from 1. The diagonal is 1 by definition and left grey, so
    that the scale serves the pairs that say something. Returns the image, for a colour bar.
    """
    shown = np.ma.masked_invalid(np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix))
    ax.set_facecolor("0.85")
    image = ax.imshow(shown, cmap=COLOURS, vmin=0, vmax=limit)
    ticks = range(0, len(layers), 1 if len(layers) < 10 else 2)  # numbers of two digits would touch
    ax.set_xticks(ticks, [str(layers[t]) for t in ticks])
    ax.set_yticks(ticks, [str(layers[t]) for t in ticks])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title)
    return image


def count_map(matrix: np.ndarray, ax: Axes, *, title: str, limit: float) -> AxesImage:
    """Draws phi (I, J) over the numbers of singular vectors taken: i downwards, j to the right.

    Colours from 0 to `limit`; returns the image, for a colour bar.
    """
    shown = np.ma.masked_invalid(matrix)
    image = ax.imshow(shown, cmap=COLOURS, vmin=0, vmax=limit, aspect="auto")
    ax.set_facecolor("0.85")
    for axis, count in ((ax.yaxis, matrix.shape[0]), (ax.xaxis, matrix.shape[1])):
        ticks = sorted({1, -(-count // 2), count})
        axis.set_ticks([tick - 1 for tick in ticks], [str(tick) for tick in ticks])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title, fontsize=7)
    return image


def position_map(
    matrix: np.ndarray,
    ax: Axes,
    *,
    title: str,
    limit: float,
    modules: Sequence[str],
    layers: Sequence[int],
) -> AxesImage:
    """Draws values (modules, layers) from 0 to `limit`, each with its number written in it."""
    image = ax.imshow(np.ma.masked_invalid(matrix), cmap=COLOURS, vmin=0, vmax=limit, aspect="auto")
    ax.set_facecolor("0.85")
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            text = f"{value:.3f}".removeprefix("0") if value < 1 else f"{value:.2f}"
            colour = "white" if value < 0.55 * limit else "black"
            ax.text(column, row, text, color=colour, fontsize=5.5, ha="center", va="center")
    ax.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    ax.set_yticks(range(len(modules)), modules)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title, loc="left", fontsize=8)
    return image


PANELS_IN_A_ROW = 5  # legible at the width of a page


@dataclass(frozen=True)
class Panel:
    """One heat map of a grid: phi (L, L), the title above it and the line below it."""

    matrix: np.ndarray
    title: str
    below: str


def heatmap_grid(rows: list[list[Panel]], *, limit: float, layers: Sequence[int]) -> Figure:
    """Draws rows of heat maps on one colour scale; a row with too many panels goes on below itself."""
    columns = len(rows[0])
    width = min(PANELS_IN_A_ROW, columns)
    height = -(-columns // width)  # lines of panels for each row
    fig, axes = plt.subplots(
        len(rows) * height,
        width,
        figsize=(1.95 * width + 0.6, 2.25 * len(rows) * height + 0.6),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for n, row in enumerate(rows):
        for m, panel in enumerate(row):
            line, place = divmod(m, width)
            ax = axes[n * height + line, place]
            ax.set_axis_on()
            image = heatmap(panel.matrix, ax, title=panel.title, limit=limit, layers=layers)
            ax.set_xlabel(panel.below, fontsize=8)
            ax.tick_params(labelbottom=True)
            if place == 0:
                ax.set_ylabel("layer")
    fig.colorbar(
        image,
        ax=axes,
        location="bottom",
        label=f"φ, colours from 0 to {limit:g}; the diagonal is 1",
        shrink=0.8,
        aspect=40,
    )
    return fig


def round_up(value: float) -> float:
    """The first of a few round numbers up to 1 that is not below `value`: the end of a colour scale."""
    steps = (0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.3, 0.5, 0.75)
    return next((step for step in steps if value <= step), 1.0)


def save(fig: Figure, stem: Path, data: pd.DataFrame) -> list[Path]:
    """Writes `<stem>.png`, `.pdf` and `.csv` (what is drawn), closes the figure, returns the paths.

    Without dates and program versions, so that the same figure gives the same bytes.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "pdf", "csv")]
    fig.savefig(paths[0], dpi=150, metadata={"Software": None})
    _shrink(paths[0])
    fig.set_layout_engine("none")  # laid out once, by the first file
    fig.savefig(paths[1], metadata={"CreationDate": None, "Creator": None, "Producer": None})
    data.to_csv(paths[2], index=False, float_format=CSV_FORMAT, lineterminator="\n")
    plt.close(fig)
    return paths


def _shrink(path: Path) -> None:
    """Keep the 256 colours that serve a picture best: a third of the bytes, which every report holds once more."""
    with Image.open(path) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
