"""Trainings and batches as members of a step, without runs around them."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from condlora.training.state import Training

# What a Training needs of an Accelerator.
ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"),
    scaler=None,
    unwrap_model=lambda model: model,
    clip_grad_norm_=torch.nn.utils.clip_grad_norm_,
    backward=lambda loss: loss.backward(),
)


@dataclass
class Member:
    """A member of a step whose errors are raised."""

    training: Training
    batch: dict
    kind: Hashable = None
    is_active: bool = True

    def guard(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def fail(self, error: Exception) -> None:
        raise error
