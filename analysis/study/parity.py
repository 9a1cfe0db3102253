"""The runs of the parity experiment: the profiles that `parts` of configs/profile/parity.yaml names, and their rules."""

from __future__ import annotations

import math
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from analysis.study.comparability import require_comparable
from analysis.study.grids import load_cells, parts_of
from analysis.study.plateau import RULES
from analysis.study.scores import POINTS
from condlora.errors import DivergedError
from condlora.grid.cells import Cell, compose_common
from condlora.paths import ROOT


@dataclass(frozen=True)
class Grids:
    """All runs of the experiment.

    parts: part ("300", ..., "dial", "paper_size", "appendix") -> its cells, those without a run too, but not those whose
    learning rate has not been searched yet. planned: part -> cells of its grid. steps: part -> steps. rules:
    parity_rules.yaml as it is. notes: which runs are read from committed records.
    """

    parts: dict[str, list[Cell]]
    planned: dict[str, int]
    steps: dict[str, int]
    rules: dict
    notes: tuple[str, ...] = ()


def load_grids(
    profile: str, runs: Path, may_differ: list[str], records: Path, *, fill: bool = False
) -> Grids:
    """The grids of an experiment with the state of each cell on disk or, without run folders, in the committed records.

    records, fill: see `analysis.study.records.with_records`.

    Raises:
        UserError: finished runs of one grid cannot be joined, see `analysis.study.comparability`.
    """
    parts, planned, steps, notes = {}, {}, {}, []
    for part, name in parts_of(profile).items():
        common = compose_common((f"profile={name}",))
        grid = {key: str(words).split(",") for key, words in common.hydra.sweeper.params.items()}
        parts[part], said = load_cells(name, runs, records, fill=fill)
        notes += [f"Part {part}: {note}" for note in said]
        require_comparable((c for c in parts[part] if c.state == "done"), may_differ)
        planned[part] = math.prod(map(len, grid.values()))
        steps[part] = common.protocol.max_steps
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return Grids(parts, planned, steps, rules, tuple(notes))


def scores(grids: Grids) -> pd.DataFrame:
    """A row per run that counts: part, steps, task, adapter, seed, points on the test set, and whether it diverged.

    A diverged run counts as the constant prediction: the largest class's share in accuracy, 0 in a correlation (rules:
    `diverged`). Tasks and seeds that the rules do not name for a part are left out.
    """
    rows = []
    for part, cells in grids.parts.items():
        for cell in cells:
            points = _points(cell)
            if points is None:
                continue
            row = {"part": part, "steps": grids.steps[part], "task": cell.task}
            row |= {"adapter": cell.adapter, "seed": cell.seed, "points": points}
            rows.append(row | {"diverged": cell.state == "failed"})
    names = ["part", "steps", "task", "adapter", "seed", "points", "diverged"]
    return pd.DataFrame(rows, columns=names)


def _points(cell: Cell) -> float | None:
    record = cell.record
    if cell.state == "done":
        return POINTS * record["test"][record["headline"]]
    if cell.state == "failed" and record.get("error") == DivergedError.__name__:
        is_accuracy = record["headline"] == "accuracy"
        return POINTS * record["data"]["majority_score"] if is_accuracy else 0.0
    return None


def progress(grids: Grids) -> pd.DataFrame:
    """A row per part: its number of steps, the cells of its grid, those that count, and whether it is complete."""
    counted = scores(grids).groupby("part").size()
    rows = [
        {"part": part, "steps": grids.steps[part], "planned": n, "done": counted.get(part, 0)}
        for part, n in grids.planned.items()
    ]
    return pd.DataFrame(rows).assign(complete=lambda t: t.planned == t.done)


def first_start(grids: Grids) -> str | None:
    """When the first of all runs with a record was started, ISO 8601; None without one."""
    records = [cell.record for cells in grids.parts.values() for cell in cells if cell.record]
    return min((record["started_at"] for record in records), default=None)


def rule_commits(path: Path = RULES) -> list[tuple[str, str]]:
    """(commit, date) of each change of the rules, the oldest first; empty outside a git checkout."""
    command = ["git", "log", "--follow", "--format=%h %cI", "--", str(path)]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    pairs = (line.split() for line in found.stdout.splitlines())
    return [(commit, date) for commit, date in pairs][::-1]
