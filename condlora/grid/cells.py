"""A grid of runs: which cells a command line or profile names, and what each has come to.

The grid itself is Hydra's multirun; here its cells are only composed, the way Hydra will, to be listed and
checked before anything is loaded.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from condlora.errors import RunFolderError
from condlora.paths import CONFIGS
from condlora.runs.lease import living_owner
from condlora.runs.recipe import recipe, recipe_hash
from condlora.runs.record import read_record, run_folder

STATES = ("done", "running", "interrupted", "stale", "failed", "damaged", "missing")


@dataclass(frozen=True)
class Cell:
    """One run of a grid and its state on disk.

    state: done; running (or killed in mid-run); interrupted by a signal; failed (`reason` says why); stale (made by another recipe);
    damaged (a file is missing or unreadable); missing. `record` is there for all but missing and damaged.
    """

    profile: str
    task: str
    adapter: str
    seed: int
    folder: Path
    state: str
    reason: str | None
    record: dict | None


@contextlib.contextmanager
def _composing() -> Iterator[None]:
    """Hydra's compose API on our configs, also from within a running Hydra application."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = running


def compose_common(overrides: tuple[str, ...]) -> DictConfig:
    """The config that the runs of a command line share, with Hydra's own settings under `hydra`."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    plain = [o.input_line for o in parsed if not o.is_sweep_override()]
    with _composing():
        return compose("train", plain, return_hydra_config=True)


@functools.lru_cache(maxsize=8)
def compose_cells(overrides: tuple[str, ...]) -> tuple[DictConfig, ...]:
    """The config of each run that `scripts/train.py <overrides>` would start, in its order."""
    params = compose_common(overrides).hydra.sweeper.params or {}
    swept = [*(f"{key}={value}" for key, value in params.items()), *overrides]
    jobs = BasicSweeper.split_arguments(
        OverridesParser.create().parse_overrides(swept), max_batch_size=None
    )[0]
    parser, alike, cells = OverridesParser.create(), {}, []
    with _composing():
        for job in jobs:
            # Composing takes a tenth of a second, and seeds differ in one value alone.
            seeds = [o for o in parser.parse_overrides(job) if o.key_or_group == "seed"]
            words = tuple(word for word in job if word not in {o.input_line for o in seeds})
            if words not in alike:
                alike[words] = compose("train", list(words))
            cells.append(copy.deepcopy(alike[words]))
            if seeds:
                cells[-1].seed = seeds[-1].value()
    return tuple(cells)


def inspect(cfg: DictConfig) -> Cell:
    """The state of the cell that a config names."""
    folder = run_folder(cfg)
    state, reason, record = "missing", None, None
    if folder.is_dir():
        try:
            record = read_record(folder)
        except RunFolderError as error:
            state, reason = "damaged", str(error)
        else:
            state, reason = record["status"], record.get("reason")
            if record["recipe_hash"] != recipe_hash(recipe(cfg)):
                state, reason = "stale", "made by another recipe"
    return Cell(
        cfg.profile.name, cfg.task.name, cfg.adapter.name, cfg.seed, folder, state, reason, record
    )


def companions(cfg: DictConfig, overrides: list[str], most: int) -> list[DictConfig]:
    """Up to so many other cells of a grid that are to do and fit beside this one: all but adapter, rate and seed equal.

    None where this one is done already.
    """
    if most == 0 or inspect(cfg).state == "done":
        return []

    def shared(cell: DictConfig) -> dict:
        plain = recipe(cell)
        del plain["adapter"], plain["protocol"]["learning_rate"]
        return plain | {"runtime": OmegaConf.to_container(cell.runtime)}

    found, wanted = [], shared(cfg)
    for cell in compose_cells(tuple(overrides)):
        if len(found) == most:
            break
        if run_folder(cell) == run_folder(cfg) or inspect(cell).state == "done":
            continue
        if not living_owner(run_folder(cell)) and shared(cell) == wanted:
            found.append(cell)
    return found
