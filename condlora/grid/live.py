"""A grid while it runs, from its run folders alone: what is done, running and failed, how fast, and the time left.

It reads records, curves and claims and writes nothing of a run's, so it works over ssh, next to any number of launchers.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from condlora.grid.cells import STATES, Cell, Planned, state_of
from condlora.grid.listing import estimated_seconds
from condlora.runs.lease import living_owner

REFRESH = 2.0  # seconds between two looks at the runs
COLOURS = {"done": "green", "running": "cyan", "failed": "red", "damaged": "red"}


@dataclass(frozen=True)
class Progress:
    """How far a running cell is: its last evaluation. loss and score are None before there is one.

    steps: of the whole run; per_second: optimizer steps, evaluations included; owner: host and process, None where nobody does it.
    """

    cell: Cell
    owner: str | None
    step: int
    steps: int
    loss: float | None
    score: float | None
    per_second: float | None


def progress_of(cell: Cell) -> Progress:
    """Reads the record and curve of a running cell."""
    curve = cell.folder / "curve.csv"
    step, loss, score, per_second = 0, None, None, None
    if curve.is_file():
        *_, last = csv.DictReader(curve.read_text(encoding="utf-8").splitlines())
        step = int(last["step"])
        loss, score = _number(last.get("train_loss")), _number(last.get(cell.record["headline"]))
        began = datetime.fromisoformat(cell.record["started_at"]).timestamp()
        seconds = curve.stat().st_mtime - began
        steps = (
            step - ([0, *cell.record.get("resumed_at_steps", [])])[-1]
        )  # since it began or was resumed
        per_second = steps / seconds if seconds > 0 else None
    return Progress(cell, living_owner(cell.folder), step, _steps(cell), loss, score, per_second)


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def _steps(cell: Cell) -> int:
    """Of the whole run, as its recipe has them; 0 before the record names its data."""
    protocol, record = cell.record["recipe"]["protocol"], cell.record
    if protocol["max_steps"] or "data" not in record:
        return protocol["max_steps"] or 0
    return protocol["epochs"] * math.ceil(
        record["data"]["counts"]["train"] / record["effective_batch"]
    )


@dataclass(frozen=True)
class View:
    """What is shown: all cells, and the progress of those that run."""

    cells: Sequence[Cell]
    running: Sequence[Progress]

    @property
    def counts(self) -> str:
        found = {state: sum(cell.state == state for cell in self.cells) for state in STATES}
        named = ", ".join(f"{n} {state}" for state, n in found.items() if n)
        return f"{named} of {len(self.cells)}"

    @property
    def over(self) -> bool:
        """Whether nothing is left that a launcher does now, and nothing waits for one."""
        return all(cell.state in ("done", "failed", "damaged") for cell in self.cells)

    @property
    def time_left(self) -> str:
        """From the duration of finished runs, with as many launchers as there are now."""
        share = {p.cell.folder: p.step / p.steps for p in self.running if p.steps}
        estimates = estimated_seconds(self.cells)
        if estimates is None:
            return "time left: unknown until one run is done"
        left = sum(s * (1 - share.get(folder, 0)) for folder, s in estimates.items())
        launchers = max(1, sum(p.owner is not None for p in self.running))
        minutes = left / launchers / 60
        with_launchers = f" with {launchers} runs at a time" if launchers > 1 else ""
        return f"time left: about {minutes:.0f} min{with_launchers}" if left else "time left: none"


def look(cells: Sequence[Planned], before: View | None = None) -> View:
    """The grid now. Cells that were done in the view `before` are not read again."""
    known = {cell.folder: cell for cell in before.cells if cell.state == "done"} if before else {}
    found = [known.get(cell.folder) or state_of(cell) for cell in cells]
    return View(found, [progress_of(cell) for cell in found if cell.state == "running"])


def plain(view: View) -> str:
    """The view as text: counts, a line for each running and failed run, the time left."""
    lines = [view.counts]
    lines += [" ".join(filter(None, _words(p))) for p in view.running]
    lines += [f"{_name(c)}: {c.state}: {c.reason}" for c in view.cells if c.reason]
    return "\n".join([*lines, view.time_left])


def render(view: View) -> Group:
    """The view for a terminal."""
    done = sum(cell.state == "done" for cell in view.cells)
    table = Table(box=None, pad_edge=False)
    for name in ("running", "", "step", "loss", "score", "speed", "by"):
        table.add_column(name, no_wrap=name != "by", overflow="fold")
    for p in view.running:
        name, *words = _words(p)
        table.add_row(name.rstrip(":"), ProgressBar(p.steps or 1, p.step, width=20), *words)
    failed = [
        Text(f"{_name(c)}: {c.state}: {c.reason}", COLOURS.get(c.state, "yellow"))
        for c in view.cells
        if c.reason
    ]
    head = Table.grid(padding=(0, 2))
    head.add_row(ProgressBar(len(view.cells), done, width=30), view.counts, view.time_left)
    return Group(head, *([table] if view.running else []), *failed)


def _name(cell: Cell) -> str:
    return f"{cell.task} {cell.adapter} seed {cell.seed}"


def _words(p: Progress) -> list[str]:
    """Name, step, loss, score, speed and owner of a running cell; empty where unknown."""
    return [
        f"{_name(p.cell)}:",
        f"step {p.step} of {p.steps or '?'}",
        f"loss {p.loss:.3f}" if p.loss is not None else "",
        f"{p.cell.record['headline']} {p.score:.3f}" if p.score is not None else "",
        f"{p.per_second:.2f} steps/s" if p.per_second else "",
        p.owner or "no process: killed, the next launcher continues it",
    ]


def watch(cells: Sequence[Planned], console: Console, wait: Callable[[float], None] = time.sleep) -> None:  # fmt: skip
    """Shows the grid until it is over or Ctrl-C is pressed; where the output is no terminal, prints it once as text."""
    view = look(cells)
    if not console.is_terminal:
        console.print(plain(view), highlight=False, markup=False, soft_wrap=True)
        return
    with Live(render(view), console=console, auto_refresh=False) as live:
        while not view.over:
            wait(REFRESH)
            view = look(cells, view)
            live.update(render(view), refresh=True)
