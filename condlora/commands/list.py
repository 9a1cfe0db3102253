"""Print a grid: the state of each run, and the time that remains. --watch shows it while it runs.

Examples:
    python scripts/list.py profile=embedded
    python scripts/list.py profile=embedded --watch
    python scripts/list.py profile=kinship runs=/data/runs
"""

from __future__ import annotations

import sys

from condlora.commands.cli import command


@command("train", composes=False)
def show(overrides: list[str]) -> None:
    from condlora.grid.cells import plan_cells, state_of
    from condlora.grid.listing import table

    print(table([state_of(cell) for cell in plan_cells(tuple(overrides))]))


@command("train", composes=False)
def watch(overrides: list[str]) -> None:
    import contextlib

    from rich.console import Console

    from condlora.grid import live
    from condlora.grid.cells import plan_cells

    with contextlib.suppress(KeyboardInterrupt):  # how it is ended
        live.watch(plan_cells(tuple(overrides)), Console())


def main() -> None:
    is_live = "--watch" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--watch"]
    (watch if is_live else show)()
