"""Merging adapters into the frozen weight of one layer, and restoring that weight bit for bit.

The pretrained weight is kept while adapters are merged. B A is made from W, so subtracting an update that is recomputed
from the merged weight would not restore it.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, cast

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn

from condlora.errors import AdapterError

if TYPE_CHECKING:
    from condlora.tuner.layer import CondLoraLayer


def delta_weight(layer: CondLoraLayer, adapter_name: str) -> torch.Tensor:
    """What merging adds to the base layer's weight, in the layout of that weight: s B A, or with DoRA its whole effect."""
    A, B = layer.materialise(adapter_name)
    delta = layer.scaling[adapter_name] * (B @ A)
    if layer.use_dora[adapter_name]:
        W = layer.frozen_weight().to(delta.dtype)
        delta = layer.gain(adapter_name, delta)[:, None] * (W + delta) - W
    return delta.T if layer.is_conv1d else delta


def merge(
    layer: CondLoraLayer, safe_merge: bool = False, adapter_names: list[str] | None = None
) -> None:
    """Add s B A of the named (default: the active) adapters to the base weight.

    The base layer gets a new weight, and the pretrained one is kept until `unmerge` puts it back. A weight that is tied
    to this one (an embedding, for example) stays as it is. A quantised weight is quantised again, which rounds.

    Raises:
        AdapterError: `safe_merge` is set and the merged weight is not finite.
    """
    base = layer.get_base_layer()
    for name in check_adapters_to_merge(layer, adapter_names) or []:
        if name not in layer.group:
            continue
        merged = _merged_weight(layer, [*layer.merged_adapters, name])
        if safe_merge and not torch.isfinite(merged).all():
            raise AdapterError(
                f"NaNs detected in the merged weights. The adapter {name} seems to be broken: train it again."
            )
        if layer.pretrained is None:
            # bitsandbytes moves parts of an 8-bit weight into the layer's state.
            state = dict(vars(base.state)) if hasattr(base, "state") else None
            layer.pretrained = (cast("nn.Parameter", base.weight), state)
        if layer.quantization_backend is None:
            base.weight = nn.Parameter(merged, requires_grad=False)
        else:
            layer.quantization_backend.set_base_weight(layer, merged)
        layer.merged_adapters.append(name)


def _merged_weight(layer: CondLoraLayer, adapter_names: list[str]) -> torch.Tensor:
    weight = layer.frozen_weight().detach()
    weight = weight.T if layer.is_conv1d else weight
    for name in adapter_names:
        weight = weight + delta_weight(layer, name).detach().to(weight.dtype)
    return weight


def unmerge(layer: CondLoraLayer) -> None:
    """Put the pretrained weight back: the same parameter, bit for bit."""
    if layer.pretrained is None:
        warnings.warn("Already unmerged. Nothing to do.", stacklevel=3)
        return
    base = layer.get_base_layer()
    base.weight, state = layer.pretrained
    if state is not None:
        vars(base.state).clear()
        vars(base.state).update(state)
    layer.pretrained = None
    layer.merged_adapters.clear()
