"""The command that every worker runs, whatever starts it: the training command, in a checkout and from a wheel."""

from __future__ import annotations

from collections.abc import Sequence

TRAIN = "from condlora.commands.train import main; main()"


def command_of_worker(python: str, words: Sequence[str]) -> list[str]:
    """A worker's command line. words: the overrides of the training command."""
    return [python, "-u", "-c", TRAIN, "wait=false", *words]
