"""Ranks that grow linearly from the first to the last layer, as in PRILoRA (Benedek and Wolf 2024, arXiv 2401.11316).

PRILoRA's second part, which prunes A during training, is not implemented.
"""

from __future__ import annotations

import re

from omegaconf import DictConfig
from peft import PeftConfig
from transformers import PreTrainedModel

from condlora.errors import ConfigError
from condlora.models.baselines.mechanism import Batches, Mechanism
from condlora.tuner.sharing import layer_index


class RankByDepth(Mechanism):
    """`rank_by_depth` of the adapter's file: the ranks of the `first` and the `last` layer.

    alpha grows with the rank, so that all layers have the scaling alpha / r of the adapter's config.
    """

    is_one_product = False

    @classmethod
    def serves(cls, cfg: DictConfig, config: PeftConfig) -> bool:
        return bool(cfg.get("rank_by_depth"))

    def before_attach(self, base: PreTrainedModel, batches: Batches | None) -> None:
        names = self.config.target_modules
        layers = {
            path: layer_index(path)
            for path, _ in base.named_modules()
            if path.rpartition(".")[2] in names
        }
        depth = max((index for index in layers.values() if index is not None), default=0)
        if depth == 0:
            raise ConfigError(
                f"adapter={self.cfg.name} gives each layer a rank of its own, and the target modules are in one layer or "
                "none: choose adapter=lora."
            )
        first, last = self.cfg.rank_by_depth.first, self.cfg.rank_by_depth.last
        ranks = {
            re.escape(path): round(first + (last - first) * index / depth)
            for path, index in layers.items()
            if index is not None
        }
        self.config.rank_pattern = ranks
        scaling = self.config.lora_alpha / self.config.r
        self.config.alpha_pattern = {path: scaling * r for path, r in ranks.items()}
