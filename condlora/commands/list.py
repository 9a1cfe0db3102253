"""Print a grid: the state of each run, and the time that remains.

Examples:
    python scripts/list.py profile=embedded
    python scripts/list.py profile=kinship runs=/data/runs
"""

from __future__ import annotations

from condlora.commands.cli import command


@command("train", composes=False)
def main(overrides: list[str]) -> None:
    from condlora.grid.cells import plan_cells, state_of
    from condlora.grid.listing import table

    print(table([state_of(cell) for cell in plan_cells(tuple(overrides))]))
