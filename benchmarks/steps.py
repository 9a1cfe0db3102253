"""Steps that are timed: runs without record and evaluation, and the clock."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from omegaconf import DictConfig

from benchmarks.rates import wait_for
from condlora.models.backbones import Backbone
from condlora.training.compatibility import compatible
from condlora.training.data import Data
from condlora.training.setup import Batches, initialise, prepare_training, streams, training_data
from condlora.training.state import Training
from condlora.training.step import step

STEPS = 1000  # of the learning-rate schedule; it does not matter for the time


@dataclass
class Timed:
    """A member of the steps that are timed, in place of a run; its errors are raised."""

    training: Training
    batches: Batches
    batch: dict | None = None
    kind: Hashable = None
    is_active: bool = True

    def guard(self) -> AbstractContextManager:
        return nullcontext()

    def fail(self, error: Exception) -> None:
        raise error


def member(
    cfg: DictConfig, backbone: Backbone, data: Data, accelerator: Accelerator, seed: int
) -> Timed:
    """A run of a seed before its first step."""
    model = initialise(cfg, backbone, streams(seed, cfg.task.name), data)
    training = prepare_training(cfg, model, STEPS, accelerator)
    return Timed(training, training_data(cfg, data, {"data": seed}, accelerator))


def take_step(members: Sequence[Timed]) -> None:
    """The next step of each, as `condlora.training.loop` takes it."""
    for each in members:
        each.batch = each.batches.next(each.training.progress)
    for group in compatible(members):
        for each, loss in step(group):
            each.training.progress.count(len(each.batch["labels"]), loss)


class Clock:
    """Times the first step, and the `steps` steps that follow the `warm_up` steps."""

    def __init__(self, device: torch.device, steps: int, warm_up: int = 1):
        self.device, self.steps, self.warm_up, self.ticks = device, steps, warm_up, 0

    def begin(self) -> None:
        self.began = self.now()

    def tick(self) -> None:
        """A step has ended."""
        self.ticks += 1
        if self.ticks == 1:
            self.first_seconds = self.now() - self.began
        if self.ticks == self.warm_up:
            self.started = self.now()
        if self.ticks == self.warm_up + self.steps:
            self.seconds = self.now() - self.started

    def now(self) -> float:
        wait_for(self.device)
        return time.perf_counter()
