"""What a user sees while a run is trained: a bar on a terminal, else a line when it ends."""

from __future__ import annotations

import multiprocessing
import os
import sys

from omegaconf import DictConfig
from tqdm.auto import tqdm


def bars_wanted(setting: str) -> bool:
    """`runtime.progress`: bars, plain, or auto (bars where the output is a terminal)."""
    return setting == "bars" or (setting == "auto" and sys.stderr.isatty())


def is_worker() -> bool:
    """Whether a launcher started this process as one of several that share the terminal."""
    return multiprocessing.parent_process() is not None


def is_first() -> bool:
    """Whether this process prints: the only one of a run, or the first that `accelerate launch` started for it."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Print a line above the bars, once if a run has several processes."""
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
