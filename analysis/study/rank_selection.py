"""Runs of several ranks: which method and rank each is of, and their matrices.

A rank is read from the record, and a method is known by its configuration's name without the mark
of its rank ("lora_r16" is LoRA).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.study.stacks import Stack, load_stacks
from condlora.errors import NoFinishedRuns
from condlora.grid.cells import Cell

PAPER_RANK = 8


def method_of(adapter: str) -> str:
    """The method an adapter's configuration is of: its name without the mark of a rank."""
    return re.sub(r"[-_]r?\d+$", "", adapter)


def has_rank(cell: Cell) -> bool:
    """Whether a finished run's method has LoRA's r and alpha."""
    return {"r", "lora_alpha"} <= set(cell.record["recipe"]["adapter"]["config"])


def rank_of(cell: Cell) -> int:
    """r of a finished run."""
    return cell.record["recipe"]["adapter"]["config"]["r"]


def scaling(cell: Cell) -> float:
    """s = alpha / r, for rsLoRA alpha / sqrt(r), by which B A is multiplied in a finished run."""
    config = cell.record["recipe"]["adapter"]["config"]
    return config["lora_alpha"] / rank_of(cell) ** (0.5 if config.get("use_rslora") else 1)


def shown_rank(stacks: Iterable[Stack]) -> int:
    """The rank that stands for all where one is shown: the paper's, else the highest."""
    ranks = {stack.A.shape[-2] for stack in stacks}
    if not ranks:
        raise NoFinishedRuns(
            "No finished run here is of LoRA, CondLoRA or another method of one B A."
        )
    return PAPER_RANK if PAPER_RANK in ranks else max(ranks)


def load_ranks(
    cells: Iterable[Cell], load: Callable[[Path], dict[str, Any]] | None = None
) -> list[Stack]:
    """`load_stacks` of runs that may differ in rank under one adapter's name."""
    by_rank: dict[int, list[Cell]] = {}
    for cell in filter(has_rank, cells):
        by_rank.setdefault(rank_of(cell), []).append(cell)
    return [stack for r in sorted(by_rank) for stack in load_stacks(by_rank[r], load)]


def by_method(stacks: Iterable[Stack]) -> list[Stack]:
    """The same stacks, each named by its method alone; their ranks tell them apart."""
    return [replace(stack, adapter=method_of(stack.adapter)) for stack in stacks]
