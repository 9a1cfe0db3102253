"""The runs of a profile on disk: found, listed, with an estimate of the time left."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from condlora.errors import NoFinishedRuns, RunFolderError
from condlora.grid.cells import STATES, Cell, plan_cells, state_of
from condlora.runs.recipe import recipe_of_any_seed
from condlora.runs.record import read_cell_record


def survey(profile: str, runs: Path) -> list[Cell]:
    """All cells of a profile's grid that have a learning rate; for `adhoc`, which has no grid, the runs that are there.

    Their results are used, so the files of finished runs are compared with their checksums. Cells whose rate has not been
    searched yet cannot have a run, and those that have one can be analysed before the search has ended.

    Raises:
        NoFinishedRuns: `adhoc` without a run. ConfigError or Hydra's own: an unknown profile.
    """
    if profile != "adhoc":
        cells = plan_cells((f"profile={profile}",), Path(runs), skip_without_rate=True)
        return [state_of(cell, verify=True) for cell in cells]
    folders = _run_folders(Path(runs) / profile)
    if not folders:
        raise NoFinishedRuns(
            f"There are no runs in {Path(runs) / profile}: run scripts/train.py first."
        )
    cells = [_found(profile, folder) for folder in folders]
    return [_compared_with_newest(cell, cells) for cell in cells]


def _run_folders(profile: Path) -> list[Path]:
    """The folders of one profile that are named as a run's is; not `seed-0-backup`, nor what was set aside."""
    adapters = (adapter for task in _folders(profile) for adapter in _folders(task))
    found = (folder for adapter in adapters for folder in _folders(adapter))
    return [f for f in found if re.fullmatch(r"seed-\d+", f.name) and (f / "record.json").exists()]


def _folders(place: Path) -> list[Path]:
    """The folders in a folder whose names a profile, task, adapter or run can have; empty if it does not exist.

    Not by `glob`, which leaves out silently what it may not read.
    """
    if not place.exists():
        return []
    named = sorted(path for path in place.iterdir() if re.fullmatch(r"\w[\w.-]*", path.name))
    return [path for path in named if path.is_dir()]


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
        record = read_cell_record(folder)
    except RunFolderError as error:
        return Cell(*identity, "damaged", str(error), None)
    return Cell(*identity, record["status"], record.get("reason"), record)


def newest_profile(runs: Path) -> str:
    """The profile with the run that finished last.

    Raises:
        NoFinishedRuns: there is none.
    """
    finished = {}
    for profile in _folders(Path(runs)):
        for folder in _run_folders(profile):
            try:
                record = read_cell_record(folder, verify=False)
            except RunFolderError:
                continue
            if record["status"] == "done":
                newest = max(finished.get(profile.name, ""), record["finished_at"])
                finished[profile.name] = newest
    if not finished:
        raise NoFinishedRuns(
            f"There are no finished runs in {runs}/: run make reproduce-glue PROFILE=embedded first."
        )
    return max(finished, key=finished.get)


def seconds_left(cells: list[Cell]) -> float | None:
    """Estimate for all cells that are not done, see `estimated_seconds`."""
    estimates = estimated_seconds(cells)
    return None if estimates is None else sum(estimates.values())


def estimated_seconds(cells: Sequence[Cell]) -> dict[Path, float] | None:
    """Of each cell that is not done, by its folder, from the done ones: same task and adapter, else task, else all."""
    done = [c for c in cells if c.state == "done"]
    if not done:
        return None

    def estimate(cell: Cell) -> float:
        same = [c for c in done if (c.task, c.adapter) == (cell.task, cell.adapter)]
        pool = same or [c for c in done if c.task == cell.task] or done
        return statistics.mean(c.record["total_seconds"] for c in pool)

    return {c.folder: estimate(c) for c in cells if c.state != "done"}


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
