"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512): ranks pruned by a schedule while the adapter trains."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import DictConfig
from peft import AdaLoraConfig, PeftConfig, PeftModel

from condlora.errors import ConfigError
from condlora.models.baselines.mechanism import Mechanism, of_kind
from condlora.tuner.methods import METHODS


class Pruned(Mechanism):
    """Ranks pruned by a rank allocator; its schedule is stated as fractions of the run's steps."""

    is_one_product = False
    importance: tuple[str, ...]  # the allocator's dictionaries by parameter name

    def schedule(self) -> dict[str, Any]:
        """Where total_step, tinit, tfinal and deltaT are kept."""
        raise NotImplementedError

    def begin(self, model: PeftModel, total_steps: int) -> None:
        fractions = self.cfg.schedule
        tinit, tfinal = (int(fractions[key] * total_steps) for key in ("tinit", "tfinal"))
        deltaT = math.ceil(fractions.deltaT * total_steps)
        self.schedule().update(total_step=total_steps, tinit=tinit, tfinal=tfinal, deltaT=deltaT)
        if total_steps - tfinal - tinit < 2:
            raise ConfigError(
                f"adapter={self.cfg.name} has no step left to prune in: train longer or lower adapter.schedule.tinit "
                "and tfinal."
            )

    def after_step(self, model: PeftModel, step: int) -> None:
        model.base_model.update_and_allocate(step)

    def may_be_kept(self, model: PeftModel, step: int) -> bool:
        """Only once pruning has ended."""
        schedule = self.schedule()
        return step >= schedule["total_step"] - schedule["tfinal"]

    def state(self, model: PeftModel) -> dict[str, torch.Tensor]:
        allocator = model.base_model.rankallocator
        return {
            f"{kind}.{name}": tensor
            for kind in self.importance
            for name, tensor in getattr(allocator, kind).items()
        }

    def load_state(self, model: PeftModel, tensors: dict[str, torch.Tensor]) -> None:
        own, allocator = dict(model.named_parameters()), model.base_model.rankallocator
        for kind in self.importance:
            for name, tensor in of_kind(tensors, kind).items():
                device = own[f"base_model.model.{name}"].device
                getattr(allocator, kind)[name] = tensor.to(device)


class AdaLora(Pruned):
    """PEFT's AdaLoRA, whose config has the schedule and, once it prunes, the ranks that are kept.

    It is saved with the pruned triplets, which are zero. Otherwise PEFT would leave out triplets that became nonzero after
    the last pruning, and a sum over fewer terms differs in its last bits.
    """

    importance = ("ipt", "exp_avg_ipt", "exp_avg_unc")

    @classmethod
    def serves(cls, cfg: DictConfig, config: PeftConfig) -> bool:
        return isinstance(config, AdaLoraConfig)

    def schedule(self) -> dict[str, Any]:
        return vars(self.config)

    def state(self, model: PeftModel) -> dict[str, torch.Tensor]:
        kept = (self.config.rank_pattern or {}).items()
        return super().state(model) | {f"kept.{name}": torch.tensor(which) for name, which in kept}

    def load_state(self, model: PeftModel, tensors: dict[str, torch.Tensor]) -> None:
        super().load_state(model, tensors)
        kept = of_kind(tensors, "kept")
        if kept:
            self.config.rank_pattern = {name: which.tolist() for name, which in kept.items()}

    @contextmanager
    def as_saved(self, model: PeftModel) -> Iterator[None]:
        ranks, self.config.rank_pattern = self.config.rank_pattern, None
        try:
            yield
        finally:
            self.config.rank_pattern = ranks


class CondAdaLora(Pruned):
    """Conditional AdaLoRA, the tuner's method of the same interface; the schedule is among its options."""

    importance = ("exp_avg_ipt", "exp_avg_unc")

    @classmethod
    def serves(cls, cfg: DictConfig, config: PeftConfig) -> bool:
        method = METHODS.get(getattr(config, "method", None))
        return config.peft_type == "CONDLORA" and method is not None and method.is_pruned

    def schedule(self) -> dict[str, Any]:
        return self.config.options
