"""Processes that a launcher or a search starts: they end when the process that started them does."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from condlora.errors import Interrupted

POLL = 0.5  # seconds between two looks at the parent
GRACE = 30.0  # seconds for a run to write its checkpoint


@functools.cache
def leave_with_parent() -> None:
    """Have this worker end, with a checkpoint, when its parent does, however that ended; nothing in any other process.

    A parent that is killed cannot tell its workers. They look at their parent's number, which changes when it dies.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == parent.pid:
            time.sleep(POLL)
        for _ in range(2):  # the first asks a run to end, the second ends whatever is not one
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(GRACE)

    threading.Thread(target=watch, daemon=True).start()


def call_in_worker(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that trains, in a worker or elsewhere; a worker whose parent is gone ends with its interrupted run.

    Otherwise the library that started it would wait for work with the run's memory.
    """
    leave_with_parent()
    try:
        return function(*arguments)
    except Interrupted:
        parent = multiprocessing.parent_process()
        if parent is not None and os.getppid() != parent.pid:
            os._exit(128 + signal.SIGTERM)
        raise
