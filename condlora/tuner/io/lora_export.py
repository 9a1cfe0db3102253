"""Export: an adapter of CondLoRA or a related method as the LoRA adapter that it equals once A and B are made.

The export is exact, has the same rank and needs no SVD: A and B are those that the layer itself multiplies by. PEFT without
condlora and engines that serve LoRA adapters can load it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import get_peft_model_state_dict
from torch import nn
from transformers.pytorch_utils import Conv1D

from condlora.errors import AdapterError
from condlora.tuner.config import CondLoraConfig
from condlora.tuner.io.adapter_folder import write_adapter
from condlora.tuner.layer import CondLoraLayer
from condlora.tuner.model import CondLoraModel

Layers = dict[str, CondLoraLayer]  # by path in the base model


@torch.no_grad()
def export_lora(
    model: PeftModel,
    folder: str | Path,
    adapter_name: str = "default",
    *,
    rank: int | None = None,
    overwrite: bool = False,
) -> LoraConfig:
    """Write one CondLoRA adapter of a model as a standard LoRA adapter, and return its config.

    `folder` gets adapter_config.json (peft_type LORA) and adapter_model.safetensors: A (r, in) and B (out, r)
    of every adapted layer in the dtype of the maps, what `modules_to_save` and `bias` add to them, all
    under PEFT's names. The model is not changed; an adapter that is merged is exported from the pretrained W.

    The config's r is the largest of the layers' ranks, by which engines reserve memory; layers of another rank
    or alpha are in rank_pattern and alpha_pattern, which PEFT reads and some engines do not.

    With `use_dora` it is PEFT's LoRA with DoRA, which engines may not serve: merge it for those.

    With `overwrite` a folder that holds an adapter is replaced; one that holds anything else is not.

    `rank` cuts an adapter of a nested method (DyLoRA, Conditional DyLoRA) to its leading ranks, as it was trained to be.

    Raises:
        AdapterError: the model has no CondLoRA adapter of this name, `folder` holds something else, or the adapter
            cannot be cut to that rank.
    """
    check_condlora(model, adapter_name)
    layers = {
        path: module
        for path, module in model.get_base_model().named_modules()
        if isinstance(module, CondLoraLayer) and adapter_name in module.r
    }
    if rank is not None:
        _check_cut(layers, adapter_name, rank)
    # Heads and biases, under the names that PEFT gives them; the maps are what A and B replace.
    tensors = {
        key: tensor
        for key, tensor in get_peft_model_state_dict(model, adapter_name=adapter_name).items()
        if f".{CondLoraModel.prefix}" not in key
    }
    for path, layer in layers.items():
        A, B = layer.materialise(adapter_name)
        if rank is not None:
            A, B, _ = layer.cut(A, B, adapter_name, rank)
        tensors[f"base_model.model.{path}.lora_A.weight"] = A
        tensors[f"base_model.model.{path}.lora_B.weight"] = B
        if layer.use_dora[adapter_name]:
            magnitude = layer.magnitude(adapter_name)
            tensors[f"base_model.model.{path}.lora_magnitude_vector"] = magnitude
    config = _lora_config(model, layers, adapter_name, rank)
    write_adapter(folder, config, tensors, overwrite=overwrite)
    return config


def check_condlora(model: nn.Module, adapter_name: str) -> None:
    """Refuse, with an AdapterError, a model that has no CondLoRA adapter of this name."""
    adapters = getattr(model, "peft_config", {}) if isinstance(model, PeftModel) else {}
    if not adapters or not isinstance(model.base_model, CondLoraModel):
        raise AdapterError(
            "This model has no CondLoRA adapter: pass the PeftModel that "
            "get_peft_model(model, CondLoraConfig(...)) gave, before merge_and_unload."
        )
    if adapter_name not in adapters:
        raise AdapterError(
            f"The model has no adapter {adapter_name!r}: choose one of {', '.join(adapters)}."
        )


def _check_cut(layers: Layers, adapter_name: str, rank: int) -> None:
    smallest = min(layer.r[adapter_name] for layer in layers.values())
    if not all(layer.method[adapter_name].is_nested for layer in layers.values()):
        raise AdapterError(
            "rank cuts an adapter that was trained for it, with method dylora or cond_dylora: leave rank out."
        )
    if not 1 <= rank <= smallest:
        raise AdapterError(f"rank is {rank}: choose one from 1 to {smallest}, which was trained.")


def _lora_config(
    model: PeftModel, layers: Layers, adapter_name: str, rank: int | None
) -> LoraConfig:
    own = model.peft_config[adapter_name]
    assert isinstance(own, CondLoraConfig)
    ranks = {path: rank or layer.r[adapter_name] for path, layer in layers.items()}
    alphas = {path: _alpha(layer, adapter_name, own.use_rslora) for path, layer in layers.items()}
    r = max(ranks.values())
    alpha = Counter(alphas[path] for path in layers if ranks[path] == r).most_common(1)[0][0]
    base_class = type(model.get_base_model())
    return LoraConfig(
        task_type=own.task_type,
        auto_mapping=None
        if own.task_type
        else {"base_model_class": base_class.__name__, "parent_library": base_class.__module__},
        base_model_name_or_path=own.base_model_name_or_path,
        revision=own.revision,
        inference_mode=True,
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT computes with any number
        lora_dropout=own.lora_dropout,
        use_rslora=own.use_rslora,
        use_dora=own.use_dora,
        rank_pattern={_exactly(path): rank for path, rank in ranks.items() if rank != r},
        alpha_pattern={_exactly(path): a for path, a in alphas.items() if a != alpha},
        target_modules=_target_modules(model.get_base_model(), layers, own.modules_to_save),
        modules_to_save=own.modules_to_save,
        bias="lora_only" if own.bias == "condlora_only" else own.bias,
        fan_in_fan_out=any(isinstance(m.get_base_layer(), Conv1D) for m in layers.values()),
    )


def _alpha(layer: CondLoraLayer, adapter_name: str, use_rslora: bool) -> float:
    """The alpha that gives the layer's scaling, which may have been changed by hand."""
    r, alpha, scaling = (
        values[adapter_name] for values in (layer.r, layer.lora_alpha, layer.scaling)
    )
    divisor = math.sqrt(r) if use_rslora else r
    return alpha if alpha / divisor == scaling else scaling * divisor


def _exactly(path: str) -> str:
    """A key of rank_pattern for this module alone: PEFT searches keys as regular expressions of a path's end."""
    return "^" + re.escape(path)


def _target_modules(
    base: nn.Module, layers: Layers, modules_to_save: list[str] | None
) -> list[str]:
    """Last names of the modules, as engines expect, or whole paths where names would hit other modules too."""
    names = sorted({path.rpartition(".")[2] for path in layers})
    config = LoraConfig(target_modules=names, modules_to_save=modules_to_save)
    paths = {
        path.replace(".original_module", "").replace(".base_layer", "")
        for path, _ in base.named_modules()
        if ".modules_to_save"
        not in path  # the trained copies; the module itself is `original_module`
    }
    hit = {path for path in paths if check_target_module_exists(config, path)}
    return names if hit == set(layers) else sorted(layers)
