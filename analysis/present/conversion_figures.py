"""The figures of Figure 1's controls; each writes png, pdf and csv into `folder`, returns the png."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.maths.conversion_similarity import CONTROL, TRAINED
from analysis.maths.inverse_spectrum import COUNTS, Spectra
from analysis.present.figures import COLOURS, METHOD_STYLE, save
from analysis.present.inverse_spectrum import LABEL

STYLE = {
    TRAINED: {"color": METHOD_STYLE["lora"]["color"], "marker": "o", "markersize": 4},
    CONTROL: {"color": "0.45", "marker": "x", "markersize": 4, "linestyle": "--"},
}


def draw_controls(values: pd.DataFrame, sources: dict[str, str], folder: Path) -> Path:
    """Each run, pair of runs or draw as a dot and their mean; a panel per module kind and matrix.

    values: as of `conversion_controls.Controls`; sources: source -> its name, in the order drawn.
    """
    kinds = list(values.groupby(["module", "matrix"], sort=False))
    names = list(sources.values())
    fig, axes = plt.subplots(
        1,
        len(kinds),
        figsize=(1.7 * len(kinds) + 1.7, 3),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for ax, ((module, matrix), group) in zip(axes.flat, kinds, strict=True):
        for source, of_source in group.groupby("source"):
            place, phi = list(sources).index(source), of_source.off_diagonal
            colour = STYLE[TRAINED]["color"] if source == TRAINED else "0.45"
            opacity = 0.8 if source == TRAINED else 0.25
            ax.plot(phi, [place] * len(phi), ".", color=colour, alpha=opacity, markersize=4)
            ax.plot(phi.mean(), place, "|", color="black", markersize=11, markeredgewidth=1.5)
        ax.set_yticks(range(len(names)), names)
        ax.set_title(f"W₀→{matrix}, {module}")
        ax.grid(axis="x", color="0.9")
        ax.set_axisbelow(True)
    axes[0, 0].set_xlim(left=0)  # after all are drawn: the panels share their limits
    axes[0, 0].invert_yaxis()
    fig.supxlabel("mean φ over pairs of layers", fontsize=9)
    return save(fig, folder / "figure1_controls", values)[0]


def _row(panels: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A row of panels that share their vertical axis, each of `width` x `height` inches."""
    return plt.subplots(
        1,
        panels,
        figsize=(width * panels, height),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )


def draw_spectra(result: Spectra, folder: Path) -> Path:
    """Singular values of every W0 by their place, a line per layer, a panel per module kind."""
    modules = list(result.sigma.module.unique())
    fig, axes = _row(len(modules), 3.3, 2.8)
    layers = sorted(result.sigma.layer.unique())
    shades = plt.get_cmap(COLOURS)(np.linspace(0, 0.9, len(layers)))
    for ax, module in zip(axes.flat, modules, strict=True):
        of_module = result.sigma[result.sigma.module == module]
        for layer, group in of_module.groupby("layer"):
            shade = shades[layers.index(layer)]
            ax.loglog(group.place, group.sigma, color=shade, linewidth=1, label=str(layer))
        ax.set_title(f"W₀ of {module} modules")
        ax.set_xlabel("place in the order, smallest first")
    axes[0, 0].set_ylabel("singular value")
    axes[0, -1].legend(title="layer", fontsize=6, title_fontsize=7, ncols=2, frameon=False)
    return save(fig, folder / "figure1_spectra", result.sigma)[0]


def draw_truncation(result: Spectra, folder: Path) -> Path:
    """phi over the number of smallest directions removed, for trained and for Gaussian A and B."""
    kinds = list(result.along.groupby(["module", "matrix"], sort=False))
    fig, axes = _row(len(kinds), 2.2, 2.4)
    for ax, ((module, matrix), group) in zip(axes.flat, kinds, strict=True):
        for source, style in STYLE.items():
            by_k = group[group.source == source].groupby("k").off_diagonal
            places = range(len(by_k))
            ax.errorbar(places, by_k.mean(), by_k.std(), label=LABEL[source], **style)
        ax.set_xticks(range(1 + len(COUNTS)), ["0", *map(str, COUNTS)])
        ax.set_title(f"W₀→{matrix}, {module}")
        ax.set_xlabel("directions taken out")
        ax.axhline(group.random.iloc[0], color="0.7", linestyle=":", label="random subspaces")
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].set_ylabel("mean φ between layers")
    axes[0, 0].legend(fontsize=7, frameon=False)
    return save(fig, folder / "figure1_truncation", result.along)[0]
