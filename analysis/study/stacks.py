"""The matrices A, B and W of finished runs, or of adapters from elsewhere, stacked over runs and layers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analysis.study.records import missing_adapters
from analysis.study.run_files import RecordedCell
from condlora.errors import NoFinishedRuns, UserError
from condlora.grid.cells import Cell


@dataclass(frozen=True)
class Stack:
    """One module kind's matrices in all runs of one adapter that share weights and rank.

    W (L, out, in), None for adapters without their base model; A (runs, L, r, in); B (runs, L, out, r); `cells` are the
    runs in that order and `layers` the L layers, counted from 1 as in the paper.
    """

    adapter: str
    module: str
    layers: list[int]
    W: Tensor | None
    A: Tensor
    B: Tensor
    cells: list[Cell]


def with_adapters(cells: Iterable[Cell]) -> list[Cell]:
    """Those of finished runs whose matrices can be read: all but the runs read from the committed records."""
    return [cell for cell in cells if not isinstance(cell, RecordedCell)]


def load_stacks(
    cells: Iterable[Cell], load: Callable[[Path], dict[str, Any]] | None = None
) -> list[Stack]:
    """The A and B of all `cells`, stacked by adapter and module kind, with W kept once.

    `load` reads one run folder (default: condlora.models.adapters.load_factors).

    Raises:
        NoFinishedRuns: a run has no adapter, as it is read from the committed records.
        UserError: the runs of one adapter have other frozen weights or ranks, which no average can join.
    """
    cells = list(cells)
    if lacking := missing_adapters(cells):
        raise NoFinishedRuns(lacking)
    if load is None:
        from condlora.models.adapters import (
            load_factors as load,  # it imports transformers: seconds
        )

    firsts: dict[tuple[str, str], Any] = {}
    groups: dict[tuple[str, str], list[tuple[Cell, Tensor, Tensor]]] = {}
    for cell in cells:
        for module, factors in load(cell.folder).items():
            first = firsts.setdefault((cell.adapter, module), factors)
            if not _fit_together(first, factors):
                raise UserError(
                    f"{cell.folder} has other frozen weights, other layers or another rank than what was read of "
                    f"'{cell.adapter}' before it: analyse it by itself."
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


def _fit_together(first: Any, other: Any) -> bool:
    """Whether two runs' factors of one module kind have the same frozen weights, layers and rank."""
    if first.A.shape != other.A.shape or first.layers != other.layers:
        return False
    return first.W is other.W or torch.equal(first.W, other.W)
