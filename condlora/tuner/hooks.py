"""Hooks around the forward pass of the whole model: drawn ranks, a penalty, and an adapter for each row of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from condlora.errors import AdapterError
from condlora.tuner.layer import CondLoraLayer


@contextmanager
def adapters_by_row(
    model: nn.Module, adapter_names: list[str], known: list[str], num_beams: int
) -> Iterator[None]:
    """In this context each row of a batch gets the adapter named for it; "__base__" stands for no adapter.

    `known` are the adapters of the model. With beam search a decoder gets each row `num_beams` times.

    Raises:
        AdapterError: the model is in training, or a name is unknown.
    """
    if model.training:
        raise AdapterError(
            "Cannot pass `adapter_names` when the model is in training mode: call model.eval() first."
        )
    unknown = sorted(set(adapter_names) - set(known) - {"__base__"})
    if unknown:
        raise AdapterError(
            f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}. The model has {', '.join(known)}, "
            'and "__base__" stands for no adapter.'
        )
    by_beam = [name for name in adapter_names for _ in range(num_beams)]
    encoder: nn.Module | None = getattr(model, "get_encoder", lambda: None)()
    # An encoder gets each row once, a decoder once for each beam.
    once = set() if encoder in (None, model) else set(encoder.modules())
    hooks = [
        module.register_forward_pre_hook(
            partial(_pass_names, names=adapter_names if module in once else by_beam),
            with_kwargs=True,
        )
        for module in model.modules()
        if isinstance(module, CondLoraLayer | AuxiliaryTrainingWrapper)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _pass_names(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs | {"adapter_names": names}


def draw_ranks(model: nn.Module, _: Any) -> None:
    """For nested methods, before each forward pass in training: one rank for all layers of an adapter."""
    nested: dict[str, list[CondLoraLayer]] = {}
    for module in model.modules():
        if not isinstance(module, CondLoraLayer):
            continue
        for name, method in module.method.items():
            if module.training and method.is_nested:
                nested.setdefault(name, []).append(module)
    for name, layers in sorted(nested.items()):
        highest = max(layer.r[name] for layer in layers)
        rank = int(torch.randint(1, highest + 1, (), device="cpu"))
        for layer in layers:
            layer.drawn_rank[name] = min(rank, layer.r[name])


def add_penalty(model: nn.Module, _: Any, outputs: Any) -> None:
    """For pruned methods, after each forward pass in training: their penalty is added to the model's loss.

    A hook of the model itself, since PEFT calls the model directly, without the tuner, if the config has no task type.
    """
    if not model.training or getattr(outputs, "loss", None) is None:
        return
    penalties = [
        layer.penalty(name)
        for layer in model.modules()
        if isinstance(layer, CondLoraLayer) and not layer.disable_adapters
        for name in layer.active_adapters
        if name in layer.method and layer.method[name].is_pruned
    ]
    if penalties:
        outputs.loss = outputs.loss + torch.stack(penalties).mean()
