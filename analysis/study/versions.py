"""Runs of the same recipes made elsewhere: by other versions of code or packages, or on another machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.study.grids import load_cells
from analysis.study.records import recorded_runs, records_folder
from condlora.grid.cells import Cell

if TYPE_CHECKING:
    import pandas as pd


def other_versions(
    done: Iterable[Cell], profile: str, other: str | None, runs: Path, records: Path
) -> list[Cell]:
    """Finished runs that have the recipe and the data of a run in `done` and are not copies of it.

    profile: of `done`; other: the profile to take them from, from run folders or records; None: the committed records
    of the same profile.
    """
    done = list(done)
    if other is None or other == profile:
        cells = recorded_runs(records_folder(records, profile))
    else:
        cells = load_cells(other, runs, records)[0]
    recipes = {(c.task, c.adapter): _recipe(c) for c in done}
    here = {c.record.get("sha256") for c in done}
    return [
        cell
        for cell in cells
        if cell.state == "done"
        and recipes.get((cell.task, cell.adapter)) == _recipe(cell)
        and cell.record["sha256"] not in here
    ]


def _recipe(cell: Cell) -> tuple[str, dict[str, str]]:
    return cell.record["recipe_hash"], cell.record["data"]["split_sha256"]


def of_all_versions(here: pd.DataFrame, elsewhere: pd.DataFrame) -> pd.DataFrame:
    """Both tables of `scores.scores`, joined, without the tasks and methods that one of them lacks."""
    import pandas as pd  # here, as a wrong setting is reported without it

    both = pd.concat([here.assign(version="here"), elsewhere.assign(version="elsewhere")])
    versions = both.groupby(["task", "adapter"]).version.transform("nunique")
    return both[versions > 1].reset_index(drop=True)
