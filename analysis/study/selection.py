"""The runs that an analysis reads: the cells of a profile's grid that are finished."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from analysis.study.comparability import require_comparable
from analysis.study.grids import load_cells
from analysis.study.names import adapter_order, task_order
from analysis.study.run_files import RecordedCell
from condlora.errors import NoFinishedRuns, UserError
from condlora.grid.cells import Cell, compose_common
from condlora.grid.listing import newest_profile

if TYPE_CHECKING:
    import torch

DEFAULT_RUNS = "runs"  # configs/analysis/settings.yaml


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
        import torch  # here, as a wrong setting is reported without it

        return torch.Generator().manual_seed(self.baseline_seed)


@dataclass(frozen=True)
class Study:
    """One profile's grid, or adapters from elsewhere, and where its results go.

    left_out: what the profile says that it lacks, and which runs are read from committed records. load: what reads W, A
    and B in a cell's folder, where these are not runs, see `analysis.study.stacks.load_stacks`. groups: the methods by what
    they leave free in each layer, for profiles that say it. tasks: those of the profile, also where no learning rate is known
    yet, so that `cells` lack them.
    """

    profile: str
    cells: list[Cell]
    folder: Path
    settings: Settings
    left_out: tuple[str, ...] = ()
    load: Callable[[Path], dict[str, Any]] | None = None
    groups: dict[str, list[str]] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()

    @property
    def done(self) -> list[Cell]:
        return finished(self.cells)


def open_study(cfg: DictConfig) -> Study:
    """The profile asked for, or the one with the newest finished run.

    Damaged runs are named on stderr, and so is it when scores come from the committed records. Where `runs=` names a folder,
    they do not, unless `fill_from_records` asks for it: a mistyped folder must not give another's results.

    Raises:
        NoFinishedRuns: there is nothing to analyse.
        UserError: its runs cannot be joined, see `analysis.study.comparability`; or the command was given adapters.
    """
    if cfg.get("adapters") is not None:
        raise UserError(
            "This analysis reads finished runs with their scores: leave out adapters=, which the analyses of matrices "
            "take (conversion_similarity, conversion_controls, conversion_power, linear_map, lora_subspace, amplification)."
        )
    runs = Path(cfg.runs)
    profile = cfg.profile or newest_profile(runs)
    cells, notes = load_cells(profile, runs, Path(cfg.records), fill=cfg.fill_from_records)
    if not finished(cells):
        raise NoFinishedRuns(
            f"Profile '{profile}' has no finished run in {runs} and no committed records: run the profile first."
        )
    is_recorded = any(isinstance(cell, RecordedCell) for cell in finished(cells))
    if is_recorded and cfg.runs != DEFAULT_RUNS and not cfg.fill_from_records:
        raise NoFinishedRuns(
            f"Profile '{profile}' has no finished run in {runs}: run the profile first, or, to read the committed records, leave out "
            "runs= or add fill_from_records=true."
        )
    require_comparable(finished(cells), cfg.may_differ)
    for cell in cells:
        if cell.state == "damaged":
            print(f"warning: a run is left out: {cell.reason}", file=sys.stderr)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    settings = Settings(cfg.i, cfg.j, cfg.baseline_seed, cfg.baseline_draws)
    common = compose_common((f"profile={profile}",))
    described = common.profile
    tasks = str((common.hydra.sweeper.params or {}).get("task", ""))
    return Study(
        profile,
        cells,
        Path(cfg.results) / profile,
        settings,
        (*described.get("left_out", []), *notes),
        groups={name: list(methods) for name, methods in described.get("groups", {}).items()},
        tasks=tuple(task.strip() for task in tasks.split(",") if task.strip()),
    )


def open_matrices(cfg: DictConfig, *, needs_base: bool = False) -> Study:
    """What an analysis of matrices reads: the adapters of `adapters=`, else the runs as `open_study` finds them.

    needs_base: the analysis has nothing to say without W0. Errors as of `open_study` and of
    `analysis.study.adapters.open_adapters`.
    """
    if cfg.adapters is None:
        if cfg.base is not None:
            raise UserError(
                "base= is the base model of adapters=: name the adapters, or leave it out."
            )
        return open_study(cfg)
    if needs_base and cfg.base is None:
        raise UserError(
            "This analysis needs W0: add base=, the folder or hub id of the base model."
        )
    from analysis.study.adapters import open_adapters

    return open_adapters(cfg)


def finished(cells: Iterable[Cell]) -> list[Cell]:
    """The cells that count, in the paper's order of tasks; all others are named, never averaged."""
    return sorted(
        (cell for cell in cells if cell.state == "done"),
        key=lambda c: (task_order(c.task), adapter_order(c.adapter), c.seed),
    )
