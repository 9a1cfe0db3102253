"""What a layer refuses, or warns of, when it is called: places where W or the maps are not whole, and a wrong gradient."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from condlora.errors import AdapterError

if TYPE_CHECKING:
    from condlora.tuner.layer import CondLoraLayer


def check_call(layer: CondLoraLayer, x: torch.Tensor, adapter_name: str) -> None:
    """Check that W and the trained tensors are there to compute with.

    Raises:
        AdapterError: W is offloaded by accelerate, or the maps are sharded by FSDP or DeepSpeed.
    """
    if layer.frozen_weight().is_meta and not x.is_meta:
        raise AdapterError(
            "CondLoRA needs the base model's weights where it runs, and accelerate has offloaded them: load the "
            "model whole, in half precision or quantised, or export the adapter to LoRA."
        )
    if any(map(_is_sharded, layer.theta(adapter_name))):
        raise AdapterError(
            f"The maps of {layer.group[adapter_name]} are sharded by FSDP or DeepSpeed ZeRO-3, and layers outside the wrapped "
            "block that holds them cannot read them: use DDP, or one FSDP unit for the whole model."
        )
    if layer.training and not torch.is_grad_enabled() and _processes() > 1:
        warnings.warn(
            "A forward pass in training without gradients: if this is gradient checkpointing under DDP, set "
            '{"use_reentrant": False}, or DDP averages the gradient of a shared map before every layer has '
            "added to it.",
            stacklevel=3,
        )


def _is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a trained matrix is a part of itself here: flattened by FSDP1 and ZeRO-3, a DTensor of FSDP2."""
    return tensor.ndim != 2 or hasattr(tensor, "placements")


def _processes() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1
