"""The training loop of all runs: a single run is a list of one. Nothing happens between a batch and its step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from condlora.training.compatibility import compatible, find_kinds
from condlora.training.step import step

if TYPE_CHECKING:
    from condlora.training.run import Run


def train(runs: Sequence[Run]) -> None:
    """Train started runs until each has ended; a run that fails records it and leaves, the others go on."""
    find_kinds(still_active(runs))
    while active := still_active(runs):
        for run in active:
            run.next_batch()
        for group in compatible(still_active(active)):
            for run, loss in step(group):
                run.finish_step(loss)  # count, evaluate, keep the best, checkpoint, stop


def still_active(runs: Sequence[Run]) -> list[Run]:
    """The runs that have not ended."""
    return [run for run in runs if run.is_active]
