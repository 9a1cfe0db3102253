"""Fine-tune one run, or all runs of a grid that are not done.

Examples:
    python scripts/train.py task=rte adapter=lora seed=1
    python scripts/train.py profile=embedded

Values with commas are a grid: task=rte,mrpc adapter=lora,condlora. The same command resumes what was interrupted.
"""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING

from condlora.commands.cli import command

if TYPE_CHECKING:
    from omegaconf import DictConfig


def check(overrides: list[str]) -> None:
    """Refuse what cannot run."""
    from condlora.grid.preflight import preflight

    preflight(overrides)


def finish(overrides: list[str]) -> None:
    """Wait for runs that other launchers do, do those whose owner dies, then fail if one is not done.

    With `wait=false`, as for one of many workers, the runs of others are left to them.
    """
    from condlora.grid.cells import compose_common
    from condlora.grid.watch import left_by_others, require_done

    waits = compose_common(tuple(overrides)).wait
    for cfg in left_by_others(overrides) if waits else ():
        attempt(cfg, overrides)
    require_done(overrides, others_may_run=not waits)


def attempt(cfg: DictConfig, overrides: list[str]) -> None:
    """Do a run, and with it as many pending runs of the grid as `runtime.fleet` allows to be trained jointly.

    overrides: those of the whole grid.
    """
    # Imported here: preflight must answer without torch.
    from condlora.commands.explain import explain
    from condlora.errors import RunTaken
    from condlora.grid.cells import companions
    from condlora.training.device import fleet_size
    from condlora.training.distributed import processes
    from condlora.training.run import run_together

    cells = [cfg, *companions(cfg, overrides, fleet_size(cfg) - 1)]
    for cell, outcome in zip(cells, run_together(cells), strict=True):
        name = f"{cell.task.name} {cell.adapter.name} seed {cell.seed}"
        if isinstance(outcome, RunTaken) and processes() > 1:
            # The other processes of this run wait for this one, and are ended with it.
            print(
                f"error: {name}: {outcome}: run the same command when it is done.", file=sys.stderr
            )
            sys.exit(RunTaken.exit_status)
        elif isinstance(outcome, RunTaken):
            print(f"{name}: left to another launcher, {outcome}")
        elif isinstance(outcome, Exception):  # the others continue; `require_done` sets the status
            message = explain(outcome)
            if message is None:
                traceback.print_exception(outcome)
                message = (
                    "a defect of condlora or of a library it uses: please report the lines above."
                )
            print(f"error: {name}: {message}", file=sys.stderr)


@command("train", before=check, after=finish, with_grid=True)
def main(cfg: DictConfig, overrides: list[str]) -> None:
    attempt(cfg, overrides)
