"""The matrices A, B and W of finished runs, stacked over runs and layers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condlora.errors import UserError
from condlora.grid.cells import Cell


@dataclass(frozen=True)
class Stack:
    """One module kind's matrices in all runs of one adapter that share weights and rank.

    W (L, out, in); A (runs, L, r, in); B (runs, L, out, r); `cells` are the runs in that order and
    `layers` the L layers, counted from 1 as in the paper.
    """

    adapter: str
    module: str
    layers: list[int]
    W: Tensor
    A: Tensor
    B: Tensor
    cells: list[Cell]


def load_stacks(
    cells: Iterable[Cell], load: Callable[[Path], dict[str, Any]] | None = None
) -> list[Stack]:
    """The A and B of all `cells`, stacked by adapter and module kind, with W kept once.

    `load` reads one run folder (default: condlora.models.adapters.load_factors). Raises UserError where
    the runs of one adapter have other frozen weights or ranks, which no average can join.
    """
    if load is None:
        from condlora.models.adapters import (
            load_factors as load,  # it imports transformers: seconds
        )

    firsts: dict[tuple[str, str], Any] = {}
    groups: dict[tuple[str, str], list[tuple[Cell, Tensor, Tensor]]] = {}
    for cell in cells:
        for module, factors in load(cell.folder).items():
            first = firsts.setdefault((cell.adapter, module), factors)
            if first.A.shape != factors.A.shape or not torch.equal(first.W, factors.W):
                raise UserError(
                    f"{cell.folder} has other frozen weights or another rank than the runs of "
                    f"'{cell.adapter}' before it: analyse them as profiles of their own."
                )
            groups.setdefault((cell.adapter, module), []).append((cell, factors.A, factors.B))
    return [
        Stack(
            adapter,
            module,
            layers=[layer + 1 for layer in firsts[adapter, module].layers],
            W=firsts[adapter, module].W,
            A=torch.stack([A for _, A, _ in group]),
            B=torch.stack([B for _, _, B in group]),
            cells=[cell for cell, _, _ in group],
        )
        for (adapter, module), group in groups.items()
    ]
