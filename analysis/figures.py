"""The one place that sets the plotting style; figures are byte-equal when drawn again."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from analysis.typeset import CSV_FORMAT

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
    "lora": {"color": "#0072B2", "marker": "o", "label": "LoRA"},
    "condlora": {"color": "#D55E00", "marker": "s", "label": "CondLoRA"},
}


def label(adapter: str) -> str:
    """The name a method goes by; its configuration's name where no other is set."""
    return METHOD_STYLE.get(adapter, {}).get("label", adapter)


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
    ticks = range(0, len(layers), 1 if len(layers) <= 12 else 2)
    ax.set_xticks(ticks, [str(layers[t]) for t in ticks])
    ax.set_yticks(ticks, [str(layers[t]) for t in ticks])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title)
    return image


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
    fig.set_layout_engine("none")  # laid out once, by the first file
    fig.savefig(paths[1], metadata={"CreationDate": None, "Creator": None, "Producer": None})
    data.to_csv(paths[2], index=False, float_format=CSV_FORMAT, lineterminator="\n")
    plt.close(fig)
    return paths
