"""What happens around the runs of a grid: the bar over them, waiting for other launchers, and the command's verdict."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from tqdm.auto import tqdm

from condlora.errors import IncompleteGrid, UserError
from condlora.grid.cells import Planned, compose_cells, plan_cells, planned, state_of
from condlora.runs.lease import claim_file, living_owner
from condlora.training.bars import bars_wanted, say

POLL = 1.0  # seconds between two looks at the runs of other launchers
REFRESH = 2.0  # seconds between two looks at the runs that the bar counts


def left_by_others(overrides: list[str]) -> Iterator[DictConfig]:
    """Wait while other launchers do runs of this grid, and yield each run that its owner left unfinished by dying."""
    left = [(cfg, planned(cfg)) for cfg in compose_cells(tuple(overrides))]
    left = [(cfg, cell) for cfg, cell in left if living_owner(cell.folder) or _is_abandoned(cell)]
    if left:
        say(f"waiting for {len(left)} runs of other launchers")
    while left:
        owned = []
        for cfg, cell in left:
            if living_owner(cell.folder):
                owned.append((cfg, cell))
            elif _is_abandoned(cell):
                yield cfg
                if living_owner(cell.folder):  # another launcher was quicker
                    owned.append((cfg, cell))
        left = owned
        time.sleep(POLL if left else 0)


def _is_abandoned(cell: Planned) -> bool:
    """Whether the owner of an unfinished run died: its claim is still there.

    A run without a claim that has no result has failed here before it had a record, and would fail again.
    """
    return state_of(cell).state in ("running", "missing") and claim_file(cell.folder).exists()


def require_done(overrides: list[str], *, others_may_run: bool = False) -> None:
    """Fail the command if a run it named is not done; the reason of each was printed when it ended.

    others_may_run: a run that another launcher is doing does not count.

    Raises:
        IncompleteGrid: some runs of several are not done. SystemExit: the only run is not done.
    """
    cells = [state_of(cell) for cell in plan_cells(tuple(overrides))]
    left = [cell for cell in cells if cell.state != "done"]
    if others_may_run:
        left = [cell for cell in left if not living_owner(cell.folder)]
    if left and len(cells) == 1:
        raise SystemExit(UserError.exit_status)
    if left:
        names = ", ".join(f"{c.task} {c.adapter} seed {c.seed}" for c in left)
        raise IncompleteGrid(
            f"{len(left)} of {len(cells)} runs are not done ({names}): fix the errors above and run the "
            "same command again; finished runs are kept."
        )


class GridProgress(Callback):
    """The bar over the runs of a grid, with the time left; also a callback of Hydra.

    It counts finished records on disk, so it is right whatever launcher starts the runs and wherever.
    """

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.over = threading.Event()

    def __reduce__(self):
        # Launchers send callbacks to their workers; bar and thread stay in this process.
        return (GridProgress, ())

    def begin(self, cells: Sequence[Planned], progress: str) -> None:
        """progress: the setting `runtime.progress`."""
        left = [cell for cell in cells if state_of(cell).state != "done"]
        if len(cells) < 2:
            return
        say(f"{len(cells)} runs: {len(cells) - len(left)} done, {len(left)} to do")
        if left and bars_wanted(progress):
            self.bar = tqdm(total=len(left), desc="grid", unit="run", position=0)
            threading.Thread(target=self._watch, args=(left,), daemon=True).start()

    def _watch(self, left: list[Planned]) -> None:
        pending, total = left, len(left)
        while not self.over.wait(timeout=REFRESH):
            pending = [c for c in pending if state_of(c).state not in ("done", "failed")]
            self.bar.n = total - len(pending)
            self.bar.refresh()

    def end(self) -> None:
        self.over.set()
        if self.bar is not None:
            self.bar.close()

    def on_multirun_start(self, config: DictConfig, **_) -> None:
        self.begin(plan_cells(tuple(config.hydra.overrides.task)), config.runtime.progress)

    def on_multirun_end(self, config: DictConfig, **_) -> None:
        self.end()
