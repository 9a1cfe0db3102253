"""The command that every worker runs, whatever starts it; the same in a checkout and from a wheel."""

from __future__ import annotations

from collections.abc import Sequence


def command_of_worker(python: str, module: str, words: Sequence[str]) -> list[str]:
    """A worker's command line. module: that of the command, such as condlora.commands.train; words: its overrides."""
    return [python, "-u", "-c", f"from {module} import main; main()", *words]
