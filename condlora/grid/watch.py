"""What happens around a grid's runs: the bar over them, waiting for other launchers, and the command's verdict."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from tqdm.auto import tqdm

from condlora.errors import IncompleteGrid, UserError
from condlora.grid.cells import compose_cells, inspect
from condlora.runs.lease import living_owner
from condlora.runs.record import run_folder
from condlora.training.bars import bars_wanted, say

POLL = 1.0  # seconds between two looks at other launchers' runs


def left_by_others(overrides: list[str]) -> Iterator[DictConfig]:
    """Wait while other launchers do runs of this grid, and yield each that its owner left unfinished by dying."""

    left = [
        cfg
        for cfg in compose_cells(tuple(overrides))
        if living_owner(run_folder(cfg)) or _is_unfinished(cfg)
    ]
    if left:
        say(f"waiting for {len(left)} runs of other launchers")
    while left:
        owned = []
        for cfg in left:
            if living_owner(run_folder(cfg)):
                owned.append(cfg)
            elif _is_unfinished(cfg):
                yield cfg
                if living_owner(run_folder(cfg)):  # another was quicker
                    owned.append(cfg)
        left = owned
        time.sleep(POLL if left else 0)


def _is_unfinished(cfg: DictConfig) -> bool:
    """Whether nobody has said how the run ended."""
    return inspect(cfg).state in ("running", "missing")


def require_done(overrides: list[str]) -> None:
    """Fail the command if a run it named is not done; each has said why as it ended.

    Raises:
        IncompleteGrid: some runs of several are not done. SystemExit: the only one is not.
    """
    cells = [inspect(cfg) for cfg in compose_cells(tuple(overrides))]
    left = [f"{c.task} {c.adapter} seed {c.seed}" for c in cells if c.state != "done"]
    if left and len(cells) == 1:
        raise SystemExit(UserError.exit_status)
    if left:
        raise IncompleteGrid(
            f"{len(left)} of {len(cells)} runs are not done ({', '.join(left)}): mend what is said above and run "
            "the same command again, finished runs are kept."
        )


class GridProgress(Callback):
    """Hydra callback: the bar over the runs of a grid, with the time left.

    It counts finished records on disk, so it is right whatever launcher starts the runs and wherever.
    """

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.over = threading.Event()

    def __reduce__(self):
        return (
            GridProgress,
            (),
        )  # launchers send callbacks to their workers: bar and thread stay here

    def on_multirun_start(self, config: DictConfig, **_) -> None:
        configs = compose_cells(tuple(config.hydra.overrides.task))
        left = [cfg for cfg in configs if inspect(cfg).state != "done"]
        if len(configs) < 2:
            return
        say(f"{len(configs)} runs: {len(configs) - len(left)} done, {len(left)} to do")
        if left and bars_wanted(config.runtime.progress):
            self.bar = tqdm(total=len(left), desc="grid", unit="run", position=0)
            threading.Thread(target=self._watch, args=(left,), daemon=True).start()

    def _watch(self, left: list[DictConfig]) -> None:
        open_, total = left, len(left)
        while not self.over.wait(timeout=2.0):
            open_ = [cfg for cfg in open_ if inspect(cfg).state not in ("done", "failed")]
            self.bar.n = total - len(open_)
            self.bar.refresh()

    def on_multirun_end(self, config: DictConfig, **_) -> None:
        self.over.set()
        if self.bar is not None:
            self.bar.close()
