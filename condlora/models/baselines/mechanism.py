"""The hooks of a mechanism, all of which do nothing here; see `condlora.models.baselines`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from omegaconf import DictConfig
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel

# Batch size -> the training batches, in the order of training.
Batches = Callable[[int], Iterable[dict[str, torch.Tensor]]]


class Mechanism:
    """Something that a method needs beyond its PEFT config. A model is passed to each hook and never kept.

    can_be_merged: whether the trained adapter can become part of the backbone's weights.
    is_one_product: whether the adapter adds scaling * B A, of one rank for all layers, to the pretrained W.
    """

    can_be_merged: ClassVar[bool] = True
    is_one_product: ClassVar[bool] = True

    def __init__(self, cfg: DictConfig, config: PeftConfig):
        """cfg: the `adapter` group, empty for an adapter that is loaded; config: PEFT's."""
        self.cfg, self.config = cfg, config

    @classmethod
    def serves(cls, cfg: DictConfig, config: PeftConfig) -> bool:
        """Whether an adapter of these configs needs this mechanism."""
        raise NotImplementedError

    # Start

    def check(self, base: PreTrainedModel) -> None:
        """Raise a ConfigError for what PEFT would accept on this backbone and compute wrongly."""

    def before_attach(self, base: PreTrainedModel, batches: Batches | None) -> None:
        """Change the backbone or PEFT's config before the adapter is attached."""

    def after_attach(self, model: PeftModel, batches: Batches | None) -> None:
        """Change the adapted model; names of backbone weights to save go into `model.base_weights`."""

    # Training

    def learning_rate_factor(self, name: str) -> float | None:
        """Factor on the learning rate of the parameter of this name; None where the mechanism sets none."""
        return None

    def begin(self, model: PeftModel, total_steps: int) -> None:
        """Before the first step of a run of `total_steps` steps. Raises ConfigError if that is too few."""

    def after_step(self, model: PeftModel, step: int) -> None:
        """Between the optimizer's step (counted from 1) and the clearing of gradients."""

    def may_be_kept(self, model: PeftModel, step: int) -> bool:
        """Whether the adapter after this step has its final form and may be chosen as the run's result."""
        return True

    # Checkpoints and saving

    def state(self, model: PeftModel) -> dict[str, torch.Tensor]:
        """Tensors that a checkpoint needs besides the trainable parameters, as "<kind>.<parameter name>"."""
        return {}

    def load_state(self, model: PeftModel, tensors: dict[str, torch.Tensor]) -> None:
        """Restore what `state` returned; tensors of other mechanisms are among them."""

    @contextmanager
    def as_saved(self, model: PeftModel) -> Iterator[None]:
        """Within it the model is as PEFT should save it."""
        yield


def of_kind(tensors: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """The tensors of a state that are named "<kind>.<parameter name>", by parameter name."""
    prefix = f"{kind}."
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
