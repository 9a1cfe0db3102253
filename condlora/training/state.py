"""The state of a run in training: its counts and everything that changes from step to step, as tensors and settings."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import nn

from condlora.models.baselines import baseline_of


@dataclass
class Progress:
    """What the loop knows after a step.

    best_score: of the headline metric on validation. loss_sum: float32, over the loss_steps steps since the last
    evaluation. Times are in seconds, those of training over all processes that worked on the run.
    """

    step: int = 0
    epoch: int = 0  # of the last batch, from 0; after the training the number of epochs begun
    best_score: float | None = None
    best_step: int = 0
    best_epoch: int = 0
    best_batch_size: int | None = None  # of the evaluation that gave best_score
    evaluations_without_improvement: int = 0
    stopped_early: bool = False
    curve: list[dict] = field(default_factory=list)
    loss_sum: float | torch.Tensor = 0.0
    loss_steps: int = 0
    train_seconds: float = 0.0
    train_examples: int = 0
    parts_per_batch: int = (
        1  # gradient-accumulation steps; above 1 once a batch did not fit into memory
    )
    evaluation_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    checkpoint_bytes: int = 0
    examples_per_second_alone: float | None = None  # of a run that was trained jointly
    earlier_seconds: float = 0.0  # of the processes before this one
    resumed_at_steps: list[int] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)  # names of all devices that took steps

    def summary(self) -> dict:
        """The fields of the run's record that come from the training."""
        rate = self.train_examples / self.train_seconds
        return {
            "best": {"step": self.best_step, "epoch": self.best_epoch},
            "steps": self.step,
            "epochs": self.epoch,
            "stopped_early": self.stopped_early,
            "devices": self.devices,
            "train_seconds": self.train_seconds,
            "train_examples_per_second": self.examples_per_second_alone or rate,
            "evaluation_seconds": self.evaluation_seconds,
            "parts_per_batch": self.parts_per_batch,
            "checkpoint_seconds": self.checkpoint_seconds,
            "checkpoint_bytes": self.checkpoint_bytes,
            "resumed_at_steps": self.resumed_at_steps,
        }

    def count(self, examples: int, loss: torch.Tensor) -> None:
        """Count a step. The loss, a float32 scalar, stays on the device: reading it would wait for the device."""
        self.step += 1
        self.train_examples += examples
        self.loss_sum = self.loss_sum + loss
        self.loss_steps += 1


@dataclass
class Training:
    """Everything that a step of the optimizer needs and changes.

    max_grad_norm: gradients are clipped to this norm. most_together: the number of runs that fit into memory in one pass
    with this one, None while no limit is known.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    accelerator: Accelerator
    max_grad_norm: float
    progress: Progress = field(default_factory=Progress)
    most_together: int | None = None
    trainable: dict[str, nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.model.train()  # every module: the copy of a backbone in it is in evaluation mode
        self.trainable = {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """Of the loss in fp16, else None."""
        return self.accelerator.scaler

    @functools.cached_property  # accelerate looks at every module
    def unwrapped(self) -> nn.Module:
        """The model without what accelerate puts around it."""
        return self.accelerator.unwrap_model(self.model)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Copies on the CPU: trainable parameters, optimizer, the method's own state, random generators."""
        found = {f"parameter.{name}": p.detach() for name, p in self.trainable.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
        found |= {f"method.{name}": t for name, t in baseline_of(self.model).state().items()}
        found["random.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            for index, state in enumerate(torch.cuda.get_rng_state_all()):
                found[f"random.cuda.{index}"] = state
        return {name: t.to("cpu", copy=True).contiguous() for name, t in found.items()}

    def settings(self) -> dict:
        """The rest of the state, which JSON can hold: schedule, the optimizer's groups, scaler."""
        return {
            "schedule": self.schedule.state_dict(),
            "groups": self.optimizer.state_dict()["param_groups"],
            "scaler": self.scaler and self.scaler.state_dict(),
        }

    def load(self, tensors: dict[str, torch.Tensor], settings: dict) -> None:
        """Restore what `tensors` and `settings` returned."""
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                parameter.copy_(tensors[f"parameter.{name}"])
        own = {n.removeprefix("method."): t for n, t in tensors.items() if n.startswith("method.")}
        baseline_of(self.model).load_state(own)
        moments: dict[int, dict] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, key = rest.partition(".")
                moments.setdefault(int(index), {})[key] = tensor
        groups = settings["groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.schedule.load_state_dict(settings["schedule"])
        if self.scaler is not None:
            self.scaler.load_state_dict(settings["scaler"])
        torch.set_rng_state(tensors["random.cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(
                [tensors[f"random.cuda.{i}"] for i in range(torch.cuda.device_count())]
            )


@contextmanager
def unchanged(training: Training) -> Iterator[None]:
    """Undo on exit every change that steps within the block make to the run and to the random generators."""
    tensors, settings = training.tensors(), copy.deepcopy(training.settings())
    progress = dict(vars(training.progress))
    try:
        yield
    finally:
        training.optimizer.zero_grad()
        training.load(tensors, settings)
        vars(training.progress).update(progress)
