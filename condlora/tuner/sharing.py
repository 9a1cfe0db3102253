"""Which target modules share one pair of maps, and the checks that a target and its group must pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from condlora.errors import AdapterError
from condlora.tuner.config import CondLoraConfig
from condlora.tuner.methods.base import Method

if TYPE_CHECKING:
    from condlora.tuner.layer import CondLoraLayer


def layer_index(path: str) -> int | None:
    """The layer index in a module path: its first numeric component, or None where there is none."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def sharing_group(path: str) -> str:
    """The module path without its layer index."""
    parts = path.split(".")
    index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(part for i, part in enumerate(parts) if i != index)


def block_of(group: str, path: str, layers_per_map: int | None) -> str:
    """The part of a sharing group that shares one set of tensors: all of it, or a block of neighbouring layers."""
    index = layer_index(path)
    if layers_per_map is None or index is None:
        return group
    return f"{group}.block-{index // layers_per_map}"


def check_target(base: nn.Module, path: str, config: CondLoraConfig) -> None:
    """Refuse what is no linear layer; let `fan_in_fan_out` say what the layer is.

    Raises:
        AdapterError: with what is supported.
    """
    # The attention reads this layer's weight and never calls it: an adapter on it would do nothing.
    is_read_only = isinstance(base, NonDynamicallyQuantizableLinear)
    if is_read_only or not isinstance(base, nn.Linear | Conv1D):
        kind = "nn.MultiheadAttention's output" if is_read_only else f"a {type(base).__name__}"
        raise AdapterError(
            f"{path} is {kind}, and CondLoRA adapts nn.Linear, transformers' Conv1D and bitsandbytes' linear "
            "layers: choose other target_modules."
        )
    config.fan_in_fan_out = isinstance(base, Conv1D)


def check_fit(config: CondLoraConfig, method: Method, r: int, shape: torch.Size, path: str) -> None:
    """Refuse a rank or a form that a weight of this shape (out, in) cannot have, with an AdapterError."""
    if r > min(shape):
        raise AdapterError(
            f"Rank {r} is above the smaller side of {path}, which is {sizes(shape)}: "
            f"choose r of at most {min(shape)}."
        )
    if method.needs_square and shape[0] != shape[1]:
        raise AdapterError(
            f"{path} is {sizes(shape)}, and the form {config.form!r} is defined for square "
            'weights only: set form="consistent" or choose other target_modules.'
        )


def check_shared(holder: CondLoraLayer, adapter_name, r, alpha, shape, path: str) -> None:
    if (holder.r[adapter_name], holder.lora_alpha[adapter_name]) != (r, alpha):
        raise AdapterError(
            f"{path} shares its maps with modules of another rank or alpha: write rank_pattern and alpha_pattern "
            "for whole sharing groups, such as {'query': 4}, not for single layers."
        )
    if holder.frozen_weight().shape != shape:
        raise AdapterError(
            f"{path} is {sizes(shape)}, another shape than the modules it shares its maps with: "
            'set sharing="shape", or adapt them with separate adapters.'
        )


def check_shapes_named(config: CondLoraConfig, shapes: set[str]) -> None:
    unknown = sorted({*config.rank_pattern, *config.alpha_pattern} - set(shapes))
    if unknown:
        raise AdapterError(
            f'With sharing="shape", rank_pattern and alpha_pattern name shapes, here {", ".join(sorted(shapes))}: '
            f"{', '.join(unknown)} is none of them."
        )


def sizes(shape) -> str:
    return " x ".join(map(str, shape))
