"""The power table and figure: response of every statistic to the planted share, and the null in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.maths.planted import LEFT_OUT, RIDGES
from analysis.maths.subspace import expected_random_phi, means_of_pairs
from analysis.present import typeset
from analysis.present.figures import heatmap, round_up, save
from analysis.stats import formatting
from analysis.stats.power import power, smallest_detected

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig

    from analysis.maths.power import Power

LABEL = {
    "phi_all": "Figure 1's φ, all pairs",
    "phi_deep": "Figure 1's φ, deep half",
    "phi_shallow": "Figure 1's φ, shallow half",
    "transposed": "φ through the transposed inverse",
    "flat": "φ, flat spectrum",
    "truncated": "φ, 4 r smallest directions removed",
    **{f"ridge_{c:g}": f"φ, ridge inverse, λ = {c:g} mean σ²" for c in RIDGES},
    LEFT_OUT: "left-out-layer linear map",
}
FORM = {"W": "W₀θ: B, and A in the form code", "W'": "W₀′θ: A in the form consistent"}
# Colour and line of the statistics that the figure shows; the others are in the table (colours: Okabe and Ito).
DRAWN = {
    "phi_all": ("#0072B2", "-"),
    "phi_deep": ("#56B4E9", "--"),
    "transposed": ("#CC79A7", "-."),
    "truncated": ("#E69F00", ":"),
    "ridge_0.1": ("#009E73", (0, (5, 1))),
    LEFT_OUT: ("#D55E00", "-"),
}


def tables(result: Power, cfg: DictConfig) -> list[typeset.Table]:
    """`power`: smallest share detected; `null`: Figure 1 under the null, closed form and draws."""
    return [_power_table(result, cfg), _null_table(result, cfg)]


def _power_table(result: Power, cfg: DictConfig) -> typeset.Table:
    shown = [rho for rho in (0, 0.1, 0.5, 0.9, 1) if rho in result.rho]
    rows, data = [], []
    for (module, form, name), response in result.response.items():
        reached = power(response, cfg.runs_at_hand, cfg.alpha)
        smallest = smallest_detected(result.rho, reached, cfg.power)
        mean, sd = response.mean(axis=1), response.std(axis=1, ddof=1)
        at = dict(zip(result.rho, mean, strict=True))
        cells = [formatting.number(at[rho], 3) for rho in shown]
        rows.append([module, FORM[form], LABEL[name], *cells, formatting.number(smallest, 2)])
        for numbers in zip(result.rho, mean, sd, reached, strict=True):
            data.append([module, form, name, *numbers, smallest])
    names = ["module", "form", "statistic", "rho", "mean", "sd", "power", "smallest_rho"]
    return typeset.Table(
        name="power",
        title="What each statistic detects: planted adapters of which one map of W₀ explains a share ρ",
        header=[
            "modules",
            "planted",
            "statistic",
            *(f"ρ = {rho:g}" for rho in shown),
            "smallest ρ",
        ],
        rows=rows,
        data=pd.DataFrame(data, columns=names),
        notes=[
            f"Mean over {cfg.draws} planted worlds on the backbone's own W₀, rank {cfg.r}, i = j = r. Smallest ρ: from "
            f"here on the mean of {cfg.runs_at_hand} runs lies above the null (ρ = 0) in a one-sided test at level "
            f"{cfg.alpha:g} with power {cfg.power:g}; interpolated between the planted shares, a dash where no share is "
            "detected. ρ = 1 is the paper's hypothesis.",
        ],
        text_columns=3,
    )


def _null_table(result: Power, cfg: DictConfig) -> typeset.Table:
    import torch

    rows, data = [], []
    for module, expected in result.expected.items():
        closed, drawn = (
            means_of_pairs(torch.from_numpy(x)).tolist() for x in (expected, result.drawn[module])
        )
        chance = expected_random_phi(cfg.r, cfg.r, result.widths[module])
        cells = [formatting.number(x, 4) for x in (*closed, *drawn, chance)]
        rows.append([module, *cells])
        data.append([module, *closed, *drawn, chance])
    names = [f"{how}_{part}" for how in ("closed", "drawn") for part in ("all", "deep", "shallow")]
    return typeset.Table(
        name="null",
        title="Figure 1 when nothing was learned: Gaussian A and B through W₀⁻¹",
        header=["modules", "closed form: all pairs", "deep half", "shallow half",
                "draws: all pairs", "deep half", "shallow half", "random subspaces"],
        rows=rows,
        data=pd.DataFrame(data, columns=["module", *names, "random_subspaces"]),
        notes=[
            "Mean φ over pairs of two layers. Closed form: from W₀'s singular values and vectors alone. Draws: "
            f"{cfg.draws} draws of Gaussian matrices. Random subspaces: r / d, the expectation of the paper's baseline.",
        ],
    )  # fmt: skip


def draw(result: Power, cfg: DictConfig, folder: Path) -> Path:
    """One row per module kind: responses to rho, and Figure 1's map under the null; returns the png."""
    modules = list(result.expected)
    fig, axes = plt.subplots(
        len(modules), 2, figsize=(7.2, 2.9 * len(modules)), layout="constrained", squeeze=False,
        width_ratios=[1.5, 1],
    )  # fmt: skip
    largest = (m[~np.eye(len(m), dtype=bool)].max() for m in result.expected.values())
    limit = round_up(max(largest))
    for (left, right), module in zip(axes, modules, strict=True):
        _responses(left, result, module)
        image = heatmap(
            result.expected[module], right, limit=limit, layers=result.layers[module],
            title=f"{module}: what W₀ alone predicts",
        )  # fmt: skip
        right.set_xlabel("layer")
        right.set_ylabel("layer")
        fig.colorbar(image, ax=right, label="expected φ", shrink=0.85)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return save(fig, folder / "power", _power_table(result, cfg).data)[0]


def _responses(ax: Axes, result: Power, module: str) -> None:
    for name, (colour, line) in DRAWN.items():
        response = result.response.get((module, "W", name))
        if response is None:
            continue
        mean, sd = response.mean(axis=1), response.std(axis=1, ddof=1)
        ax.plot(result.rho, mean, linestyle=line, color=colour, label=LABEL[name], linewidth=1.6)
        ax.fill_between(result.rho, mean - sd, mean + sd, color=colour, alpha=0.2, linewidth=0)
    ax.set_title(f"{module}: response to a planted share")
    ax.set_xlabel("ρ, the share that one map of W₀ explains")
    ax.set_ylabel("value of the statistic")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)
