"""The runs of a grid one after the other in this process.

Hydra's own loop composes the config of each run twice: 0.16 s of CPU time also for a run that is done or that another
worker has. Here it costs 1 to 4 ms. A launcher that starts processes, such as joblib, is started by Hydra.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from omegaconf import DictConfig

from condlora.grid.cells import Planned, Words, compose_common, each_config, plan_cells, state_of
from condlora.grid.watch import GridProgress
from condlora.runs.lease import living_owner
from condlora.runs.record import tidy


def is_done_here(overrides: Words) -> bool:
    """Whether this process does the runs of a command line, and nothing else is asked of Hydra."""
    words = [word for word in overrides if word != "hydra/launcher=basic"]
    if any(word.lstrip("+~").startswith(("hydra", "-")) for word in words):
        return False
    target = compose_common(overrides).hydra.launcher._target_
    return target == f"{BasicLauncher.__module__}.{BasicLauncher.__qualname__}"


def do_each(overrides: Words, do: Callable[[DictConfig], None]) -> None:
    """Call a function with the config of each run that is to do, with the bar over the grid."""
    cells, progress = plan_cells(overrides), GridProgress()
    progress.begin(cells, compose_common(overrides).runtime.progress)
    for cfg in each_to_do(overrides, cells):
        do(cfg)
    progress.end()


def each_to_do(overrides: Words, cells: Sequence[Planned]) -> Iterator[DictConfig]:
    """The config of each run that is neither done nor being done by another process when its turn comes.

    cells: what `plan_cells` gives for these overrides.
    """
    # Several processes of one run must all attempt the same runs.
    passes_over = int(os.environ.get("WORLD_SIZE", 1)) == 1
    for (cfg, _), cell in zip(each_config(overrides), cells, strict=True):
        if passes_over and state_of(cell, verify=True).state == "done":
            tidy(cell.folder)
        elif passes_over and (owner := living_owner(cell.folder)):
            name = f"{cell.task} {cell.adapter} seed {cell.seed}"
            print(f"{name}: left to another launcher, {cell.folder} is being run by {owner}")
        else:
            yield copy.deepcopy(cfg)
