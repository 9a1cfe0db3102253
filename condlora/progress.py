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

    def __init__(self, cfg: DictConfig):
        self.bar = tqdm(
            desc=f"{cfg.task.name} {cfg.adapter.name} seed {cfg.seed}",
            unit="step",
            position=1,
            leave=False,
            disable=not bars_wanted(cfg.runtime.progress),
        )
        self.shown: dict[str, str] = {}

    def __enter__(self) -> RunBar:
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def expect(self, steps: int) -> None:
        self.bar.reset(total=steps)

    def step(self) -> None:
        self.bar.update()

    def show(self, **numbers: float | None) -> None:
        self.shown |= {name: "-" if n is None else f"{n:.3f}" for name, n in numbers.items()}
        self.bar.set_postfix(self.shown, refresh=False)


class GridProgress(Callback):
    """Hydra callback: the bar over the cells of a grid, with the time left."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def on_multirun_start(self, config: DictConfig, **_) -> None:
        # Imported late: Hydra makes the callback before the grid's own imports are due.
        from condlora.grid import compose_cells, inspect

        cells = [inspect(cfg) for cfg in compose_cells(tuple(config.hydra.overrides.task))]
        done = sum(cell.state == "done" for cell in cells)
        if len(cells) > 1:
            say(f"{len(cells)} runs: {done} done, {len(cells) - done} to do")
        self.bar = tqdm(
            total=len(cells),
            desc="grid",
            unit="run",
            position=0,
            disable=len(cells) < 2 or not bars_wanted(config.runtime.progress),
        )

    def on_job_end(self, config: DictConfig, **_) -> None:
        if self.bar is not None:
            self.bar.update()

    def on_multirun_end(self, config: DictConfig, **_) -> None:
        if self.bar is not None:
            self.bar.close()
