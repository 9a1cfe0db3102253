"""Fine-tune one run or a grid: `python scripts/train.py task=rte adapter=lora` or `profile=embedded`."""

import json
import os
import sys
import traceback

from omegaconf import DictConfig

from condlora.commands.cli import command, explain
from condlora.errors import RunTaken
from condlora.grid.cells import companions
from condlora.grid.preflight import preflight
from condlora.grid.watch import left_by_others, require_done

GRID = "CONDLORA_GRID"  # the command line's words, which a launcher's jobs know in part only


def start(overrides: list[str]) -> None:
    """Refuse what cannot run, and let every job know the grid it is of."""
    os.environ[GRID] = json.dumps(overrides)
    preflight(overrides)


def finish(overrides: list[str]) -> None:
    """Wait for runs that other launchers do, do those whose owner dies, then fail if one is not done."""
    for cfg in left_by_others(overrides):
        attempt(cfg)
    require_done(overrides)


def attempt(cfg: DictConfig) -> None:
    """Do a run, and with it as many of the grid that fit beside it as `runtime.fleet` allows."""
    from condlora.training.device import (
        fleet_size,  # after preflight, which must answer within seconds
    )
    from condlora.training.run import run_together

    cells = [cfg, *companions(cfg, json.loads(os.environ.get(GRID, "[]")), fleet_size(cfg) - 1)]
    for cell, outcome in zip(cells, run_together(cells), strict=True):
        name = f"{cell.task.name} {cell.adapter.name} seed {cell.seed}"
        if isinstance(outcome, RunTaken):
            print(f"{name}: left to another launcher, {outcome}")
        elif isinstance(
            outcome, Exception
        ):  # the others go on; `require_done` sets the exit status
            message = explain(outcome)
            if message is None:
                traceback.print_exception(outcome)
                message = "a defect of condlora, or of what it uses: please report the lines above."
            print(f"error: {name}: {message}", file=sys.stderr)


@command("train", before=start, after=finish)
def main(cfg: DictConfig) -> None:
    attempt(cfg)
