"""CondLoRA and related methods as a PEFT tuner: which modules get an adapter, and where the maps are held.

A sharing group is, by default, the set of target modules whose paths differ only in the layer index (all
query projections, say); `layers_per_map` divides it into blocks of neighbouring layers. Its maps are parameters of
the first of its layers, so that everything PEFT does by walking over layers (saving, loading, casting, freezing,
deleting, injecting without a PeftModel) finds each of them exactly once.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from torch import nn

from condlora.errors import AdapterError
from condlora.tuner.config import CondLoraConfig, method_of
from condlora.tuner.hooks import adapters_by_row, draw_ranks
from condlora.tuner.io.state_dict import check_complete, plain_bias_keys
from condlora.tuner.layer import CondLoraLayer, Linear
from condlora.tuner.rank_allocator import RankAllocator
from condlora.tuner.sharing import (
    block_of,
    check_fit,
    check_shapes_named,
    check_shared,
    check_target,
    sharing_group,
)


class CondLoraModel(BaseTuner):
    """Puts CondLoRA layers into a model. Made by `peft.get_peft_model(model, CondLoraConfig(...))`."""

    prefix = "condlora_"
    tuner_layer_cls = CondLoraLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

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

    def inject_adapter(self, model, adapter_name, *args, state_dict=None, **kwargs) -> None:
        # Of a state dict PEFT would take the targets, and one of ours names only the layers that hold maps.
        config = self.peft_config[adapter_name]
        with warnings.catch_warnings():
            if config.sharing == "shape":
                # PEFT looks for a pattern's keys among paths, and would warn of shapes.
                warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys")
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        if config.sharing == "shape":
            blocks = self._groups(adapter_name).values()
            check_shapes_named(
                config, {"x".join(map(str, b[0].frozen_weight().shape)) for b in blocks}
            )
        method = method_of(config)
        if method.reads_next_layer:
            self._link_layers(adapter_name)
        # One hook serves all adapters.
        if method.is_nested and draw_ranks not in model._forward_pre_hooks.values():
            model.register_forward_pre_hook(draw_ranks)
        if method.is_pruned and not hasattr(self, "rankallocator"):
            self.rankallocator = RankAllocator()

    def forward(self, *args, **kwargs):
        """As the model; in training the penalty of the active adapters' methods, if any, is added to its loss."""
        outputs = super().forward(*args, **kwargs)
        if not self.training or getattr(outputs, "loss", None) is None:
            return outputs
        penalties = [
            layer.penalty(name)
            for layer in self.model.modules()
            if isinstance(layer, CondLoraLayer) and not layer.disable_adapters
            for name in layer.active_adapters
            if name in layer.method and layer.method[name].is_pruned
        ]
        if penalties:
            outputs.loss = outputs.loss + torch.stack(penalties).mean()
        return outputs

    def update_and_allocate(self, global_step: int, adapter_name: str = "default") -> None:
        """For Conditional AdaLoRA, as with PEFT's AdaLoRA: call it at every step of training, counted from 1, after
        `optimizer.step()` and before `zero_grad()`. It prunes by the schedule in the config's options.

        Raises:
            AdapterError: see `RankAllocator.step`.
        """
        suffix = f".condlora_Lambda.{adapter_name}"
        entries = {n: p for n, p in self.model.named_parameters() if n.endswith(suffix)}
        method = method_of(self.peft_config[adapter_name])
        self.rankallocator.step(entries, method, global_step)

    def _link_layers(self, adapter_name: str) -> None:
        for group, layers in self._groups(adapter_name).items():
            if len(layers) < 2:
                raise AdapterError(
                    f"{group} is one layer, and this method gives each layer another's weight: adapt at least two, "
                    "and let layers_per_map leave no layer alone."
                )
            for layer, following in zip(layers, [*layers[1:], layers[0]], strict=True):
                layer.next_layer[adapter_name] = following

    def _create_and_replace(
        self,
        config: CondLoraConfig,
        adapter_name,
        target,
        target_name,
        parent,
        current_key,
        **_,
    ) -> None:
        base = target.get_base_layer() if isinstance(target, CondLoraLayer) else target
        check_target(base, current_key, config)
        layer = target if isinstance(target, CondLoraLayer) else Linear(target, adapter_name)
        shape = layer.frozen_weight().shape
        group = (
            sharing_group(current_key) if config.sharing == "path" else "x".join(map(str, shape))
        )
        patterns = (config.rank_pattern, config.alpha_pattern)
        named = current_key if config.sharing == "path" else group
        r_key, alpha_key = (get_pattern_key(pattern.keys(), named) for pattern in patterns)
        r = config.rank_pattern.get(r_key, config.r)
        alpha = config.alpha_pattern.get(alpha_key, config.lora_alpha)
        group = block_of(group, current_key, config.layers_per_map)  # patterns name whole groups
        method = method_of(config)
        check_fit(config, method, r, shape, current_key)
        holder = self._holder(adapter_name, group)
        if holder is not None and method.shares(layer.frozen_weight(), r):
            check_shared(holder, adapter_name, r, alpha, shape, current_key)
        layer.update_layer(
            adapter_name,
            r=r,
            lora_alpha=alpha,
            group=group,
            path=current_key,
            config=config,
            holder=holder,
        )
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _holder(self, adapter_name: str, group: str) -> CondLoraLayer | None:
        """A layer of this group that has the adapter already."""
        return next(
            (
                module
                for module in self.model.modules()
                if isinstance(module, CondLoraLayer) and module.group.get(adapter_name) == group
            ),
            None,
        )

    def _replace_module(self, parent, child_name, new_module, child) -> None:
        # PEFT's own also copies `child.weight`, which a head of several layers (RoBERTa's) does not have;
        # nothing needs it: maps are made where the weight is, and an unloaded module brings its own.
        setattr(parent, child_name, new_module)

    @classmethod
    def _get_learnable_bias_state_dict(cls, model, state_dict, config):
        biases = super()._get_learnable_bias_state_dict(model, state_dict, config)
        # A trained head's bias is saved with the head; once more, under the name it has here, it fits nowhere.
        return {key: bias for key, bias in biases.items() if ".modules_to_save." not in key}

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, model, config, adapter_name, state_dict):
        """As PEFT, which would only warn of maps that are missing and of tensors that fit nowhere.

        Raises:
            AdapterError: see `condlora.tuner.io.state_dict.check_complete`.
        """
        state_dict = plain_bias_keys(state_dict, model.state_dict())
        found = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        check_complete(model, found, adapter_name, cls.prefix)
        return found

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, adapter_names: list[str] | None = None, **kwargs):
        """`adapter_names=[...]` in a call gives each row of the batch its own adapter, as with PEFT's LoRA."""
        if adapter_names is None:
            yield
            return
        beams = kwargs.get("num_beams") or 1
        with adapters_by_row(self.model, adapter_names, list(self.peft_config), beams):
            yield
