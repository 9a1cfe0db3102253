"""CondLoRA and its kin as a PEFT tuner: which modules share a pair of maps, and where the pair is held.

A sharing group is, by default, the set of target modules whose paths differ only in the layer index (all
query projections, say). Its maps are parameters of the first of its layers, so that everything PEFT does by
walking over layers (saving, loading, casting, freezing, deleting, injecting without a PeftModel) finds each
of them exactly once.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from functools import partial

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, AuxiliaryTrainingWrapper
from peft.utils.other import get_pattern_key
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from condlora.errors import AdapterError
from condlora.tuner.config import CondLoraConfig, method_of
from condlora.tuner.layer import CondLoraLayer, Linear
from condlora.tuner.methods.base import Method
from condlora.tuner.rank_allocator import RankAllocator


def layer_index(path: str) -> int | None:
    """The layer index in a module path: its first numeric component, or None where there is none."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def sharing_group(path: str) -> str:
    """The module path without its layer index."""
    parts = path.split(".")
    index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(part for i, part in enumerate(parts) if i != index)


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
            _check_shapes_named(config, self.maps(adapter_name))
        method = method_of(config)
        if method.reads_next_layer:
            self._link_layers(adapter_name)
        # One hook serves all adapters.
        if method.is_nested and _draw_ranks not in model._forward_pre_hooks.values():
            model.register_forward_pre_hook(_draw_ranks)
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
                    f"{group} is one layer, and this method gives each layer another's weight: adapt at least two."
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
        method = method_of(config)
        check_fit(config, method, r, shape, current_key)
        holder = self._holder(adapter_name, group)
        if holder is not None and method.shares(layer.frozen_weight(), r):
            _check_shared(holder, adapter_name, r, alpha, shape, current_key)
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
            AdapterError: a map is missing or of another shape, or a tensor belongs to nothing in the model.
        """
        own = model.state_dict()
        state_dict = {_bias_key(key, own): tensor for key, tensor in state_dict.items()}
        found = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        prefix = (
            "" if any(key.startswith("base_model.model.") for key in own) else "base_model.model."
        )
        found_names = {key.removeprefix(prefix) for key in found}
        maps = {
            key: own[key].shape
            for key in own
            if f".{cls.prefix}" in f".{key}" and key.endswith(f".{adapter_name}")
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
            saved = found[key if key in found else prefix + key].shape
            if saved != shape:
                raise AdapterError(
                    f"{key} is {_sizes(saved)} in the adapter's file and {_sizes(shape)} here: the rank, form or "
                    "base model differs from the one it was saved with."
                )
        return found

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, adapter_names: list[str] | None = None, **kwargs):
        """`adapter_names=[...]` in a call gives each row of the batch its own adapter, as with PEFT's LoRA."""
        if adapter_names is None:
            yield
            return
        if self.training:
            raise AdapterError("adapter_names mixes adapters at inference only: call model.eval().")
        self._check_names(adapter_names)
        beams = kwargs.get("num_beams") or 1
        beamed = [name for name in adapter_names for _ in range(beams)]
        encoder = self.model.get_encoder() if hasattr(self.model, "get_encoder") else None
        # An encoder sees each row once, a decoder once for each beam.
        once = set() if encoder in (None, self.model) else set(encoder.modules())
        hooks = [
            module.register_forward_pre_hook(
                partial(_pass_names, names=adapter_names if module in once else beamed),
                with_kwargs=True,
            )
            for module in self.modules()
            if isinstance(module, CondLoraLayer | AuxiliaryTrainingWrapper)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _check_names(self, adapter_names: list[str]) -> None:
        unknown = sorted(set(adapter_names) - set(self.peft_config) - {"__base__"})
        if unknown:
            raise AdapterError(
                f"adapter_names holds {', '.join(unknown)}: the model has {', '.join(self.peft_config)}, "
                'and "__base__" stands for no adapter.'
            )


def _bias_key(key: str, own: dict) -> str:
    """The name of a trained bias here, where another set of adapters may or may not wrap its layer."""
    if key in own or not key.endswith(".bias"):
        return key
    plain = key.replace(".base_layer.bias", ".bias")
    wrapped = plain.removesuffix("bias") + "base_layer.bias"
    return next((name for name in (plain, wrapped) if name in own), key)


def _pass_names(module, args, kwargs, names: list[str]):
    return args, kwargs | {"adapter_names": names}


def _draw_ranks(model: nn.Module, _) -> None:
    """For nested methods, before each forward pass in training: one rank for all layers of an adapter."""
    nested: dict[str, list[CondLoraLayer]] = {}
    for layer in (module for module in model.modules() if isinstance(module, CondLoraLayer)):
        for name, method in layer.method.items():
            if layer.training and method.is_nested:
                nested.setdefault(name, []).append(layer)
    for name, layers in sorted(nested.items()):
        highest = max(layer.r[name] for layer in layers)
        rank = int(torch.randint(1, highest + 1, (), device="cpu"))
        for layer in layers:
            layer.drawn_rank[name] = min(rank, layer.r[name])


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
            f"Rank {r} is above the smaller side of {path}, which is {_sizes(shape)}: "
            f"choose r of at most {min(shape)}."
        )
    if method.needs_square and shape[0] != shape[1]:
        raise AdapterError(
            f"{path} is {_sizes(shape)}, and the form {config.form!r} is defined for square "
            'weights only: set form="consistent" or choose other target_modules.'
        )


def _check_shared(holder: CondLoraLayer, adapter_name, r, alpha, shape, path: str) -> None:
    if (holder.r[adapter_name], holder.lora_alpha[adapter_name]) != (r, alpha):
        raise AdapterError(
            f"{path} shares its maps with modules of another rank or alpha: write rank_pattern and alpha_pattern "
            "for whole sharing groups, such as {'query': 4}, not for single layers."
        )
    if holder.frozen_weight().shape != shape:
        raise AdapterError(
            f"{path} is {_sizes(shape)}, another shape than the modules it shares its maps with: "
            'set sharing="shape", or adapt them with separate adapters.'
        )


def _check_shapes_named(config: CondLoraConfig, shapes) -> None:
    unknown = sorted({*config.rank_pattern, *config.alpha_pattern} - set(shapes))
    if unknown:
        raise AdapterError(
            f'With sharing="shape", rank_pattern and alpha_pattern name shapes, here {", ".join(shapes)}: '
            f"{', '.join(unknown)} is none of them."
        )


def _sizes(shape) -> str:
    return " x ".join(map(str, shape))
