"""EVA (Paischer et al. 2024, arXiv 2410.07170): A starts from the singular vectors of the layer's inputs."""

from __future__ import annotations

from omegaconf import DictConfig
from peft import PeftConfig, PeftModel
from peft.tuners.lora.eva import initialize_lora_eva_weights

from condlora.models.baselines.mechanism import Batches, Mechanism

BATCH_SIZE = 32  # examples; the start does not depend on the run's batch size


class Eva(Mechanism):
    """The inputs are those of training batches. Layers get ranks of their own; the sum of ranks stays."""

    is_one_product = False

    @classmethod
    def serves(cls, cfg: DictConfig, config: PeftConfig) -> bool:
        return getattr(config, "init_lora_weights", None) == "eva"

    def after_attach(self, model: PeftModel, batches: Batches | None) -> None:
        initialize_lora_eva_weights(model, batches(BATCH_SIZE), show_progress_bar=False)
