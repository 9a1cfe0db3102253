"""The runs that are there, of a profile's grid or without one: found, listed, with the time that remains."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

from condlora.errors import NoFinishedRuns, RunFolderError
from condlora.grid.cells import STATES, Cell, compose_cells, inspect
from condlora.runs.recipe import recipe_of_any_seed
from condlora.runs.record import read_record


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
