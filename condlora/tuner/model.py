"""CondLoRA and related methods as a PEFT tuner: what PEFT calls to attach, train, save and load an adapter.

A sharing group is, by default, the set of target modules whose paths differ only in the layer index (all query
projections, for example); `layers_per_map` divides it into blocks of neighbouring layers. Its maps are parameters of the
first of its layers. So each of them is found exactly once by everything in PEFT that walks over layers: saving, loading,
casting, freezing, deleting, and injecting without a PeftModel.

A refused adapter leaves the model as it was: see `condlora.tuner.attach` and `condlora.tuner.undo`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner, _check_lora_target_modules_mamba
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from condlora.errors import AdapterError
from condlora.tuner.attach import PREFIX, Collected, check_not_merged, place
from condlora.tuner.config import CondLoraConfig, method_of
from condlora.tuner.holders import adopt_orphans
from condlora.tuner.hooks import adapters_by_row, add_penalty, draw_ranks
from condlora.tuner.io.state_dict import check_complete, plain_bias_keys
from condlora.tuner.layer import CondLoraLayer
from condlora.tuner.methods.cond_adalora import CondAdaLora
from condlora.tuner.rank_allocator import RankAllocator
from condlora.tuner.undo import undone_on_error

_LORA = LoraConfig()


class CondLoraModel(BaseTuner):
    """Puts CondLoRA layers into a model. Made by `peft.get_peft_model(model, CondLoraConfig(...))`."""

    prefix = PREFIX
    tuner_layer_cls = CondLoraLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING  # type: ignore[assignment]  # PEFT's own table
    _collected: Collected | None = None

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
            if isinstance(known, dict) and configs is not None:
                known.clear()
                known.update(configs)
            elif "_hf_peft_config_loaded" in vars(model):  # transformers sets it before it injects
                vars(model)["_hf_peft_config_loaded"] = False
            raise

    def _config(self, adapter_name: str) -> CondLoraConfig:
        config = self.peft_config[adapter_name]
        assert isinstance(config, CondLoraConfig)
        return config

    def maps(self, adapter_name: str = "default") -> dict[str, tuple[nn.Parameter, ...]]:
        """The trained tensors of the first layer of every sharing group: in CondLoRA theta_A and theta_B."""
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
        """Attach an adapter whole or not at all. An adapter of this name that the model has already is replaced.

        `state_dict` is not used: PEFT would take the targets from it, and one of CondLoRA names only the layers that
        hold maps.

        Raises:
            AdapterError: a target cannot be adapted as the config says, or the adapter to replace is merged.
        """
        config = self._config(adapter_name)
        names = config.target_modules
        collected = Collected(
            adapter_name,
            config,
            low_cpu_mem_usage,
            is_all_linear=isinstance(names, str) and names.lower() == "all-linear",
        )
        check_not_merged(model, adapter_name)
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
                # Again, as PEFT leaves trainable what was trainable before, such as the biases of the replaced adapter.
                self._mark_only_adapters_as_trainable(model)
            self._register_hooks(model, config)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
        **_: Any,
    ) -> None:
        """Collect a target; `set_adapter` places the adapter on all of them."""
        assert self._collected is not None
        self._collected.add(target, current_key, parent)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        # PEFT calls it in `inject_adapter` when all targets have been met and its own checks have passed.
        if self._collected is not None:
            collected, self._collected = self._collected, None
            place(self.model, collected)
        super().set_adapter(adapter_name, inference_mode)

    def _register_hooks(self, model: nn.Module, config: CondLoraConfig) -> None:
        """Register the model's hooks; one hook of each kind serves all adapters."""
        method = method_of(config)
        if method.is_nested and draw_ranks not in model._forward_pre_hooks.values():
            model.register_forward_pre_hook(draw_ranks)
        if method.is_pruned and add_penalty not in model._forward_hooks.values():
            model.register_forward_hook(add_penalty)
        if method.is_pruned and not hasattr(self, "rankallocator"):
            self.rankallocator = RankAllocator()

    def update_and_allocate(self, global_step: int, adapter_name: str = "default") -> None:
        """Prune an adapter of Conditional AdaLoRA by the schedule in its config's options.

        As with PEFT's AdaLoRA, call it at every step of training, counted from 1, after `optimizer.step()` and before
        `zero_grad()`.

        Raises:
            AdapterError: see `RankAllocator.step`.
        """
        suffix = f".condlora_Lambda.{adapter_name}"
        entries = {n: p for n, p in self.model.named_parameters() if n.endswith(suffix)}
        method = method_of(self._config(adapter_name))
        assert isinstance(method, CondAdaLora)
        self.rankallocator.step(entries, method, global_step)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: the mean of maps does not give the mean of the updates.

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
            model_type = getattr(getattr(model, "config", None), "model_type", None)
            raise AdapterError(
                f"{target_name} cannot be adapted in a model of type {model_type!r}: its fused kernels "
                "read the weight without calling the layer. Leave it out of target_modules, or set exclude_modules."
            ) from error

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # PEFT's own also copies `child.weight`, which a head of several layers (RoBERTa's) does not have. Nothing
        # needs the copy: maps are made on the device of the weight, and an unloaded module has its own weight.
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
        """As in PEFT; tensors of a layer that was removed from the model are saved with a layer that remains."""
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
        # The bias of a trained head is saved with the head. Saved under this name too, it could not be loaded.
        return {key: bias for key, bias in biases.items() if ".modules_to_save." not in key}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """As in PEFT, which would only warn of missing maps and of tensors that belong to no module.

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
