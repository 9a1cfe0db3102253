"""The cells of a grid: which runs a command line or a profile names, and the state of each on disk.

Hydra's multirun starts the runs; here their configs are only composed, to the same result, so that they can be listed
and checked before anything is loaded.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from condlora.errors import MissingRates, RunFolderError
from condlora.grid import composition
from condlora.grid.composition import Words, parse, with_values
from condlora.runs.lease import living_owner
from condlora.runs.recipe import recipe, recipe_hash
from condlora.runs.record import read_cell_record, run_folder

STATES = ("done", "running", "interrupted", "stale", "failed", "damaged", "missing")


@dataclass(frozen=True)
class Planned:
    """One cell of a grid: where its run belongs, and the hash of the recipe that it must have."""

    profile: str
    task: str
    adapter: str
    seed: int
    folder: Path
    recipe_hash: str


@dataclass(frozen=True)
class Cell:
    """One run of a grid and its state on disk.

    state: done; running (or killed while it ran); interrupted by a signal; failed (`reason` says why); stale (made by
    another recipe); damaged (a file is missing or unreadable, or the record is another run's); missing.
    record: None where the state is missing or damaged. recipe_hash: that which its run must have; None without a grid.
    """

    profile: str
    task: str
    adapter: str
    seed: int
    folder: Path
    state: str
    reason: str | None
    record: dict | None
    recipe_hash: str | None = None


# Compose


@functools.lru_cache(maxsize=8)
def compose_common(overrides: Words) -> DictConfig:
    """The config that the runs of a command line share, with Hydra's own settings under `hydra`.

    Not to be changed: the next call returns the same object.
    """
    choices, values = _without_sweeps(overrides)
    cfg = copy.deepcopy(composition.composed("train", choices))
    return with_values(cfg, choices, values)


def _without_sweeps(overrides: Words) -> tuple[Words, list[Override]]:
    return composition.split([o for o in map(parse, overrides) if not o.is_sweep_override()])


@functools.lru_cache(maxsize=8)
def compose_cells(overrides: Words) -> tuple[DictConfig, ...]:
    """The config of each run that `scripts/train.py <overrides>` would start, in its order."""
    return tuple(copy.deepcopy(cfg) for cfg, _ in each_config(overrides))


def plan_cells(
    overrides: Words, runs: Path | None = None, *, skip_without_rate: bool = False
) -> tuple[Planned, ...]:
    """The cells of `compose_cells` without their configs, which takes a tenth of the time.

    runs: the folder of the runs, in place of the config's; not an override, whose grammar not every path fits.
    skip_without_rate: leave out what has no learning rate yet, in place of raising MissingRates.
    """
    cells: list[Planned] = []
    for cfg, is_fresh in each_config(overrides):
        if runs is not None:
            cfg.runs = str(runs)
        if is_fresh:
            has_rate = True
            # An adapter that starts from another run's depends on the seed.
            depends_on_seed = "${seed}" in str(OmegaConf.to_container(cfg, resolve=False))
        if is_fresh or depends_on_seed:
            try:
                cells.append(planned(cfg))
            except MissingRates:
                if not skip_without_rate:
                    raise
                has_rate = False
        elif has_rate:
            cells.append(replace(cells[-1], seed=cfg.seed, folder=run_folder(cfg)))
    return tuple(cells)


def each_config(overrides: Words) -> Iterator[tuple[DictConfig, bool]]:
    """The config of each run, and whether it differs from the one before in more than the seed.

    It may be the same object each time, changed from run to run.
    """
    common = composition.composed("train", _without_sweeps(overrides)[0])
    params = common.hydra.sweeper.params or {}
    swept = [parse(f"{key}={value}") for key, value in params.items()]
    swept += map(parse, overrides)
    jobs = BasicSweeper.split_arguments(swept, max_batch_size=None)[0]
    split = [composition.split(list(map(parse, job))) for job in jobs]
    compose = composition.composer(list(dict.fromkeys(choices for choices, _ in split)))
    before = None
    for choices, values in split:
        cfg = with_values(compose(choices), choices, values)
        words = (*choices, *(o.input_line for o in values if o.key_or_group != "seed"))
        yield cfg, words != before
        before = words


# Inspect


def planned(cfg: DictConfig) -> Planned:
    """The cell that a config names."""
    names = (cfg.profile.name, cfg.task.name, cfg.adapter.name, cfg.seed)
    return Planned(*names, run_folder(cfg), recipe_hash(recipe(cfg)))


def inspect(cfg: DictConfig) -> Cell:
    """The state of the cell that a config names, see `state_of`."""
    return state_of(planned(cfg))


def state_of(cell: Planned, *, verify: bool = False) -> Cell:
    """The state of a cell, from its record; verify: the files of a finished run are checked against their checksums."""
    state, reason, record = "missing", None, None
    if cell.folder.is_dir():
        try:
            record = read_cell_record(cell.folder, verify=verify)
        except RunFolderError as error:
            state, reason = "damaged", str(error)
        else:
            state, reason = state_by_record(record, cell.recipe_hash)
    names = (cell.profile, cell.task, cell.adapter, cell.seed, cell.folder)
    return Cell(*names, state, reason, record, cell.recipe_hash)


def state_by_record(record: dict, recipe_hash: str) -> tuple[str, str | None]:
    """State and reason of a run that must have this recipe."""
    if record["recipe_hash"] != recipe_hash:
        return "stale", "made by another recipe"
    return record["status"], record.get("reason")


# Runs that can be trained jointly


def companions(cfg: DictConfig, overrides: list[str], limit: int) -> list[DictConfig]:
    """Up to `limit` pending runs of a grid that can be trained jointly with this one.

    All settings but the adapter, the learning rate and the seed are equal. Empty where this run is done.
    """
    if limit == 0 or inspect(cfg).state == "done":
        return []
    folder, wanted, found = run_folder(cfg), _shared_by_companions(cfg), []
    pending = _pending_candidates(tuple(overrides))
    for number, (other, cell, shared) in list(pending.items()):
        if len(found) == limit:
            break
        if shared != wanted or cell.folder == folder:
            continue
        if state_of(cell).state == "done":
            del pending[number]  # it stays done; a launch would read all records for each run
        elif not living_owner(cell.folder):
            found.append(other)
    return found


@functools.lru_cache(maxsize=2)
def _pending_candidates(overrides: Words) -> dict[int, tuple[DictConfig, Planned, dict]]:
    """The runs of a grid by their number, with what must be equal among companions, resolved once a process; `companions`
    removes those that it has seen done."""
    found = ((cfg, planned(cfg), _shared_by_companions(cfg)) for cfg in compose_cells(overrides))
    return dict(enumerate(found))


def _shared_by_companions(cfg: DictConfig) -> dict:
    plain = recipe(cfg)
    del plain["adapter"], plain["protocol"]["learning_rate"]
    return plain | {"runtime": OmegaConf.to_container(cfg.runtime)}
