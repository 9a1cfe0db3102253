"""A router that mixes the parts of an adapter by what it reads: Lily (arXiv 2407.09946)."""

from __future__ import annotations

from omegaconf import DictConfig
from peft import PeftConfig, PeftType

from condlora.models.baselines.mechanism import Mechanism


class Routed(Mechanism):
    """An update that depends on the input, which no weight of the backbone can hold."""

    can_be_merged = False
    is_one_product = False

    @classmethod
    def serves(cls, cfg: DictConfig, config: PeftConfig) -> bool:
        return config.peft_type == PeftType.LILY
