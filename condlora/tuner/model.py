"""CondLoRA and related methods as a PEFT tuner: which modules get an adapter, and where the maps are held.

A sharing group is, by default, the set of target modules whose paths differ only in the layer index (all
query projections, say); `layers_per_map` divides it into blocks of neighbouring layers. Its maps are parameters of the first of its layers, so that everything PEFT does by
walking over layers (saving, loading, casting, freezing, deleting, injecting without a PeftModel) finds each
of them exactly once.

PEFT visits the targets one by one. They are collected first, then all of them are checked, and only then is the first
module replaced; what fails later is undone. So a refused adapter leaves the model as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from accelerate import init_empty_weights
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.tuners_utils import (
    BaseTuner,
    _check_lora_target_modules_mamba,
    delete_adapter,
)
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, ModulesToSaveWrapper
from torch import nn

from condlora.errors import AdapterError
from condlora.tuner.config import CondLoraConfig, method_of
from condlora.tuner.holders import adopt_orphans
from condlora.tuner.hooks import adapters_by_row, add_penalty, draw_ranks
from condlora.tuner.io.state_dict import check_complete, plain_bias_keys
from condlora.tuner.layer import CondLoraLayer, Linear, weight_shape
from condlora.tuner.methods.cond_adalora import CondAdaLora
from condlora.tuner.placement import check_target, is_read_only, plan, resolve_form
from condlora.tuner.rank_allocator import RankAllocator
from condlora.tuner.sharing import Target
from condlora.tuner.undo import undone_on_error

_LORA = LoraConfig()


@dataclass
class _Collected:
    """The targets of an adapter that is being attached."""

    adapter_name: str
    config: CondLoraConfig
    low_cpu_mem_usage: bool
    is_all_linear: bool
    targets: list[Target] = field(default_factory=list)
    has_replaced: bool = False  # the model's only adapter, of the same name


class CondLoraModel(BaseTuner):
    """Puts CondLoRA layers into a model. Made by `peft.get_peft_model(model, CondLoraConfig(...))`."""

    prefix = "condlora_"
    tuner_layer_cls = CondLoraLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    _collected: _Collected | None = None

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        """See `peft.get_peft_model` and `peft.inject_adapter_in_model`, which make it.

        Raises:
            AdapterError: a target cannot be adapted as the config says, or `model` is a PeftModel already.
        """
        if isinstance(model, PeftModel):
            raise AdapterError(
                "This model is a PeftModel already: for a new adapter in place of its own call unload() and adapt what "
                "that returns, for a second one call add_adapter."
            )
        # PEFT enters the new config into the model's own dictionary, if it has one, before anything is checked.
        known = getattr(model, "peft_config", None)
        configs = dict(known) if isinstance(known, dict) else None
        try:
            super().__init__(model, *args, **kwargs)
        except BaseException:
            if configs is not None:
                known.clear()
                known.update(configs)
            elif "_hf_peft_config_loaded" in vars(model):  # transformers sets it before it injects
                model._hf_peft_config_loaded = False
            raise

    def maps(self, adapter_name: str = "default") -> dict[str, tuple[nn.Parameter, ...]]:
        """What is trained in the first layer of every sharing group: with CondLoRA theta_A and theta_B."""
        groups = self._groups(adapter_name)
        return {name: layers[0].theta(adapter_name) for name, layers in groups.items()}

    def _groups(self, adapter_name: str) -> dict[str, list[CondLoraLayer]]:
        groups: dict[str, list[CondLoraLayer]] = {}
        for module in self.model.modules():
            if isinstance(module, CondLoraLayer) and adapter_name in module.group:
                groups.setdefault(module.group[adapter_name], []).append(module)
        return groups

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Attach the adapter of a config, or nothing; one of the same name that the model has already is replaced.

        `state_dict` is not used: PEFT would take the targets from it, and one of CondLoRA names only the layers that
        hold maps.

        Raises:
            AdapterError: a target cannot be adapted as the config says, or the adapter to replace is merged.
        """
        config = self.peft_config[adapter_name]
        names = config.target_modules
        collected = _Collected(
            adapter_name,
            config,
            low_cpu_mem_usage,
            is_all_linear=isinstance(names, str) and names.lower() == "all-linear",
        )
        _check_not_merged(model, adapter_name)
        with undone_on_error(model, config), warnings.catch_warnings():
            if config.sharing == "shape":
                # PEFT looks for a pattern's keys among paths, and would warn of shapes.
                warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys")
            self._collected = collected
            try:
                super().inject_adapter(
                    model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage
                )
            finally:
                self._collected = None
            if collected.has_replaced:
                # Once more, as PEFT leaves trainable what was so before, such as the replaced adapter's biases.
                self._mark_only_adapters_as_trainable(model)
            self._register_hooks(model, config)

    def _create_and_replace(
        self,
        peft_config: CondLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        """Collect a target; `_place` replaces it."""
        assert self._collected is not None
        base = target.get_base_layer() if isinstance(target, CondLoraLayer) else target
        if self._collected.is_all_linear and is_read_only(base):
            peft_config.target_modules.discard(current_key)
            return
        check_target(base, current_key)
        self._collected.targets.append(Target.of(current_key, weight_shape(base), parent))

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        # PEFT calls it in `inject_adapter` when all targets have been met and its own checks have passed.
        if self._collected is not None:
            collected, self._collected = self._collected, None
            self._place(collected)
        super().set_adapter(adapter_name, inference_mode)

    def _place(self, collected: _Collected) -> None:
        """Check every target, then put the adapter on all of them."""
        config, name = collected.config, collected.adapter_name
        resolve_form(config, collected.targets)
        placements = plan(config, collected.targets, caps_rank=collected.is_all_linear)
        if _drop_adapter(self.model, name):
            collected.has_replaced = not _layers(self.model)
        groups: dict[str, list[CondLoraLayer]] = {}
        with init_empty_weights() if collected.low_cpu_mem_usage else nullcontext():
            for place in placements:
                target = self.model.get_submodule(place.path)
                layer = target if isinstance(target, CondLoraLayer) else Linear(target, name)
                members = groups.setdefault(place.group, [])
                holder = members[0] if members else None
                layer.update_layer(
                    name,
                    r=place.r,
                    lora_alpha=place.lora_alpha,
                    group=place.group,
                    path=place.path,
                    config=config,
                    holder=holder,
                )
                members.append(layer)
                config.fan_in_fan_out = layer.is_conv1d
                if layer is not target:
                    _replace(self.model, place.path, layer)
        if method_of(config).reads_next_layer:
            for members in groups.values():
                for layer, following in zip(members, [*members[1:], members[0]], strict=True):
                    layer.next_layer[name] = following

    def _register_hooks(self, model: nn.Module, config: CondLoraConfig) -> None:
        """One hook of a kind serves all adapters."""
        method = method_of(config)
        if method.is_nested and draw_ranks not in model._forward_pre_hooks.values():
            model.register_forward_pre_hook(draw_ranks)
        if method.is_pruned and add_penalty not in model._forward_hooks.values():
            model.register_forward_hook(add_penalty)
        if method.is_pruned and not hasattr(self, "rankallocator"):
            self.rankallocator = RankAllocator()

    def update_and_allocate(self, global_step: int, adapter_name: str = "default") -> None:
        """For Conditional AdaLoRA, as with PEFT's AdaLoRA: call it at every step of training, counted from 1, after
        `optimizer.step()` and before `zero_grad()`. It prunes by the schedule in the config's options.

        Raises:
            AdapterError: see `RankAllocator.step`.
        """
        suffix = f".condlora_Lambda.{adapter_name}"
        entries = {n: p for n, p in self.model.named_parameters() if n.endswith(suffix)}
        method = method_of(self.peft_config[adapter_name])
        assert isinstance(method, CondAdaLora)
        self.rankallocator.step(entries, method, global_step)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: a mean of maps is not the mean of the updates that they make.

        Raises:
            AdapterError: always, with the way that works.
        """
        raise AdapterError(
            "CondLoRA adapters cannot be combined directly: write each with condlora.export_lora, load the exports "
            "with stock PEFT and call add_weighted_adapter there."
        )

    def _check_target_module_compatiblity(
        self, peft_config: PeftConfig, model: nn.Module, target_name: str
    ) -> None:
        try:
            _check_lora_target_modules_mamba(_LORA, model, target_name)
        except ValueError as error:
            raise AdapterError(
                f"{target_name} cannot be adapted in a model of type {model.config.model_type!r}: its fused kernels "
                "read the weight without calling the layer. Leave it out of target_modules, or set exclude_modules."
            ) from error

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # PEFT's own also copies `child.weight`, which a head of several layers (RoBERTa's) does not have;
        # nothing needs it: maps are made where the weight is, and an unloaded module brings its own.
        setattr(parent, child_name, new_module)

    def train(self, mode: bool = True) -> CondLoraModel:
        adopt_orphans(self.model)
        super().train(mode)
        return self

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        """As PEFT; what a layer that has left the model held is saved with a layer that is left."""
        adopt_orphans(model)
        own = model.state_dict()
        adopted = {
            key: own[key]
            for key in own
            if f".{cls.prefix}" in key
            and key.endswith(f".{adapter_name}")
            and key not in state_dict
        }
        return super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict | adopted, unwanted_adapter_names
        )

    @classmethod
    def _get_learnable_bias_state_dict(
        cls, model: nn.Module, state_dict: dict[str, torch.Tensor], config: PeftConfig
    ) -> dict[str, torch.Tensor]:
        biases = super()._get_learnable_bias_state_dict(model, state_dict, config)
        # A trained head's bias is saved with the head; once more, under the name it has here, it fits nowhere.
        return {key: bias for key, bias in biases.items() if ".modules_to_save." not in key}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """As PEFT, which would only warn of maps that are missing and of tensors that fit nowhere.

        Raises:
            AdapterError: see `condlora.tuner.io.state_dict.check_complete`.
        """
        state_dict = plain_bias_keys(state_dict, model.state_dict())
        found = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        check_complete(model, found, adapter_name, cls.prefix)
        return found

    @contextmanager
    def _enable_peft_forward_hooks(
        self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> Iterator[None]:
        """`adapter_names=[...]` in a call gives each row of the batch its own adapter, as with PEFT's LoRA."""
        if adapter_names is None:
            yield
            return
        beams = kwargs.get("num_beams") or 1
        with adapters_by_row(self.model, adapter_names, list(self.peft_config), beams):
            yield


def _layers(model: nn.Module) -> list[CondLoraLayer]:
    return [module for module in model.modules() if isinstance(module, CondLoraLayer)]


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _check_not_merged(model: nn.Module, adapter_name: str) -> None:
    if any(adapter_name in layer.merged_adapters for layer in _layers(model)):
        raise AdapterError(
            f"The model has an adapter {adapter_name!r} that is merged: call unmerge_adapter before it is replaced."
        )


def _drop_adapter(model: nn.Module, adapter_name: str) -> bool:
    """Remove an earlier adapter of this name, and the layers and trained copies of modules that served it alone.

    Returns whether there was one.
    """
    if not any(adapter_name in layer.group for layer in _layers(model)):
        return False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Adapter .* was active which is now deleted")
        delete_adapter(model, adapter_name, CondLoraModel.prefix, CondLoraLayer)
    for path, module in list(model.named_modules()):
        if isinstance(module, CondLoraLayer) and not module.group:
            _replace(model, path, module.base_layer)
        elif isinstance(module, ModulesToSaveWrapper) and not module.modules_to_save:
            _replace(model, path, module.original_module)
    return True
