"""Keeping shared tensors when the layer that holds them is removed from the model."""

from __future__ import annotations

import warnings

from torch import nn

from condlora.tuner.layer import CondLoraLayer
from condlora.tuner.tensors import Held, held


def adopt_orphans(model: nn.Module) -> None:
    """Move shared tensors whose layer is no longer in the model to the first remaining layer that uses them; warns.

    Layers are removed to shorten a model, for example. The tensors stay the same parameters.
    """
    present = {id(module) for module in model.modules()}
    layers = {path: m for path, m in model.named_modules() if isinstance(m, CondLoraLayer)}
    for path, layer in layers.items():
        for adapter_name, tensors in layer.tensors.items():
            orphans = {name: lost for name, lost in tensors.items() if id(lost) not in present}
            for name, lost in orphans.items():
                home = _adopt(layer, name, lost, list(layers.values()))
                present.add(id(home))
            if orphans:
                warnings.warn(
                    f"The layer that held the maps of {layer.group[adapter_name]} is no longer in the model: {path} "
                    "holds them from now on. An optimizer that was made in between lacks them: make a new one.",
                    stacklevel=3,
                )


def _adopt(layer: CondLoraLayer, name: str, lost: Held, layers: list[CondLoraLayer]) -> Held:
    home = held(layer, name, type(lost))
    for adapter_name in list(lost):
        home[adapter_name] = lost[adapter_name]
        for other in layers:
            if other.tensors.get(adapter_name, {}).get(name) is lost:
                other.tensors[adapter_name][name] = home
    return home
