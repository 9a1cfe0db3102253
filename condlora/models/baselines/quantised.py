"""A backbone whose linear layers are in 4 bits: QLoRA (Dettmers et al. 2023, arXiv 2305.14314)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

import torch
from omegaconf import DictConfig
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel

from condlora.errors import ConfigError
from condlora.models.baselines.mechanism import Batches, Mechanism


def check_requirements(cfg: DictConfig) -> None:
    """Raise a ConfigError if the adapter's method needs a package that is not installed."""
    package = cfg.get("requires")
    if package and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"adapter={cfg.name} needs {package}, which is not installed: pip install '.[quantised]'."
        )


class Quantised(Mechanism):
    """The frozen linear layers outside the head in the 4-bit format that `quantise` of the adapter's file names."""

    is_one_product = False  # its W is not the one that other methods start from

    @classmethod
    def serves(cls, cfg: DictConfig, config: PeftConfig) -> bool:
        return bool(cfg.get("quantise"))

    def before_attach(self, base: PreTrainedModel, batches: Batches | None) -> None:
        self.apply(base, self.cfg, self.config.modules_to_save)

    @staticmethod
    def apply(base: PreTrainedModel, cfg: DictConfig, head: Iterable[str]) -> None:
        """Quantise a model in place; `head`: paths of modules that stay as they are.

        Double quantisation and products in bfloat16 (QLoRA, section 3). It is done on the CPU, with the same bits for
        every device, and draws no random numbers, so LoRA starts as on the backbone itself, apart from PEFT's rounding
        of it to bfloat16.

        Raises:
            ConfigError: bitsandbytes is not installed, or the model has no linear layer outside the head.
        """
        check_requirements(cfg)
        outside = tuple(f"{part}." for part in head)
        linear = [
            path
            for path, module in base.named_modules()
            if type(module) is nn.Linear and not f"{path}.".startswith(outside)
        ]
        if not linear:
            raise ConfigError(
                f"adapter={cfg.name} quantises nn.Linear layers, and this model has none: choose another."
            )
        for path in linear:
            base.set_submodule(path, in_4_bits(base.get_submodule(path), cfg.quantise))
        base.is_loaded_in_4bit = True  # PEFT reads it


def in_4_bits(exact: nn.Linear, quant_type: str) -> nn.Module:
    """A bitsandbytes layer on the CPU that holds the quantised weight of a linear layer."""
    import bitsandbytes as bnb

    packed = bnb.nn.Linear4bit(
        exact.in_features,
        exact.out_features,
        bias=exact.bias is not None,
        compute_dtype=torch.bfloat16,
        quant_type=quant_type,
        device="meta",
    )
    packed.weight = bnb.nn.Params4bit(exact.weight.data, requires_grad=False, quant_type=quant_type)
    packed.bias = exact.bias
    # Otherwise the first evaluation on a CPU with AVX512-BF16 packs W for inference, which ends gradients there.
    packed.support_avx512bf16_for_cpu = False
    return packed.to("cpu")
