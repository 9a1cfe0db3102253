"""Print a grid, the state of each run and the time that remains: `python scripts/list.py profile=embedded`."""

import sys

from condlora.commands.cli import command
from condlora.grid.cells import compose_cells, inspect
from condlora.grid.listing import table


def show(overrides: list[str]) -> None:
    print(table([inspect(cfg) for cfg in compose_cells(tuple(overrides))]))
    sys.exit(0)


@command("train", before=show)
def main(cfg) -> None:
    """Never reached: `show` ends the command. Hydra answers --help and the like."""
