"""LoRA that starts from a part of W and subtracts this part from W: PiSSA, OLoRA, MiLoRA, CorDA and LoftQ.

The changed W is saved with the adapter, so that it loads to the same bits. PEFT alone recomputes the start from W, which may
differ in the last bits, and for CorDA needs the data. Such a file is as large as the adapted weights: 54 MiB on RoBERTa-base
(query and value), where LoRA has 1.1 MiB.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from omegaconf import DictConfig
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.corda import preprocess_corda
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from condlora.errors import ConfigError
from condlora.models.baselines.mechanism import Batches, Mechanism, of_kind


class ChangedWeights(Mechanism):
    """W minus the adapter's start. `init`: the first letters of PEFT's `init_lora_weights` for this start."""

    is_one_product = False
    init: str

    @classmethod
    def serves(cls, cfg: DictConfig, config: PeftConfig) -> bool:
        return str(getattr(config, "init_lora_weights", None)).startswith(cls.init)

    def check(self, base: PreTrainedModel) -> None:
        if any(isinstance(m, Conv1D) for m in base.modules()):
            raise ConfigError(
                f"adapter={self.cfg.name} starts from W of linear layers, and this model's are GPT-2's Conv1D: choose "
                "another."
            )

    def after_attach(self, model: PeftModel, batches: Batches | None) -> None:
        """Change the config to that of a plain LoRA: when the file is loaded, W must not be changed a second time."""
        config = self.config
        config.init_lora_weights, config.corda_config, config.loftq_config = True, None, {}
        changed = {id(layer.get_base_layer().weight) for layer in lora_layers(model)}
        model.base_weights += [n for n, p in model.named_parameters() if id(p) in changed]

    def state(self, model: PeftModel) -> dict[str, torch.Tensor]:
        own = dict(model.named_parameters())
        frozen = [name for name in model.base_weights if not own[name].requires_grad]
        return {f"weight.{name}": own[name].detach() for name in frozen}

    @torch.no_grad()
    def load_state(self, model: PeftModel, tensors: dict[str, torch.Tensor]) -> None:
        own = dict(model.named_parameters())
        for name, tensor in of_kind(tensors, "weight").items():
            own[name].copy_(tensor)


def lora_layers(model: nn.Module) -> Iterator[LoraLayer]:
    """The adapted layers of a LoRA."""
    return (module for module in model.modules() if isinstance(module, LoraLayer))


class Pissa(ChangedWeights):
    """PiSSA (Meng et al. 2024, arXiv 2404.02948), started by PEFT."""

    init = "pissa"

    def check(self, base: PreTrainedModel) -> None:
        if (
            self.config.init_lora_weights != "pissa"
        ):  # pissa_niter_16 and such, a fast approximation
            super().check(base)


class Olora(ChangedWeights):
    """OLoRA (Büyükakyüz 2024, arXiv 2406.01775), started by PEFT."""

    init = "olora"


class Milora(ChangedWeights):
    """MiLoRA (Wang et al. 2024, arXiv 2406.09044), which PEFT does not have."""

    @classmethod
    def serves(cls, cfg: DictConfig, config: PeftConfig) -> bool:
        start = cfg.get("start")
        if start not in (None, "milora"):
            raise ConfigError(f"Invalid value adapter.start={start}: expected milora or null.")
        return start == "milora"

    def after_attach(self, model: PeftModel, batches: Batches | None) -> None:
        for layer in lora_layers(model):
            start_with_minor_components(layer)
        super().after_attach(model, batches)


@torch.no_grad()
def start_with_minor_components(layer: LoraLayer, adapter: str = "default") -> None:
    """MiLoRA's equations 3 to 5: s B A is W's r smallest singular triplets, and W loses them."""
    weight, r, s = layer.get_base_layer().weight, layer.r[adapter], layer.scaling[adapter]
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    root = (S[-r:] / s).sqrt()
    layer.lora_A[adapter].weight.copy_(root[:, None] * Vh[-r:])
    layer.lora_B[adapter].weight.copy_(U[:, -r:] * root)
    weight -= s * layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight


class Corda(ChangedWeights):
    """CorDA (Yang et al. 2024, arXiv 2406.05223), from the covariance of each target's inputs on training examples."""

    init = "corda"

    def before_attach(self, base: PreTrainedModel, batches: Batches | None) -> None:
        def run() -> None:  # PEFT wants one example at a time
            for _, batch in zip(range(self.cfg.examples), batches(1), strict=False):
                base(**{k: v.to(base.device) for k, v in batch.items() if k != "labels"})

        preprocess_corda(base, self.config, run_model=run)


class LoftQ(ChangedWeights):
    """LoftQ (Li et al. 2023, arXiv 2310.08659), started by PEFT on a CUDA device."""

    init = "loftq"

    def check(self, base: PreTrainedModel) -> None:
        if not torch.cuda.is_available():
            raise ConfigError(
                f"adapter={self.cfg.name} is started by PEFT on a CUDA GPU, and there is none: choose another, such as "
                "qlora."
            )
        super().check(base)
