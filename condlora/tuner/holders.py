"""Which layer holds a tensor that several share, where the layer that held it has left the model."""

from __future__ import annotations

import warnings

from torch import nn

from condlora.tuner.layer import CondLoraLayer, Held


def adopt_orphans(model: nn.Module) -> None:
    """Move shared tensors whose layer is no longer in the model to the first layer left that uses them, with a warning.

    Layers are dropped to shorten a model, for example. The tensors stay the same parameters.
    """
    present = {id(module) for module in model.modules()}
    layers = {path: m for path, m in model.named_modules() if isinstance(m, CondLoraLayer)}
    for path, layer in layers.items():
        for adapter_name, tensors in layer.tensors.items():
            orphans = {name: held for name, held in tensors.items() if id(held) not in present}
            for name, held in orphans.items():
                home = _adopt(layer, name, held, list(layers.values()))
                present.add(id(home))
            if orphans:
                warnings.warn(
                    f"The layer that held the maps of {layer.group[adapter_name]} is no longer in the model: {path} "
                    "holds them from now on. An optimizer that was made in between lacks them: make a new one.",
                    stacklevel=3,
                )


def _adopt(layer: CondLoraLayer, name: str, held: Held, layers: list[CondLoraLayer]) -> Held:
    trained = isinstance(held, nn.ParameterDict)
    home = layer._held(f"condlora_{name}" if trained else f"condlora_derived_{name}", type(held))
    for adapter_name in list(held):
        home[adapter_name] = held[adapter_name]
        for other in layers:
            if other.tensors.get(adapter_name, {}).get(name) is held:
                other.tensors[adapter_name][name] = home
    return home
