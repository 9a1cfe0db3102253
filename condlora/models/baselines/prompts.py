"""Methods that add tokens: prompt tuning, prefix tuning and P-tuning."""

from __future__ import annotations

import inspect

from omegaconf import DictConfig
from peft import PeftConfig, PeftType
from transformers import PreTrainedModel

from condlora.errors import ConfigError
from condlora.models.baselines.mechanism import Mechanism


class PromptLearning(Mechanism):
    """Added tokens, which no weight of the backbone can hold. They take positions of the backbone's."""

    can_be_merged = False
    is_one_product = False

    @classmethod
    def serves(cls, cfg: DictConfig, config: PeftConfig) -> bool:
        return config.is_prompt_learning

    def check(self, base: PreTrainedModel) -> None:
        is_prefix = self.config.peft_type == PeftType.PREFIX_TUNING
        reads_last_token = hasattr(base, "score")  # transformers' name for such a head
        if not is_prefix and reads_last_token:
            raise ConfigError(
                f"adapter={self.cfg.name} gives the model embeddings in place of tokens, and this decoder's head then "
                "reads the padding: choose prefix_tuning or another method."
            )
        reads_past = "past_key_values" in inspect.signature(base.base_model.forward).parameters
        if is_prefix and not reads_past:
            raise ConfigError(
                f"adapter={self.cfg.name} gives each layer keys and values, which this backbone does not take: choose "
                "another."
            )
