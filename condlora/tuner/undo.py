"""Restoring a model and a config when attaching an adapter fails."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig
from torch import nn


@contextmanager
def undone_on_error(model: nn.Module, config: PeftConfig) -> Iterator[None]:
    """If the block raises, restore modules, parameters and their `requires_grad`, hooks and the config.

    It restores the attributes of modules, not the values of tensors: the block must not write to a tensor in place.
    """
    states = [(module, _copied(vars(module))) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    settings = _copied(vars(config))
    try:
        yield
    except BaseException:
        for module, state in states:
            _restore(vars(module), state)
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
        _restore(vars(config), settings)
        raise


State = dict[
    str, tuple[Any, Any]
]  # by attribute: the value, and a copy of its contents if it is a collection


def _copied(attributes: dict[str, Any]) -> State:
    return {
        name: (value, copy.copy(value) if isinstance(value, dict | list | set) else None)
        for name, value in attributes.items()
    }


def _restore(attributes: dict[str, Any], state: State) -> None:
    attributes.clear()
    for name, (value, contents) in state.items():
        # In place, as the collection may be referred to elsewhere, for example by the handle of a hook.
        if isinstance(value, dict | set):
            value.clear()
            value.update(contents)
        elif isinstance(value, list):
            value[:] = contents
        attributes[name] = value
