"""The hooks of `condlora.models.baselines.Baseline` as functions; callers change to the class, then this module goes."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from omegaconf import DictConfig
from peft import PeftModel
from torch import nn

from condlora.models.baselines import baseline_of


def parameter_groups(model: PeftModel, cfg: DictConfig, learning_rate: float) -> list:
    return baseline_of(model).parameter_groups(learning_rate)


def begin(model: PeftModel, cfg: DictConfig, total_steps: int) -> None:
    baseline_of(model).begin(total_steps)


def after_step(model: PeftModel, step: int) -> None:
    baseline_of(model).after_step(step)


def may_be_kept(model: PeftModel, step: int) -> bool:
    return baseline_of(model).may_be_kept(step)


def state(model: PeftModel) -> dict[str, torch.Tensor]:
    return baseline_of(model).state()


def load_state(model: PeftModel, tensors: dict[str, torch.Tensor]) -> None:
    baseline_of(model).load_state(tensors)


def as_saved(model: PeftModel) -> AbstractContextManager[dict[str, torch.Tensor]]:
    return baseline_of(model).as_saved()


def merged(model: PeftModel) -> nn.Module | None:
    return baseline_of(model).merged()
