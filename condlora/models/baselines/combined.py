"""LoRA together with added tokens (Hu et al. 2022, arXiv 2106.09685, the appendix on combining LoRA with prefix tuning).

PEFT's prompt learning is one kind of model and its LoRA another. Here LoRA's layers are put into the backbone first, and the model
with added tokens is built on that. LoRA's weights are trained and saved like weights of the backbone (`own_weights`), so a model
that such an adapter is loaded onto gets the empty layers first.
"""

from __future__ import annotations

from typing import ClassVar

import hydra
from omegaconf import DictConfig
from peft import PeftConfig, inject_adapter_in_model
from transformers import PreTrainedModel

from condlora.models.baselines.mechanism import Batches, Mechanism


class Combined(Mechanism):
    """`inner` of the adapter's file: PEFT's config of the layers in the backbone."""

    can_be_merged: ClassVar[bool] = False
    is_one_product: ClassVar[bool] = False

    @classmethod
    def serves(cls, cfg: DictConfig, config: PeftConfig) -> bool:
        return bool(cfg.get("inner"))

    def before_attach(self, base: PreTrainedModel, batches: Batches | None) -> None:
        self.apply(base, self.cfg)

    @staticmethod
    def apply(base: PreTrainedModel, cfg: DictConfig) -> None:
        """Put the inner adapter's layers into a model, in place."""
        inject_adapter_in_model(hydra.utils.instantiate(cfg.inner, _convert_="all"), base)
