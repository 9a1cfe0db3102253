"""What a user sees while a grid runs: bars on a terminal, else a line per finished run."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from tqdm.auto import tqdm


def bars_wanted(setting: str) -> bool:
    """`runtime.progress`: bars, plain, or auto (bars where the output is a terminal)."""
    return setting == "bars" or (setting == "auto" and sys.stderr.isatty())


def is_worker() -> bool:
    """Whether a launcher started this process beside others that share the terminal."""
    return multiprocessing.parent_process() is not None


def is_first() -> bool:
    """Whether this is the process, of those that `accelerate launch` started for one run, that says what happens."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Print a line without tearing a bar; one of several processes of a run does."""
    if not is_first():
        return
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


class RunBar:
    """The bar of one run: steps, loss and last validation score."""

    def __init__(self, cfg: DictConfig):
        self.bar = tqdm(
            desc=f"{cfg.task.name} {cfg.adapter.name} seed {cfg.seed}",
            unit="step",
            leave=False,
            disable=is_worker() or not is_first() or not bars_wanted(cfg.runtime.progress),
        )
        self.shown: dict[str, str] = {}

    def __enter__(self) -> RunBar:
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def expect(self, steps: int, done: int = 0) -> None:
        self.bar.reset(total=steps)
        self.bar.update(done)

    def step(self) -> None:
        self.bar.update()

    def show(self, **numbers: float | None) -> None:
        self.shown |= {name: "-" if n is None else f"{n:.3f}" for name, n in numbers.items()}
        self.bar.set_postfix(self.shown, refresh=False)


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
        # Imported late: Hydra makes the callback before the grid's own imports are due.
        from condlora.grid.cells import compose_cells, inspect

        configs = compose_cells(tuple(config.hydra.overrides.task))
        left = [cfg for cfg in configs if inspect(cfg).state != "done"]
        if len(configs) < 2:
            return
        say(f"{len(configs)} runs: {len(configs) - len(left)} done, {len(left)} to do")
        if left and bars_wanted(config.runtime.progress):
            self.bar = tqdm(total=len(left), desc="grid", unit="run", position=0)
            threading.Thread(target=self._watch, args=(left,), daemon=True).start()

    def _watch(self, left: list[DictConfig]) -> None:
        from condlora.grid.cells import inspect

        open_, total = left, len(left)
        while not self.over.wait(timeout=2.0):
            open_ = [cfg for cfg in open_ if inspect(cfg).state not in ("done", "failed")]
            self.bar.n = total - len(open_)
            self.bar.refresh()

    def on_multirun_end(self, config: DictConfig, **_) -> None:
        self.over.set()
        if self.bar is not None:
            self.bar.close()
