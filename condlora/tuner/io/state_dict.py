"""Loading a saved adapter into a model that has it: every tensor is checked, where PEFT would only warn."""

from __future__ import annotations

import torch
from torch import nn

from condlora.errors import AdapterError
from condlora.tuner.sharing import sizes

Tensors = dict[str, torch.Tensor]


def plain_bias_keys(state_dict: Tensors, own: Tensors) -> Tensors:
    """The state dict with trained biases under the names that they have in this model.

    Another set of adapters may wrap a bias's layer there and not here, or the other way round.
    """
    return {_bias_key(key, own): tensor for key, tensor in state_dict.items()}


def check_complete(model: nn.Module, found: Tensors, adapter_name: str, prefix: str) -> None:
    """Refuse a state dict, under the model's own names, that does not fit the adapter exactly.

    `prefix` is that of the tuner's tensors, "condlora_".

    Raises:
        AdapterError: a map is missing or of another shape, or a tensor belongs to nothing in the model.
    """
    own = model.state_dict()
    wrapper = "" if any(key.startswith("base_model.model.") for key in own) else "base_model.model."
    found_names = {key.removeprefix(wrapper) for key in found}
    maps = {
        key: own[key].shape
        for key in own
        if f".{prefix}" in f".{key}" and key.endswith(f".{adapter_name}")
    }
    for key in sorted(set(maps) - found_names):
        raise AdapterError(
            f"The adapter's file lacks {key}: it was saved for other target modules; check its adapter_config.json."
        )
    for key in sorted(found_names - set(own)):
        raise AdapterError(
            f"The adapter's file holds {key}, which fits nothing in this model: is it another base model's?"
        )
    for key, shape in maps.items():
        saved = found[key if key in found else wrapper + key].shape
        if saved != shape:
            raise AdapterError(
                f"{key} is {sizes(saved)} in the adapter's file and {sizes(shape)} here: the rank, form or "
                "base model differs from the one it was saved with."
            )


def _bias_key(key: str, own: Tensors) -> str:
    """The name of a trained bias here, where another set of adapters may or may not wrap its layer."""
    if key in own or not key.endswith(".bias"):
        return key
    plain = key.replace(".base_layer.bias", ".bias")
    wrapped = plain.removesuffix("bias") + "base_layer.bias"
    return next((name for name in (plain, wrapped) if name in own), key)
