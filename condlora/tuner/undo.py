"""Putting a model and a config back as they were when attaching an adapter fails."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig
from torch import nn


@contextmanager
def undone_on_error(model: nn.Module, config: PeftConfig) -> Iterator[None]:
    """If what runs within it fails, modules, parameters and their `requires_grad`, hooks and the config are put back.

    Restores what modules refer to, not the values of tensors: nothing within it may write to a tensor in place.
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
        # In place, as others may refer to the collection: the handle of a hook does.
        if isinstance(value, dict | set):
            value.clear()
            value.update(contents)
        elif isinstance(value, list):
            value[:] = contents
        attributes[name] = value
