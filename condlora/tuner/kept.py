"""A and B that a layer keeps between calls: in evaluation they are made once.

They are kept as long as neither the maps nor W are written to or replaced. torch counts writes to a tensor in its version
counter. `train()` and `eval()` of a layer forget what is kept, since a write through `.data` is not counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from condlora.tuner.methods.base import Pair

if TYPE_CHECKING:
    from condlora.tuner.layer import CondLoraLayer


class Kept(NamedTuple):
    """A and B, and the state of the tensors that they were made from.

    The sources are kept too: if their storage were freed, another tensor could get its address and pass for them.
    """

    state: list[Any]
    factors: Pair
    sources: list[torch.Tensor]


def serve_more_calls(layer: CondLoraLayer, adapter_name: str) -> bool:
    """Whether A and B can be kept: in evaluation, where no gradient passes through them."""
    has_gradient = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in _sources(layer, adapter_name)
    )
    return not layer.training and not has_gradient


def kept_factors(layer: CondLoraLayer, adapter_name: str) -> Pair:
    """A and B for a forward pass: made in every call in training, and once in evaluation."""
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]  # untyped in torch
    if is_traced or not serve_more_calls(layer, adapter_name):
        return layer.materialise(adapter_name)
    sources = _sources(layer, adapter_name)
    device = sources[0].device.type  # autocast decides the dtype of A and B
    state: list[Any] = [torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)]
    try:
        state += [(tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in sources]
    except (
        RuntimeError
    ):  # tensors made in inference mode, or seen through torch.func, have no counter
        return layer.materialise(adapter_name)
    kept = layer.made.get(adapter_name)
    if kept is None or kept.state != state:
        factors = layer.materialise(adapter_name)
        kept = Kept(state, factors, [tensor.detach() for tensor in sources])
        layer.made[adapter_name] = kept
    return kept.factors


def _sources(layer: CondLoraLayer, adapter_name: str) -> tuple[torch.Tensor, ...]:
    """The tensors that A and B change with."""
    return (*layer.theta(adapter_name), layer.read_weight(adapter_name))
