"""BOFT (Liu et al. 2023, arXiv 2311.06243): the number of butterfly factors that PEFT really uses."""

from __future__ import annotations

from omegaconf import DictConfig
from peft import PeftConfig, PeftModel

from condlora.errors import ConfigError
from condlora.models.baselines.mechanism import Batches, Mechanism


class Butterfly(Mechanism):
    """An error where PEFT only warns: without its CUDA extension it uses one factor in place of several."""

    @classmethod
    def serves(cls, cfg: DictConfig, config: PeftConfig) -> bool:
        return hasattr(config, "boft_n_butterfly_factor")

    def after_attach(self, model: PeftModel, batches: Batches | None) -> None:
        asked = self.config.boft_n_butterfly_factor
        made = {len(p) for name, p in model.named_parameters() if ".boft_R." in name}
        if asked and made != {asked}:
            raise ConfigError(
                f"adapter.config.boft_n_butterfly_factor={asked} needs PEFT's CUDA extension, which cannot be compiled "
                "here (nvcc and ninja): set it to 1."
            )
