"""Where in the encoder adapters differ: maps over layers and kinds of modules.

Takes the matrices of finished runs, gives phi between LoRA and CondLoRA of the same layer, task and
seed, and the size of each method's update, ||s B A|| / ||W||, for every layer and module kind.
"""

from dataclasses import dataclass, replace

import pandas as pd
import torch

from analysis.maths import adapter_similarity
from analysis.maths.amplification import product_norm
from analysis.study.names import adapter_order
from analysis.study.rank_selection import by_method, scaling, shown_rank
from analysis.study.selection import Settings
from analysis.study.stacks import Stack

PHI, NORM = "phi", "relative_norm"


@dataclass(frozen=True)
class Positions:
    """A row of `values` per run, module kind and layer: phi of a matrix, or a method's norm.

    `quantity` is PHI with a matrix, or NORM with a method; r is the rank they are at.
    """

    values: pd.DataFrame
    r: int

    @property
    def maps(self) -> list[tuple[str, str]]:
        """(quantity, matrix or method) of all maps, phi first."""
        found = set(
            self.values[["quantity", "matrix_or_method"]].itertuples(index=False, name=None)
        )
        return sorted(found, key=lambda m: (m[0] == NORM, adapter_order(m[1])))

    def map(self, quantity: str, matrix_or_method: str) -> pd.DataFrame:
        """Means over runs: a row per module kind, a column per layer."""
        v = self.values
        chosen = v[(v.quantity == quantity) & (v.matrix_or_method == matrix_or_method)]
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
    phi = phi.rename(columns={"phi": "value", "matrix": "matrix_or_method"}).assign(quantity=PHI)
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
                        "matrix_or_method": stack.adapter,
                        "layer": layer,
                        "value": scaling(cell) * value,
                        "quantity": NORM,
                    }
                )
    return pd.DataFrame(rows)
