"""Heat maps of phi over all (i, j), as figures 3 and 4 of the LoRA paper; see lora_subspace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from analysis.maths.lora_subspace import Comparison
from analysis.present.figures import COLUMN_WIDTH, count_map, round_up, save
from analysis.study.names import MATRIX_LABEL, label


def draw(comparisons: Sequence[Comparison], stem: Path) -> Path:
    """A map of every comparison, mean over pairs of runs and layers, with random factors to its right.

    Between two ranks the maps are flat and each comparison has a row of its own; between seeds they
    are square and the methods stand side by side. All comparisons are of one kind.
    """
    pairs, drawn = [], []
    for c in comparisons:
        trained, random = c.phi.mean(axis=(0, 1)), c.random.mean(axis=(0, 1))
        pairs.append((trained, random))
        drawn.append(_drawn(c, "trained", trained, len(c.phi)))
        drawn.append(_drawn(c, "random", random, len(c.random)))
    flat = comparisons[0].compared == "ranks"
    across = 1 if flat else len({c.method for c in comparisons})
    rows, columns = -(-len(pairs) // across), 2 * across
    size = (max(COLUMN_WIDTH, 0.8 * columns), rows * (0.58 if flat else 0.8) + 0.95)
    fig, axes = plt.subplots(
        rows,
        columns,
        figsize=size,
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    limit = round_up(max(np.nanmax(values) for pair in pairs for values in pair))
    for n, (c, pair) in enumerate(zip(comparisons, pairs, strict=True)):
        row, place = divmod(2 * n, columns)
        for ax, values, title in zip(axes[row, place:], pair, _titles(c), strict=False):
            image = count_map(values, ax, title=title if row == 0 else "", limit=limit)
        if place == 0:
            name = label(c.method) if flat else MATRIX_LABEL[c.matrix]
            axes[row, 0].set_ylabel(f"{name}\n{c.module}", fontsize=7)
    bar = fig.colorbar(image, ax=axes, location="bottom", shrink=0.8, aspect=40)
    bar.set_label(f"φ(i, j) from 0 to {limit:g}; i downwards, j to the right", size=7)
    return save(fig, stem, pd.concat(drawn))[0]


def _titles(c: Comparison) -> tuple[str, str]:
    if c.compared == "ranks":
        return "trained", "nothing learned"
    return label(c.method), "Gaussian\nmaps, W₀" if c.method == "condlora" else "Gaussian"


def _drawn(c: Comparison, source: str, phi: np.ndarray, n: int) -> pd.DataFrame:
    i, j = np.indices(phi.shape) + 1
    names = {"matrix": c.matrix, "module": c.module, "method": c.method, "source": source}
    numbers = {"i": i.ravel(), "j": j.ravel(), "phi": phi.ravel()}
    return pd.DataFrame(names | numbers).assign(n=n)
