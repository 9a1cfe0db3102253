"""A grid of runs: which cells a command line or profile names, and what each has come to.

The grid itself is Hydra's multirun; here its cells are only composed, the way Hydra will, to be listed and
checked before anything is loaded.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from condlora.errors import (
    DeviceError,
    IncompleteGrid,
    NetworkError,
    NoFinishedRuns,
    RunFolderError,
    UserError,
)
from condlora.paths import CONFIGS
from condlora.runs.lease import living_owner
from condlora.runs.record import read_record, recipe, recipe_hash, recipe_of_any_seed, run_folder
from condlora.runs.settings import check_settings
from condlora.training.bars import say

POLL = 1.0  # seconds between two looks at other launchers' runs
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


def preflight(overrides: list[str]) -> None:
    """Refuse within seconds what cannot run: a missing GPU, hub or data folder, an unfinished recipe, a wrong value.

    Raises:
        DeviceError, NetworkError: with all that is missing in one sentence. ConfigError: see `recipe` and
            `condlora.runs.settings`.
        DataError: see `condlora.glue.sources.data_folder`.
    """
    common = compose_common(tuple(overrides))
    no_gpu = "cuda" in common.profile.requires and not _has_cuda()
    unreachable = _unreachable(common)
    missing = ["a CUDA GPU"] * no_gpu
    if unreachable:
        missing.append(f"the Hugging Face hub (for {' and '.join(unreachable)})")
    if missing:
        needs = f"needs {' and '.join(missing)}, not found here"
        raise (DeviceError if no_gpu else NetworkError)(
            f"This run {needs}: use backbone=minilm with data=synthetic or data=directory, which need neither."
            if common.profile.name == "adhoc"
            else f"PROFILE={common.profile.name} {needs}: use PROFILE=embedded, which needs neither."
        )
    if common.data.source == "directory":
        from condlora.glue.sources import data_folder  # it loads datasets: a second

        data_folder(common.data)
    for cfg in compose_cells(tuple(overrides)):
        recipe(cfg)
        check_settings(cfg)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _unreachable(cfg: DictConfig) -> list[str]:
    """Repositories the config needs that are neither cached nor reachable."""
    wanted = []
    if cfg.backbone.source == "hub":
        wanted.append((cfg.backbone.model, cfg.backbone.revision, "model"))
    if cfg.data.source == "hub" or (cfg.data.source == "dataset" and cfg.data.revision):
        wanted.append((cfg.data.dataset, cfg.data.revision, "dataset"))
    return [repo for repo, revision, kind in wanted if not _is_available(repo, revision, kind)]


def _is_available(repo: str, revision: str, kind: str) -> bool:
    import huggingface_hub

    try:
        huggingface_hub.snapshot_download(
            repo, revision=revision, repo_type=kind, local_files_only=True
        )
        return True
    except Exception:  # not cached, in any of the ways the library says so
        pass
    try:
        huggingface_hub.HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=5)
        return True
    except Exception:  # offline, blocked, unknown: all the same to who waits
        return False


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


def left_by_others(overrides: list[str]) -> Iterator[DictConfig]:
    """Wait while other launchers do runs of this grid, and yield each that its owner left unfinished by dying."""

    left = [
        cfg
        for cfg in compose_cells(tuple(overrides))
        if living_owner(run_folder(cfg)) or _is_unfinished(cfg)
    ]
    if left:
        say(f"waiting for {len(left)} runs of other launchers")
    while left:
        owned = []
        for cfg in left:
            if living_owner(run_folder(cfg)):
                owned.append(cfg)
            elif _is_unfinished(cfg):
                yield cfg
                if living_owner(run_folder(cfg)):  # another was quicker
                    owned.append(cfg)
        left = owned
        time.sleep(POLL if left else 0)


def _is_unfinished(cfg: DictConfig) -> bool:
    """Whether nobody has said how the run ended."""
    return inspect(cfg).state in ("running", "missing")


def require_done(overrides: list[str]) -> None:
    """Fail the command if a run it named is not done; each has said why as it ended.

    Raises:
        IncompleteGrid: some runs of several are not done. SystemExit: the only one is not.
    """
    cells = [inspect(cfg) for cfg in compose_cells(tuple(overrides))]
    left = [f"{c.task} {c.adapter} seed {c.seed}" for c in cells if c.state != "done"]
    if left and len(cells) == 1:
        raise SystemExit(UserError.exit_status)
    if left:
        raise IncompleteGrid(
            f"{len(left)} of {len(cells)} runs are not done ({', '.join(left)}): mend what is said above and run "
            "the same command again, finished runs are kept."
        )


def survey(profile: str, runs: Path) -> list[Cell]:
    """All cells of a profile's grid; for `adhoc`, which has no grid, the runs that are there.

    Raises:
        NoFinishedRuns: `adhoc` without a run. ConfigError or Hydra's own: an unknown profile.
    """
    if profile != "adhoc":
        return [inspect(cfg) for cfg in compose_cells((f"profile={profile}", f"runs={runs}"))]
    folders = sorted(path.parent for path in (Path(runs) / profile).glob("*/*/seed-*/record.json"))
    if not folders:
        raise NoFinishedRuns(
            f"There are no runs under {Path(runs) / profile}: run scripts/train.py first."
        )
    cells = [_found(profile, folder) for folder in folders if "." not in folder.name]
    return [_compared_with_newest(cell, cells) for cell in cells]


def _compared_with_newest(cell: Cell, cells: list[Cell]) -> Cell:
    """Without a grid to compare with, the newest run of a task and adapter says which recipe counts."""
    if cell.state != "done":
        return cell
    newest = max(
        (
            c.record
            for c in cells
            if c.state == "done" and (c.task, c.adapter) == (cell.task, cell.adapter)
        ),
        key=lambda record: record["finished_at"],
    )
    theirs, ours = (recipe_of_any_seed(record["recipe"]) for record in (newest, cell.record))
    if ours == theirs:
        return cell
    return replace(cell, state="stale", reason="made by another recipe than the newest run")


def _found(profile: str, folder: Path) -> Cell:
    task, adapter, seed = folder.parts[-3:]
    identity = (profile, task, adapter, int(seed.removeprefix("seed-")), folder)
    try:
        record = read_record(folder)
    except RunFolderError as error:
        return Cell(*identity, "damaged", str(error), None)
    return Cell(*identity, record["status"], record.get("reason"), record)


def newest_profile(runs: Path) -> str:
    """The profile with the run that finished last.

    Raises:
        NoFinishedRuns: there is none.
    """
    finished = {}
    for path in Path(runs).glob("*/*/*/seed-*/record.json"):
        try:
            record = read_record(path.parent)
        except RunFolderError:
            continue
        if record["status"] == "done":
            profile = path.parts[-5]
            finished[profile] = max(finished.get(profile, ""), record["finished_at"])
    if not finished:
        raise NoFinishedRuns(
            f"There are no finished runs under {runs}/: run make reproduce-glue PROFILE=embedded first."
        )
    return max(finished, key=finished.get)


def seconds_left(cells: list[Cell]) -> float | None:
    """Estimate for the cells that are not done, from the done ones: same task and adapter, else task, else all."""
    done = [c for c in cells if c.state == "done"]
    if not done:
        return None

    def estimate(cell: Cell) -> float:
        same = [c for c in done if (c.task, c.adapter) == (cell.task, cell.adapter)]
        pool = same or [c for c in done if c.task == cell.task] or done
        return statistics.mean(c.record["total_seconds"] for c in pool)

    return sum(estimate(c) for c in cells if c.state != "done")


def table(cells: list[Cell]) -> str:
    """The grid as text: a row per task and adapter, a column per seed; then reasons, counts and time left."""
    seeds = sorted({c.seed for c in cells})
    state = {(c.task, c.adapter, c.seed): c.state for c in cells}
    wide = max(12, 2 + max((len(c.adapter) for c in cells), default=0))
    lines = [f"{'task':<8}{'adapter':<{wide}}" + "".join(f"seed {s:<5}" for s in seeds)]
    for task, adapter in dict.fromkeys((c.task, c.adapter) for c in cells):
        marks = (state.get((task, adapter, seed), "") for seed in seeds)
        lines.append(f"{task:<8}{adapter:<{wide}}" + "".join(f"{m:<10}" for m in marks))
    lines += [
        f"{c.task} {c.adapter} seed {c.seed}: {c.state}: {c.reason}" for c in cells if c.reason
    ]
    counts = {s: sum(c.state == s for c in cells) for s in STATES}
    lines.append(", ".join(f"{n} {s}" for s, n in counts.items() if n) + f" of {len(cells)}")
    left = seconds_left(cells)
    if left is None:
        lines.append("time left: unknown until one run is done")
    elif left:
        lines.append(
            f"time left: about {left / 60:.0f} min"
            if left >= 90
            else f"time left: about {left:.0f} s"
        )
    return "\n".join(lines)
