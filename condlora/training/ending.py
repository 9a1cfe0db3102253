"""How a run ends: with its record or with an error, which is recorded and ends no other run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from condlora.errors import Interrupted, RunTaken
from condlora.runs.record import failure, write_record


def ends_on_error(method: Callable) -> Callable:
    """Let an error in a method of a run end the run, see `Ending.guard`."""

    @functools.wraps(method)
    def guarded(self: Ending, *arguments) -> None:
        with self.guard():
            method(self, *arguments)

    return guarded


class Ending:
    """The outcome of a run: its record, or the error that ended it; None while the run is active."""

    folder: Path

    def __init__(self) -> None:
        self.outcome: dict | Exception | Interrupted | None = None
        self.record: dict | None = None
        self.is_recorded = False  # in the run's folder, which holds nothing else from then on
        self.resources = ExitStack()

    @property
    def is_active(self) -> bool:
        return self.outcome is None

    @contextmanager
    def guard(self) -> Iterator[None]:
        """An error in this context ends this run and no other; it is recorded and becomes the outcome."""
        try:
            yield
        except (Exception, Interrupted) as error:
            self.fail(error)

    def fail(self, error: Exception | Interrupted) -> None:
        """End the run with this error. Its record says why, unless the folder holds other work or another's."""
        may_record = self.record and self.is_active and not isinstance(error, RunTaken)
        self.outcome = error
        try:
            if may_record and (self.is_recorded or not self.folder.exists()):
                write_record(self.folder, self.record | failure(error))
        except Exception as worse:  # such as a full disk
            self.outcome = worse
        self.close()

    def close(self) -> None:
        """Release what the run holds; calling it again does nothing."""
        self.resources.close()
