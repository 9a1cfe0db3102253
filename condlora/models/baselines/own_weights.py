"""Which weights are trained: some of the backbone's own (full fine-tuning, BitFit), not all of the adapter's (LoRA-FA)."""

from __future__ import annotations

import re

from omegaconf import DictConfig
from peft import PeftConfig, PeftModel
from torch import nn

from condlora.models.baselines.mechanism import Batches, Mechanism
from condlora.tuner.sharing import layer_index

# The head's trained copy and the original that it replaces, which PEFT manages.
HEAD = (".modules_to_save.", ".original_module.")


def outside_head(model: PeftModel, pattern: str) -> dict[str, nn.Parameter]:
    """The parameters outside the head whose names contain the regular expression."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if re.search(pattern, name) and not any(part in name for part in HEAD)
    }


class TrainedWeights(Mechanism):
    """Weights of the backbone that are trained, and saved under their own names in the adapter's file.

    `last_layers` restricts them to this number of last layers (FTTop2: Li and Liang 2021, arXiv 2101.00190).
    """

    @classmethod
    def serves(cls, cfg: DictConfig, config: PeftConfig) -> bool:
        return bool(cfg.get("trained"))

    def after_attach(self, model: PeftModel, batches: Batches | None) -> None:
        chosen = outside_head(model, self.cfg.trained)
        last = self.cfg.get("last_layers")
        if last:
            layers = {name: layer_index(name) for name in chosen}
            first = max(index for index in layers.values() if index is not None) - last + 1
            chosen = {name: p for name, p in chosen.items() if (layers[name] or -1) >= first}
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        model.base_weights += chosen


class FrozenWeights(Mechanism):
    """Weights of the adapter that stay as drawn (LoRA-FA: Zhang et al. 2023, arXiv 2308.03303)."""

    @classmethod
    def serves(cls, cfg: DictConfig, config: PeftConfig) -> bool:
        return bool(cfg.get("frozen"))

    def after_attach(self, model: PeftModel, batches: Batches | None) -> None:
        for parameter in outside_head(model, self.cfg.frozen).values():
            parameter.requires_grad_(False)
