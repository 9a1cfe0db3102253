"""Wait for submitted workers, and say from the run folders what became of their work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from condlora.errors import IncompleteGrid

POLL = 10.0  # seconds between two questions to the scheduler


@dataclass(frozen=True)
class Item:
    """A run of a grid, or a trial of a search. is_taken: a process is doing it; reason: why it failed, if it did."""

    name: str
    is_done: bool
    is_taken: bool
    reason: str | None


def follow(
    items: Callable[[], list[Item]],
    noun: str,
    is_alive: Callable[[], bool],
    logs: Path,
    *,
    poll: float = POLL,
) -> None:
    """Return when the workers have ended and every item is done. noun: what the items are, for messages.

    Raises:
        IncompleteGrid: some are not; with the reason of each that failed, or the logs' last lines where none is recorded.
    """
    while is_alive():
        time.sleep(poll)
    found = items()
    left = [item for item in found if not item.is_done]
    if not left:
        return
    reasons = [f"{item.name}: {item.reason}" for item in left if item.reason]
    if not reasons:
        reasons = [line for path in sorted(logs.glob("*.log")) if (line := _last_error(path))]
    said = "; ".join(dict.fromkeys(reasons)) or "no reason is recorded"
    raise IncompleteGrid(
        f"{len(left)} of {len(found)} {noun} are not done ({said}). Logs: {logs}. Submit the same command again to continue."
    )


def _last_error(path: Path) -> str | None:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next(
        (line for line in reversed(lines) if line.startswith(("error:", "slurmstepd:"))), None
    )
