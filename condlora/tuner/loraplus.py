"""LoRA+ (Hayou et al. 2024, arXiv 2402.12354): a higher learning rate for the tensors that B is made from than for those of A.

`peft.optimizers.create_loraplus_optimizer` knows only LoRA's parameter names, and would give all maps one learning rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from condlora.errors import AdapterError
from condlora.tuner.layer import CondLoraLayer


def create_loraplus_optimizer(
    model: nn.Module,
    optimizer_cls: Callable[..., Optimizer],
    *,
    lr: float,
    loraplus_lr_ratio: float,
    loraplus_weight_decay: float = 0.0,
    **kwargs: Any,
) -> Optimizer:
    """An optimizer for all trained parameters of `model`; arguments as of PEFT's function of this name.

    `lr` is for the maps of A and other matrices, `lr * loraplus_lr_ratio` for the maps of B and, as in PEFT, for
    vectors such as biases, which have no weight decay.

    Raises:
        AdapterError: the model has no CondLoRA adapter.
    """
    layers = [module for module in model.modules() if isinstance(module, CondLoraLayer)]
    if not layers:
        raise AdapterError(
            "This model has no CondLoRA adapter: attach one before making the optimizer."
        )
    b_side = {id(parameter) for layer in layers for parameter in layer.b_side()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    vectors = [p for p in trained if p.ndim == 1]
    of_b = [p for p in trained if p.ndim > 1 and id(p) in b_side]
    rest = [p for p in trained if p.ndim > 1 and id(p) not in b_side]
    groups = [
        {"params": rest, "lr": lr, "weight_decay": loraplus_weight_decay},
        {"params": of_b, "lr": lr * loraplus_lr_ratio, "weight_decay": loraplus_weight_decay},
        {"params": vectors, "lr": lr * loraplus_lr_ratio, "weight_decay": 0.0},
    ]
    return optimizer_cls(groups, lr=lr, **kwargs)
