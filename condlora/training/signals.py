"""SIGINT, SIGTERM and a scheduler's SIGUSR1 and SIGUSR2 while runs are trained: they end after the next step, with a checkpoint."""

from __future__ import annotations

import signal
import threading

from condlora.errors import Interrupted


class Interruption:
    """A context in which the first of these signals is noted in `asked`; a second one acts at once.

    An ignored signal stays ignored: shells let their background jobs ignore SIGINT. Runs that are trained together share
    one object; each of them enters it, and the handlers are removed when the last one has left.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.asked: int | None = None
        self.before: dict = {}
        self.inside = 0

    def __enter__(self) -> Interruption:
        self.inside += 1
        if self.inside > 1 or self.asked is not None:
            return self
        # Python installs handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            handled = [n for n in self.SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
            self.before = {number: signal.signal(number, self._ask) for number in handled}
        return self

    def _ask(self, number: int, _) -> None:
        self.asked = number
        self._remove_handlers()

    def _remove_handlers(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __exit__(self, *_) -> None:
        self.inside -= 1
        if not self.inside:
            self._remove_handlers()

    def leave_if_asked(self) -> None:
        """Raise Interrupted if a signal came."""
        if self.asked is not None:
            raise Interrupted(self.asked)
