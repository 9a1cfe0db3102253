"""The grids that an experiment consists of, each a profile of its own, and their committed records."""

from __future__ import annotations

from pathlib import Path

from analysis.study.records import records_folder, with_records, write_records
from condlora.errors import NoFinishedRuns
from condlora.grid.cells import Cell, compose_common
from condlora.grid.listing import newest_profile, survey


def has_parts(profile: str) -> bool:
    """Whether a profile is an experiment of several grids, as parity is."""
    return profile != "adhoc" and "parts" in compose_common((f"profile={profile}",)).profile


def parts_of(profile: str) -> dict[str, str]:
    """part -> the profile that is its grid."""
    named = compose_common((f"profile={profile}",)).profile.parts
    profiles = {str(steps): name for steps, name in named.curve.items()}
    return profiles | {part: name for part, name in named.items() if part != "curve"}


def load_cells(
    profile: str, runs: Path, records: Path, *, fill: bool = False
) -> tuple[list[Cell], list[str]]:
    """The cells of one grid with their states, and what to say of them.

    records, fill: see `analysis.study.records.with_records`.
    """
    return with_records(survey(profile, runs), records, fill=fill)


def renew_records(profile: str | None, runs: Path, records: Path) -> list[str]:
    """Write the records of all grids of a profile, null the newest, and return what was written.

    Records of runs that have no folder here are kept, so that a grid can move from machine to machine.

    Raises:
        NoFinishedRuns: there is none.
    """
    profile = profile or newest_profile(runs)
    lines = []
    for name in parts_of(profile).values() if has_parts(profile) else [profile]:
        cells, notes = load_cells(name, runs, records, fill=True)
        done = sum(cell.state == "done" for cell in cells)
        if done:
            folder = records_folder(records, name)
            write_records(cells, folder)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            lines += [f"{folder}: {done} finished runs, {size / 1000:.0f} kB", *notes]
    if not lines:
        raise NoFinishedRuns(
            f"Profile '{profile}' has no finished run in {runs}: run the profile first, or name their folder with runs=."
        )
    return lines
