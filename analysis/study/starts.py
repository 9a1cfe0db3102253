"""LoRA's matrices at other moments of training: the start A0, and the adapters kept at given steps."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import torch
from torch import Tensor

from analysis.study.adapters import WEIGHTS, read_pairs
from analysis.study.stacks import Stack
from condlora.grid.cells import Cell

KEPT = "adapter_at_"  # the folders that runtime.keep_adapters_at asks for


def start_of(stack: Stack) -> Tensor | None:
    """A0 (runs, L, r, in) of a stack's runs: A before the first step, from the run's initialisation stream.

    Read where the run kept it (`adapter_at_0`), else drawn again to the same bits. None for adapters from elsewhere, whose
    start is not known.
    """
    starts = [_start(cell, stack) for cell in stack.cells]
    return None if any(start is None for start in starts) else torch.stack(starts)


def _start(cell: Cell, stack: Stack) -> Tensor | None:
    seeds = cell.record.get("streams") if cell.record else None
    if not seeds or not (cell.folder / "config.yaml").is_file():
        return None
    if (cell.folder / f"{KEPT}0" / WEIGHTS).is_file():
        return _pair(cell.folder / f"{KEPT}0", cell, stack)[0]
    return _drawn(cell.folder, seeds["initialisation"])[stack.module]


@functools.lru_cache(maxsize=512)  # a run's start serves the stacks of all its module kinds
def _drawn(folder: Path, seed: int) -> dict[str, Tensor]:
    """A0 (L, r, in) by module kind."""
    # Here, as it imports transformers, which takes seconds.
    from condlora.models.adapters import initial_factors

    return {module: factors.A for module, factors in initial_factors(folder, seed).items()}


def steps_of(stack: Stack) -> dict[int, tuple[Tensor, Tensor]]:
    """step -> A (runs, L, r, in) and B (runs, L, out, r) of the steps after the first that all runs kept, ascending."""
    kept = [_kept(cell) for cell in stack.cells]
    shared = sorted(set.intersection(*map(set, kept)) - {0}) if kept else []
    found = {}
    for step in shared:
        pairs = [
            _pair(of_run[step], cell, stack) for of_run, cell in zip(kept, stack.cells, strict=True)
        ]
        A, B = (torch.stack([pair[n] for pair in pairs]) for n in (0, 1))
        found[step] = A, B
    return found


def _kept(cell: Cell) -> dict[int, Path]:
    """step -> folder; empty for adapters from elsewhere."""
    found: dict[int, Path] = {}
    if not cell.record.get("streams"):
        return found
    for path in cell.folder.glob(f"{KEPT}*"):
        step = re.fullmatch(rf"{KEPT}(\d+)", path.name)
        if step and (path / WEIGHTS).is_file():
            found[int(step[1])] = path
    return found


def _pair(folder: Path, cell: Cell, stack: Stack) -> tuple[Tensor, Tensor]:
    """A (L, r, in) and B (L, out, r) of the stack's modules in one saved adapter."""
    from condlora.tuner.sharing import layer_index

    last = cell.record["backbone"]["modules"][stack.module]
    pairs = {
        layer_index(path): pair
        for path, pair in read_pairs(folder).items()
        if path.rsplit(".", 1)[-1] == last
    }
    A, B = (torch.stack([pairs[layer - 1][n] for layer in stack.layers]) for n in (0, 1))
    return A, B
