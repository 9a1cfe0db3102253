"""Factors on the learning rate of some parameters: LoRA+ (arXiv 2402.12354), VB-LoRA, FourierFT."""

from __future__ import annotations

import re

from omegaconf import DictConfig
from peft import PeftConfig

from condlora.models.baselines.mechanism import Mechanism


class LearningRates(Mechanism):
    """`learning_rate_factors` of the adapter's file: the first regular expression that is found in a name counts."""

    @classmethod
    def serves(cls, cfg: DictConfig, config: PeftConfig) -> bool:
        return bool(cfg.get("learning_rate_factors"))

    def learning_rate_factor(self, name: str) -> float | None:
        factors = self.cfg.learning_rate_factors.items()
        return next((factor for pattern, factor in factors if re.search(pattern, name)), 1)
