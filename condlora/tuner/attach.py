"""Putting the layers of one adapter into a model, and removing those of an adapter that is replaced.

PEFT visits the targets one by one. They are collected first, then all of them are checked, and only then is the first
module replaced.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import cast

from accelerate import init_empty_weights
from peft.tuners.tuners_utils import delete_adapter
from peft.utils import ModulesToSaveWrapper
from torch import nn

from condlora.errors import AdapterError
from condlora.tuner.config import CondLoraConfig, method_of
from condlora.tuner.layer import CondLoraLayer, Linear, weight_shape
from condlora.tuner.placement import check_target, is_read_only, plan, resolve_form
from condlora.tuner.sharing import Target
from condlora.tuner.tensors import Common

PREFIX = "condlora_"  # of every tensor's name, for PEFT


@dataclass
class Collected:
    """The targets of an adapter that is being attached."""

    adapter_name: str
    config: CondLoraConfig
    low_cpu_mem_usage: bool
    is_all_linear: bool
    targets: list[Target] = field(default_factory=list)
    has_replaced: bool = False  # the model's only adapter, of the same name

    def add(self, module: nn.Module, path: str, parent: nn.Module) -> None:
        """Add a target, or leave it out of "all-linear" where it can never be adapted.

        Raises:
            AdapterError: it is no linear layer.
        """
        base = module.get_base_layer() if isinstance(module, CondLoraLayer) else module
        if self.is_all_linear and is_read_only(base):
            cast("set[str]", self.config.target_modules).discard(path)  # listed by PEFT
            return
        check_target(base, path)
        self.targets.append(Target.of(path, weight_shape(base), parent))


def place(model: nn.Module, collected: Collected) -> None:
    """Check every target, then put the adapter on all of them.

    Raises:
        AdapterError: see `condlora.tuner.placement.plan`; then no module has been replaced.
    """
    config, name = collected.config, collected.adapter_name
    resolve_form(config, collected.targets)
    placements = plan(config, collected.targets, caps_rank=collected.is_all_linear)
    if drop_adapter(model, name):
        collected.has_replaced = not adapted_layers(model)
    groups: dict[str, list[Linear]] = {}
    common: Common = {}
    with init_empty_weights() if collected.low_cpu_mem_usage else nullcontext():
        for placement in placements:
            target = model.get_submodule(placement.path)
            layer = target if isinstance(target, Linear) else Linear(target, name)
            members = groups.setdefault(placement.group, [])
            layer.update_layer(
                name,
                r=placement.r,
                lora_alpha=placement.lora_alpha,
                group=placement.group,
                path=placement.path,
                config=config,
                holder=members[0] if members else None,
                common=common,
            )
            members.append(layer)
            config.fan_in_fan_out = layer.is_conv1d
            if layer is not target:
                _replace(model, placement.path, layer)
    if method_of(config).reads_next_layer:
        for members in groups.values():
            for own, following in zip(members, [*members[1:], members[0]], strict=True):
                own.next_layer[name] = following


def adapted_layers(model: nn.Module) -> list[CondLoraLayer]:
    """All layers of the tuner in a model, in its order."""
    return [module for module in model.modules() if isinstance(module, CondLoraLayer)]


def check_not_merged(model: nn.Module, adapter_name: str) -> None:
    """Raise an AdapterError if an adapter of this name is merged into the model."""
    if any(adapter_name in layer.merged_adapters for layer in adapted_layers(model)):
        raise AdapterError(
            f"The model has an adapter {adapter_name!r} that is merged: call unmerge_adapter before it is replaced."
        )


def drop_adapter(model: nn.Module, adapter_name: str) -> bool:
    """Remove an earlier adapter of this name, with the layers and trained copies of modules that only it used.

    Returns whether there was one.
    """
    if not any(adapter_name in layer.group for layer in adapted_layers(model)):
        return False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Adapter .* was active which is now deleted")
        delete_adapter(model, adapter_name, PREFIX, CondLoraLayer)
    for path, module in list(model.named_modules()):
        if isinstance(module, CondLoraLayer) and not module.group:
            _replace(model, path, module.base_layer)
        elif isinstance(module, ModulesToSaveWrapper) and not module.modules_to_save:
            _replace(model, path, module.original_module)
    return True


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
