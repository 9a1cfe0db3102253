"""Which runs an analysis reads: the grid of a profile, its finished cells and their matrices."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from omegaconf import DictConfig
from torch import Tensor

from analysis.study.comparability import require_comparable
from condlora.errors import NoFinishedRuns, UserError
from condlora.grid.cells import Cell, compose_common
from condlora.grid.listing import newest_profile, survey

PAPER = Path(__file__).resolve().parents[2] / "results" / "paper"
# The tasks as the paper names them, in its order.
TASKS = {
    "mnli": "MNLI",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "cola": "CoLA",
    "qnli": "QNLI",
    "qqp": "QQP",
    "rte": "RTE",
    "stsb": "STS-B",
}
REFERENCE = "lora"  # what every other adapter is compared with
MATRIX_LABEL = {"A": "A", "B": "B", "BA": "B A", "delta_W": "ΔW"}


@dataclass(frozen=True)
class Settings:
    """How an analysis is computed; `i` and `j` are null where they follow the rank r."""

    i: int | None
    j: int | None
    baseline_seed: int
    baseline_draws: int

    def counts(self, r: int) -> tuple[int, int]:
        """The numbers of singular vectors (i, j) for adapters of rank r; at most r each."""
        i, j = (r if count is None else count for count in (self.i, self.j))
        if not (1 <= i <= r and 1 <= j <= r):
            raise UserError(
                f"i = {i} and j = {j} must lie between 1 and the rank {r}; set i and j."
            )
        return i, j

    def generator(self) -> torch.Generator:
        """A fresh generator: each analysis draws the same baselines whatever ran before it."""
        return torch.Generator().manual_seed(self.baseline_seed)


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


@dataclass(frozen=True)
class Study:
    """One profile's grid and where its results go. left_out: what the profile says that it lacks."""

    profile: str
    cells: list[Cell]
    folder: Path
    settings: Settings
    left_out: tuple[str, ...] = ()

    @property
    def done(self) -> list[Cell]:
        return finished(self.cells)


def open_study(cfg: DictConfig) -> Study:
    """The profile asked for, or the one with the newest finished run.

    Raises:
        NoFinishedRuns: there is nothing to analyse.
        UserError: its runs cannot be joined, see `analysis.study.comparability`.
    """

    runs = Path(cfg.runs)
    profile = cfg.profile or newest_profile(runs)
    cells = survey(profile, runs)
    if not finished(cells):
        raise NoFinishedRuns(
            f"Profile '{profile}' has no finished run in {runs}: run the profile first."
        )
    require_comparable(finished(cells), cfg.may_differ)
    settings = Settings(cfg.i, cfg.j, cfg.baseline_seed, cfg.baseline_draws)
    left_out = compose_common((f"profile={profile}",)).profile.get("left_out", [])
    return Study(profile, cells, Path(cfg.results) / profile, settings, tuple(left_out))


def finished(cells: Iterable[Cell]) -> list[Cell]:
    """The cells that count, in the paper's order of tasks; all others are named, never averaged."""
    return sorted(
        (cell for cell in cells if cell.state == "done"),
        key=lambda c: (task_order(c.task), adapter_order(c.adapter), c.seed),
    )


def against_reference(runs: pd.DataFrame, column: str, operation: str, name: str) -> pd.DataFrame:
    """`column` of each other method compared with LoRA's, for each task and seed that both finished.

    runs: a row a run, with task, adapter, seed and `column`. operation: "sub" or "div", LoRA's value second.
    Returns a row a pair: task, seed, adapter and the result under `name`.
    """
    wide = runs.pivot(index=["task", "seed"], columns="adapter", values=column)
    if REFERENCE not in wide:
        return pd.DataFrame(columns=["task", "seed", "adapter", name])
    others = getattr(wide.drop(columns=REFERENCE), operation)(wide[REFERENCE], axis=0)
    return (
        others.melt(ignore_index=False, var_name="adapter", value_name=name)
        .dropna(subset=name)
        .reset_index()
    )


def task_order(task: str) -> tuple[int, str]:
    """Sorting key: the paper's order, then any other task by name."""
    known = list(TASKS)
    return (known.index(task) if task in known else len(known), task)


def adapter_order(adapter: str) -> tuple[int, list[str | int]]:
    """Sorting key: LoRA, CondLoRA, then any other method by name, rank 2 before rank 16."""
    known = [REFERENCE, "condlora"]
    parts = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", adapter)]
    return (known.index(adapter) if adapter in known else len(known), parts)


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


def published(name: str) -> dict[str, Any]:
    """The paper's numbers of one table or figure, from results/paper/<name>.yaml."""
    return yaml.safe_load((PAPER / f"{name}.yaml").read_text(encoding="utf-8"))


def is_paper_backbone(record: dict[str, Any]) -> bool:
    """Whether a run used the paper's backbone, so that its numbers may be compared directly."""
    # A folder's name is its path; DistilRoBERTa's ends alike and is another model.
    return record["backbone"]["name"].lower().split("/")[-1].startswith("roberta-base")
