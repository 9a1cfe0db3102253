"""One step of the optimizer, for one run or for a group: forward, backward, clip, AdamW, schedule, zero_grad.

What does not fit into memory is split, to the same numbers: a group into smaller groups, the batch of one run into parts
whose gradients are added up. Both limits stay for the rest of the training.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from condlora.errors import DeviceError
from condlora.models.baselines import baseline_of
from condlora.training import distributed
from condlora.training.bars import say
from condlora.training.joint import joint_gradients
from condlora.training.optimizer import can_step_jointly, step_jointly
from condlora.training.state import Training


class Member(Protocol):
    """What a step needs of a run; see `condlora.training.run.Run`."""

    training: Training
    batch: dict
    kind: Hashable
    is_active: bool

    def guard(self) -> AbstractContextManager: ...

    def fail(self, error: Exception) -> None: ...


def step(runs: Sequence[Member]) -> list[tuple[Member, torch.Tensor]]:
    """Take a step on the current batch of each run; returns the runs that took it with their mean losses.

    The losses are detached float32 scalars on the device. An error ends the run that it belongs to (`Run.fail`), an
    error in the pass or in the optimizer's step of several runs ends all of these.
    """
    try:
        losses = _gradients(runs)
    except Exception as error:
        for run in runs:
            run.fail(error)
        return []
    if losses is None:
        most = len(runs) // 2
        say(f"out of memory: training at most {most} runs jointly from now on")
        for run in runs:
            run.training.most_together = most
        parts = [runs[start : start + most] for start in range(0, len(runs), most)]
        return [done for part in parts for done in step(part)]
    optimize(runs)
    for run in runs:
        if run.is_active:
            with run.guard():
                _after_optimizer(run.training)
    return [(run, loss) for run, loss in zip(runs, losses, strict=True) if run.is_active]


def _gradients(runs: Sequence[Member]) -> list[torch.Tensor] | None:
    """Add the gradients of every run; returns the losses, or None if the joint pass does not fit into memory."""
    if len(runs) == 1:
        return [gradients(runs[0].training, runs[0].batch)]
    try:
        return joint_gradients([run.training for run in runs], [run.batch for run in runs])
    except torch.OutOfMemoryError:
        pass  # the exception holds the memory of the failed pass, so the next attempt is made outside
    for run in runs:
        run.training.optimizer.zero_grad()
    return None


def gradients(training: Training, batch: dict) -> torch.Tensor:
    """Add the gradients of one run's batch; returns its loss, see `add_gradients`.

    A batch that does not fit into memory is split into halves until it does; the effective batch stays the same.

    Raises:
        DeviceError: one example does not fit.
    """
    progress = training.progress
    if not training.unwrapped.training:  # after an evaluation; `train` visits every module
        training.model.train()
    while True:
        try:
            return add_gradients(training, batch)
        except torch.OutOfMemoryError as error:
            if progress.parts_per_batch >= len(batch["labels"]):
                raise DeviceError(
                    "One example does not fit into the device's memory: lower protocol.max_length."
                ) from error
        training.optimizer.zero_grad()
        progress.parts_per_batch *= 2
        say(
            f"out of memory: using {progress.parts_per_batch} gradient-accumulation steps from now on"
        )


def add_gradients(training: Training, batch: dict) -> torch.Tensor:
    """Add the gradients of the batch's mean loss, part by part; returns the loss, a detached float32 scalar.

    Each of several processes computes its own rows; all of them get the sums.
    """
    size, loss = len(batch["labels"]), torch.zeros((), device=training.accelerator.device)
    own = distributed.own_rows(size)
    for rows in own.chunk(training.progress.parts_per_batch) if len(own) else ():
        part = {name: values[rows[0] : rows[-1] + 1] for name, values in batch.items()}
        share = training.model(**part).loss * (len(rows) / size)
        training.accelerator.backward(share)
        loss += share.detach()
    return distributed.sum_over_processes(training.trainable.values(), loss)


def optimize(runs: Sequence[Member]) -> None:
    """Clip the gradients and take the optimizers' steps, as one step if all runs can."""
    trainings = [run.training for run in runs]
    if len(runs) > 1 and all(map(can_step_jointly, trainings)):
        try:
            _in_memory(step_jointly, trainings)
        except Exception as error:
            for run in runs:
                run.fail(error)
    else:
        for run in runs:
            with run.guard():
                _in_memory(clip_and_step, run.training)


def clip_and_step(training: Training) -> None:
    """Clip the gradients of one run and take its optimizer's step."""
    training.accelerator.clip_grad_norm_(training.trainable.values(), training.max_grad_norm)
    training.optimizer.step()


def _in_memory(take_step: Callable[[Any], None], argument: Any) -> None:
    """Call an optimizer's step; it cannot be repeated when memory runs out, as a part of it may be done.

    Raises:
        DeviceError: memory ran out.
    """
    try:
        take_step(argument)
    except torch.OutOfMemoryError:
        pass  # raised below, outside, so that the error does not hold on to the memory
    else:
        return
    raise DeviceError(
        "The optimizer's step does not fit into the device's memory: set runtime.fleet to fewer runs, or choose an "
        "adapter with fewer trainable parameters."
    )


def _after_optimizer(training: Training) -> None:
    """The schedule, and what the method does while the gradients are still there (AdaLoRA prunes by them)."""
    training.schedule.step()
    baseline_of(training.unwrapped).after_step(training.progress.step + 1)
    training.optimizer.zero_grad()
