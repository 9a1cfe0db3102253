"""The tensors of one adapter in one layer: new ones, or those of the layer that holds them for its sharing group.

The first layer of a group holds a shared tensor as a parameter (or buffer) of its own; the others refer to the dictionary
that it is in. So a state dict has each tensor once, and a parameter that is loaded or replaced is seen by every layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import nn

from condlora.tuner.methods.base import Derived, Trained, kaiming

if TYPE_CHECKING:
    from condlora.tuner.config import CondLoraConfig
    from condlora.tuner.layer import CondLoraLayer

Held = nn.ParameterDict | BufferDict  # one tensor by adapter name, trained or derived
Common = dict[
    tuple[str, tuple[int, int]], Held
]  # by name and shape: what all layers of an adapter share


def add_tensors(
    layer: CondLoraLayer,
    adapter_name: str,
    config: CondLoraConfig,
    *,
    group: str,
    path: str,
    holder: CondLoraLayer | None,
    common: Common,
) -> None:
    """Give a layer the tensors of an adapter, whose method and rank it has already.

    `holder` is the first layer of its sharing group, None if this is the first; `path` its place in the model. `common`
    holds what the adapter's layers so far have in common, and gets what this one adds.
    """
    own: dict[str, Held] = {}
    layer.tensors[adapter_name] = own
    wanted = layer.method[adapter_name].tensors(layer.frozen_weight(), layer.r[adapter_name])
    for name, tensor in wanted.items():
        if tensor.is_shared and holder is not None:
            own[name] = holder.tensors[adapter_name][name]
        elif isinstance(tensor, Trained):
            key = (name, tensor.shape)
            if tensor.is_common and key in common:
                own[name] = common[key]
                continue
            start = tensor.start if config.init_weights else kaiming
            own[name] = _add_trained(layer, adapter_name, name, tensor.shape, start)
            if tensor.is_common:
                common[key] = own[name]
        else:
            place = group if tensor.is_shared else path
            own[name] = _add_derived(layer, adapter_name, name, tensor, place)
    if config.use_dora:
        magnitude = torch.linalg.norm(layer.frozen_weight().detach(), dim=1)
        held(layer, "magnitude", nn.ParameterDict)[adapter_name] = nn.Parameter(magnitude)


def held(layer: CondLoraLayer, name: str, kind: type[Held]) -> Held:
    """The dictionary of a layer for its tensors of this name, made where the layer does not have it yet."""
    attribute = f"condlora_{name}" if kind is nn.ParameterDict else f"condlora_derived_{name}"
    if not hasattr(layer, attribute):
        setattr(layer, attribute, kind())
    found = getattr(layer, attribute)
    assert isinstance(found, nn.ParameterDict | BufferDict)
    return found


def _add_trained(
    layer: CondLoraLayer,
    adapter_name: str,
    name: str,
    shape: tuple[int, int],
    start: Callable[[torch.Tensor], torch.Tensor],
) -> Held:
    W = layer.frozen_weight()
    values = torch.empty(shape, dtype=W.dtype, device=W.device)
    home = held(layer, name, nn.ParameterDict)
    home[adapter_name] = nn.Parameter(start(values))
    return home


@torch.no_grad()  # PEFT freezes the base model only later
def _add_derived(
    layer: CondLoraLayer, adapter_name: str, name: str, tensor: Derived, place: str
) -> Held:
    W = layer.frozen_weight()
    home = held(layer, name, BufferDict)
    if not W.is_meta:
        generator = layer.method[adapter_name].generator(f"{place}/{name}")
        with torch.device("cpu"):  # the generator's device, whatever the default device is
            values = tensor.make(generator)
        home[adapter_name] = values.to(W.device, torch.promote_types(W.dtype, torch.float32))
    return home
