"""The cells of a grid: which runs a command line or a profile names, and the state of each on disk.

Hydra's multirun starts the runs; here their configs are only composed, to the same result, so that they can be listed
and checked before anything is loaded.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf

from condlora.errors import MissingRates, RunFolderError
from condlora.paths import CONFIGS
from condlora.runs.lease import living_owner
from condlora.runs.recipe import recipe, recipe_hash
from condlora.runs.record import read_cell_record, run_folder

STATES = ("done", "running", "interrupted", "stale", "failed", "damaged", "missing")
Words = tuple[str, ...]  # overrides, as on a command line


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


@contextlib.contextmanager
def composing(folder: Path = CONFIGS) -> Iterator[None]:
    """Hydra's compose API on a folder of configs, also from within a running Hydra application."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = running


def compose_common(overrides: Words) -> DictConfig:
    """The config that the runs of a command line share, with Hydra's own settings under `hydra`."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    plain = [o.input_line for o in parsed if not o.is_sweep_override()]
    with composing():
        return compose("train", plain, return_hydra_config=True)


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
            depends_on_seed = "${seed}" in str(_raw(cfg))
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
    params = compose_common(overrides).hydra.sweeper.params or {}
    parser = OverridesParser.create()
    swept = [*(f"{key}={value}" for key, value in params.items()), *overrides]
    jobs = BasicSweeper.split_arguments(parser.parse_overrides(swept), max_batch_size=None)[0]
    # Parsing a word takes a millisecond, and the jobs of a grid share most of theirs.
    parse = functools.cache(lambda word: parser.parse_overrides([word])[0])
    split = [_split_seed(job, parse) for job in jobs]
    before = None
    with composing():
        composed = _composer(list(dict.fromkeys(words for words, _ in split)), parser)
        for words, seed in split:
            cfg = composed(words)
            if seed is not None:
                cfg.seed = seed
            yield cfg, words != before
            before = words


def _split_seed(job: list[str], parse: Callable[[str], Override]) -> tuple[Words, object]:
    """A job's overrides without its seed, and the seed: runs that differ in it alone share one composition."""
    parsed = [parse(word) for word in job]
    seeds = [o for o in parsed if o.key_or_group == "seed"]
    rest = tuple(o.input_line for o in parsed if o.key_or_group != "seed")
    return rest, seeds[-1].value() if seeds else None


def _composer(jobs: list[Words], parser: OverridesParser) -> Callable[[Words], DictConfig]:
    """A function from a job's overrides to its config, which the next call may change.

    Composing takes a tenth of a second. Where jobs differ only in the choices of groups that change nothing but their own
    part of the config, as tasks and adapters do, all choices are composed in one go and put into one config. The
    last job is composed by itself as well: if it differs, the choices are not independent, and each job is composed.
    """
    base = compose("train", list(jobs[0]))
    if len(jobs) == 1:
        return lambda words: base
    parts = _independent_choices(jobs, base, parser)

    def assemble(words: Words) -> DictConfig:
        for position, group in parts.groups.items():
            base[group] = parts.nodes[words[position]]
        return base

    if parts is not None and _raw(assemble(jobs[-1])) == _raw(compose("train", list(jobs[-1]))):
        return assemble
    return functools.lru_cache(maxsize=None)(lambda words: compose("train", list(words)))


@dataclass(frozen=True)
class _Choices:
    """groups: config group by the position of its override. nodes: the group's content by the override."""

    groups: dict[int, str]
    nodes: dict[str, DictConfig]


def _independent_choices(
    jobs: list[Words], base: DictConfig, parser: OverridesParser
) -> _Choices | None:
    """What differs between the jobs, if that is only choices of config groups that no other override touches."""
    groups, nodes, wanted = {}, {}, {}
    loader = GlobalHydra.instance().config_loader()
    keys = [o.key_or_group for o in parser.parse_overrides(list(jobs[0]))]
    for position, words in enumerate(zip(*jobs, strict=True)):
        if len(set(words)) == 1:
            continue
        group = keys[position]
        touched = [key for key in keys if key == group or key.startswith(f"{group}.")]
        if len(touched) > 1 or not loader.get_group_options(group):
            return None
        groups[position] = group
        for choice in parser.parse_overrides(list(dict.fromkeys(words))):
            if choice.type is not OverrideType.CHANGE or choice.package is not None:
                return None
            wanted[choice.input_line] = f"{group}{len(wanted)}", group, choice.value()
    composed = compose(None, [f"+{g}@{name}={value}" for name, g, value in wanted.values()])
    if len(composed) != len(wanted):  # a choice that changes other parts of the config
        return None
    nodes = {line: composed[name] for line, (name, _, _) in wanted.items()}
    first = {group: nodes[jobs[0][position]] for position, group in groups.items()}
    if any(_raw(base[group]) != _raw(node) for group, node in first.items()):
        return None
    return _Choices(groups, nodes)


def _raw(cfg: DictConfig) -> dict:
    """The content of a config, its interpolations unresolved."""
    return OmegaConf.to_container(cfg, resolve=False)


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
