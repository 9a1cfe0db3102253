"""Where in the encoder adapters differ: maps over layers and kinds of modules.

Takes the matrices of finished runs, gives phi between LoRA and CondLoRA of the same layer, task and
seed, and the size of each method's update, ||s B A|| / ||W||, for every layer and module kind.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig

from analysis import adapter_similarity
from analysis.amplification import product_norm
from analysis.present import typeset
from analysis.present.figures import COLUMN_WIDTH, label, position_map, round_up, save
from analysis.present.typeset import Picture, Section, Table
from analysis.stats.significance import summarise
from analysis.study.rank_selection import by_method, load_ranks, scaling, shown_rank
from analysis.study.selection import MATRIX_LABEL, Settings, Stack, adapter_order, open_study
from condlora.commands.cli import command

PHI, NORM = "phi", "relative_norm"


@dataclass(frozen=True)
class Positions:
    """A row of `values` per run, module kind and layer: phi of a matrix, or a method's norm.

    `quantity` is PHI with `of` a matrix, or NORM with `of` a method; r is the rank they are at.
    """

    values: pd.DataFrame
    r: int

    @property
    def maps(self) -> list[tuple[str, str]]:
        """(quantity, of) of all maps, phi first."""
        found = set(self.values[["quantity", "of"]].itertuples(index=False, name=None))
        return sorted(found, key=lambda m: (m[0] == NORM, adapter_order(m[1])))

    def map(self, quantity: str, of: str) -> pd.DataFrame:
        """Means over runs: a row per module kind, a column per layer."""
        v = self.values
        chosen = v[(v.quantity == quantity) & (v.of == of)]
        return chosen.pivot_table(index="module", columns="layer", values="value", dropna=False)


def locate(stacks: list[Stack], settings: Settings) -> Positions:
    """phi between the methods and relative norms at every position, at the paper's rank or the highest."""
    r = shown_rank(stacks)
    chosen = [stack for stack in by_method(stacks) if stack.A.shape[-2] == r]
    # Its baseline is not used here.
    found = adapter_similarity.compare(chosen, replace(settings, baseline_draws=1))
    phi = found.values
    if all(i == j == rank for i, j, rank in found.counts.values()):
        phi = phi[phi.matrix != "delta_W"]  # its left space is then that of B
    phi = phi.rename(columns={"phi": "value", "matrix": "of"}).assign(quantity=PHI)
    values = pd.concat([phi, _relative_norms(chosen)], ignore_index=True)
    return Positions(values.astype({"value": float, "layer": int}), r)  # also where phi is empty


def _relative_norms(stacks: list[Stack]) -> pd.DataFrame:
    rows = []
    for stack in stacks:
        relative = product_norm(stack.B, stack.A) / torch.linalg.matrix_norm(stack.W.double())
        for cell, values in zip(stack.cells, relative.tolist(), strict=True):
            for layer, value in zip(stack.layers, values, strict=True):
                rows.append(
                    {
                        "module": stack.module,
                        "task": cell.task,
                        "seed": cell.seed,
                        "of": stack.adapter,
                        "layer": layer,
                        "value": scaling(cell) * value,
                        "quantity": NORM,
                    }
                )
    return pd.DataFrame(rows)


def _title(quantity: str, of: str) -> str:
    if quantity == PHI:
        return f"φ of {MATRIX_LABEL[of]}, LoRA and CondLoRA"
    return f"‖ΔW‖ / ‖W‖, {label(of)}"


def table(result: Positions) -> Table:
    """Every map with its spread: a row per map and module kind, a column per layer."""
    v, rows = result.values, []
    layers = sorted(set(v.layer))
    for quantity, of in result.maps:
        for module in sorted(set(v.module)):
            own = v[(v.quantity == quantity) & (v.of == of) & (v.module == module)]
            found = [summarise(own.value[own.layer == layer]) for layer in layers]
            cells = [typeset.spread(x, 3, with_n=False) for x in found]
            rows.append([_title(quantity, of), module, str(found[0].n), *cells])
    return Table(
        name="positions",
        title=f"Layers and modules: likeness and size of updates, r = {result.r}",
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
    for ((quantity, of), values), ax in zip(maps, axes.flat, strict=True):
        position_map(
            values.to_numpy(),
            ax,
            title=_title(quantity, of),
            limit=limits[quantity],
            modules=list(modules),
            layers=list(layers),
        )
    axes[-1, 0].set_xlabel("layer", fontsize=8)
    drawn = [
        values.stack().rename("value").reset_index().assign(quantity=quantity, of=of)
        for (quantity, of), values in maps
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
    return Section("Where do the methods differ?", text, [picture], [table(result)])


def _extremes(values: pd.DataFrame) -> str:
    flat = values.stack().dropna()
    if flat.empty:
        return "undefined, as an update of zero has no direction"
    ends = ((flat.idxmin(), flat.min()), (flat.idxmax(), flat.max()))
    low, high = (
        f"{typeset.number(value, 3)} ({module}, layer {layer})" for (module, layer), value in ends
    )
    return f"from {low} to {high}"


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    result = locate(load_ranks(study.done), study.settings)
    typeset.write(table(result), study.folder / "tables")
    print(f"Layers and modules: {draw(result, study.folder / 'figures')}")


if __name__ == "__main__":
    main()
