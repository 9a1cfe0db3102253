"""Frozen random parts that PEFT draws from a seed in its config: VeRA, RandLoRA, FourierFT and Uni-LoRA."""

from __future__ import annotations

import torch
from omegaconf import DictConfig
from peft import PeftConfig
from transformers import PreTrainedModel

from condlora.models.baselines.mechanism import Batches, Mechanism

# Of VeRA and RandLoRA, of FourierFT, of Uni-LoRA.
SEEDS = ("projection_prng_key", "random_loc_seed", "proj_seed")


class RandomParts(Mechanism):
    """PEFT's default seed is the same for all runs; here it is drawn from the run's unless the file sets one."""

    @classmethod
    def serves(cls, cfg: DictConfig, config: PeftConfig) -> bool:
        return any(hasattr(config, seed) and seed not in cfg.config for seed in SEEDS)

    def before_attach(self, base: PreTrainedModel, batches: Batches | None) -> None:
        for seed in SEEDS:
            if hasattr(self.config, seed) and seed not in self.cfg.config:
                setattr(self.config, seed, int(torch.randint(2**31, (), device="cpu")))
