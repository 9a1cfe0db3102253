"""CondLoRA as a PEFT tuner: it owns the shared maps, one pair per adapter and sharing group.

A sharing group is the set of target modules whose paths differ only in the layer index (all query
projections, say). The maps sit in `condlora_theta_A[adapter][group]` on the tuner, adapter outermost, so
that PEFT's own saving and loading find each of them exactly once.
"""

from __future__ import annotations

import math
from contextlib import contextmanager

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from condlora.errors import AdapterError
from condlora.tuner.config import CondLoraConfig
from condlora.tuner.layer import CondLoraLayer, Linear, theta_shapes


def layer_index(path: str) -> int | None:
    """The layer index in a module path: its first numeric component, or None where there is none."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def sharing_group(path: str) -> str:
    """The module path without its layer index; with "/" for ".", which torch forbids in parameter names."""
    parts = path.split(".")
    index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return "/".join(part for i, part in enumerate(parts) if i != index)


class CondLoraModel(BaseTuner):
    """Puts CondLoRA layers into a model. Made by `peft.get_peft_model(model, CondLoraConfig(...))`."""

    prefix = "condlora_"
    uses_shared_state = True
    tuner_layer_cls = CondLoraLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _maps(self) -> tuple[nn.ModuleDict, nn.ModuleDict]:
        # Made here and not in a hook: PEFT's add_adapter runs none. `_modules`, because getattr on a tuner
        # falls through to the wrapped model.
        for name in ("condlora_theta_A", "condlora_theta_B"):
            if name not in self._modules:
                self.add_module(name, nn.ModuleDict({}))
        return self._modules["condlora_theta_A"], self._modules["condlora_theta_B"]

    def _create_and_replace(
        self, config: CondLoraConfig, adapter_name, target, target_name, parent, current_key, **_
    ) -> None:
        base = target.get_base_layer() if isinstance(target, CondLoraLayer) else target
        W = _weight_as_linear(base, current_key)
        group = sharing_group(current_key)
        self._add_maps(config, adapter_name, group, W, current_key)
        if isinstance(target, CondLoraLayer):
            target.update_layer(adapter_name, group, config)
        else:
            theta_A, theta_B = self._maps()
            layer = Linear(
                target, theta_A, theta_B, adapter_name=adapter_name, group=group, config=config
            )
            self._replace_module(parent, target_name, layer, target)

    def _add_maps(self, config, adapter_name: str, group: str, W: torch.Tensor, path: str) -> None:
        _check_fit(config, W, path)
        shapes = theta_shapes(*W.shape, config.r, config.form)
        for maps, shape, zero in zip(
            self._maps(), shapes, (False, config.init_weights), strict=True
        ):
            if adapter_name not in maps:
                maps[adapter_name] = nn.ParameterDict({})
            if group not in maps[adapter_name]:
                theta = torch.zeros(shape, dtype=W.dtype, device=W.device)
                if not zero:
                    nn.init.kaiming_uniform_(theta, a=math.sqrt(5))
                maps[adapter_name][group] = nn.Parameter(theta)
            elif maps[adapter_name][group].shape != shape:
                raise AdapterError(
                    f"{path} has a weight of another shape than the modules it shares its maps with: "
                    "adapt them with separate adapters."
                )

    def _replace_module(self, parent, child_name, new_module, child) -> None:
        # PEFT's own also copies `child.weight`, which a head of several layers (RoBERTa's) does not have;
        # nothing needs it: our layers hold no tensors, and an unloaded module brings its own.
        setattr(parent, child_name, new_module)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if autocast_adapter_dtype:  # as PEFT does for LoRA: master weights in float32
            for maps in self._maps():
                for theta in maps[adapter_name].values():
                    if theta.dtype in (torch.float16, torch.bfloat16):
                        theta.data = theta.data.float()

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        for maps in self._maps():
            del maps[adapter_name]

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, adapter_names=None, **kwargs):
        if adapter_names is not None:
            raise AdapterError(
                "CondLoRA does not mix adapters within a batch (adapter_names): call set_adapter and run each apart."
            )
        yield


def _weight_as_linear(base: nn.Module, path: str) -> torch.Tensor:
    if isinstance(base, nn.Linear):
        return base.weight
    if isinstance(base, Conv1D):
        return base.weight.T
    raise AdapterError(
        f"{path} is a {type(base).__name__}, and CondLoRA adapts nn.Linear and transformers' Conv1D: "
        "choose other target_modules."
    )


def _check_fit(config: CondLoraConfig, W: torch.Tensor, path: str) -> None:
    out_features, in_features = W.shape
    if config.r > min(W.shape):
        raise AdapterError(
            f"Rank {config.r} is above the smaller side of {path}, which is {out_features} x {in_features}: "
            f"choose r of at most {min(W.shape)}."
        )
    if config.form != "consistent" and out_features != in_features:
        raise AdapterError(
            f"{path} is {out_features} x {in_features}, and the form {config.form!r} is defined for square "
            'weights only: set form="consistent" or choose other target_modules.'
        )
