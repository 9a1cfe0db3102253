"""Wait for submitted workers, and say from the run folders what became of the grid."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from condlora.errors import IncompleteGrid
from condlora.grid.cells import Words, plan_cells, state_of

POLL = 10.0  # seconds between two questions to the scheduler


def follow(words: Words, is_alive: Callable[[], bool], logs: Path, *, poll: float = POLL) -> None:
    """Return when the workers have ended and every run is done.

    Raises:
        IncompleteGrid: some are not; with the reason of each that failed, or the logs' last lines where none is recorded.
    """
    while is_alive():
        time.sleep(poll)
    cells = [state_of(cell) for cell in plan_cells(words)]
    left = [cell for cell in cells if cell.state != "done"]
    if not left:
        return
    reasons = [f"{c.task} {c.adapter} seed {c.seed}: {c.reason}" for c in left if c.reason]
    if not reasons:
        reasons = [line for path in sorted(logs.glob("*.log")) if (line := _last_error(path))]
    said = "; ".join(dict.fromkeys(reasons)) or "no reason is recorded"
    raise IncompleteGrid(
        f"{len(left)} of {len(cells)} runs are not done ({said}). Logs: {logs}. Submit the same command again to continue."
    )


def _last_error(path: Path) -> str | None:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next(
        (line for line in reversed(lines) if line.startswith(("error:", "slurmstepd:"))), None
    )
