"""What a user sees while a grid runs: bars on a terminal, else a line per finished run."""

from __future__ import annotations

import sys

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from tqdm.auto import tqdm


def bars_wanted(setting: str) -> bool:
    """`runtime.progress`: bars, plain, or auto (bars where the output is a terminal)."""
    return setting == "bars" or (setting == "auto" and sys.stderr.isatty())


def say(text: str) -> None:
    """Print a line without tearing a bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


class RunBar:
    """The bar of one run: steps, loss and last validation score."""

    def __init__(self, cfg: DictConfig, total_steps: int):
        self.bar = tqdm(
            total=total_steps,
            desc=f"{cfg.task.name} {cfg.adapter.name} seed {cfg.seed}",
            unit="step",
            position=1,
            leave=False,
            disable=not bars_wanted(cfg.runtime.progress),
        )
        self.shown: dict[str, str] = {}

    def step(self) -> None:
        self.bar.update()

    def show(self, **numbers: float | None) -> None:
        self.shown |= {name: "-" if n is None else f"{n:.3f}" for name, n in numbers.items()}
        self.bar.set_postfix(self.shown, refresh=False)

    def close(self) -> None:
        self.bar.close()


class GridProgress(Callback):
    """Hydra callback: the bar over the cells of a grid, with the time left."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def on_multirun_start(self, config: DictConfig, **_) -> None:
        from condlora.grid import (
            compose_cells,
        )  # the callback is made before the grid's own imports are due

        total = len(compose_cells(tuple(config.hydra.overrides.task)))
        self.bar = tqdm(
            total=total, desc="grid", unit="run", position=0, disable=total < 2 or not bars_wanted(config.runtime.progress)
        )  # fmt: skip

    def on_job_end(self, config: DictConfig, **_) -> None:
        if self.bar is not None:
            self.bar.update()

    def on_multirun_end(self, config: DictConfig, **_) -> None:
        if self.bar is not None:
            self.bar.close()
