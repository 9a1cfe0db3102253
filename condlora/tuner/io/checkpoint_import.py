"""Import: checkpoints of the authors' released code and of loralib, as adapters that PEFT can load.

Three layouts are supported. They are recognised by their keys:

    authors' CondLoRA   query.linear_for_lora_A, in a folder whose adapter_config.json says ConditionalLORA; with use_x "type1"
                        also linear_for_lora_x, one for all modules
    authors' LoRA       PEFT's own keys, in a folder whose adapter_config.json says LORA
    loralib             roberta.encoder.layer.0.attention.self.query.lora_A, in one .bin file

Pickled files are read with `weights_only=True`, so they cannot run code.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import (
    CONFIG_NAME,
    SAFETENSORS_WEIGHTS_NAME,
    WEIGHTS_NAME,
    get_peft_model_state_dict,
)
from safetensors.torch import load_file

from condlora.errors import AdapterError, UserError, first_line
from condlora.tuner.config import CondLoraConfig
from condlora.tuner.io.adapter_folder import (
    base_config,
    base_of,
    check_free,
    empty_model,
    write_adapter,
)
from condlora.tuner.methods.condlora_x import TYPE2

Tensors = dict[str, torch.Tensor]

LAYOUTS = {
    "the authors' CondLoRA": re.compile(
        r"(?:(?:.*\.)?([^.]+)\.)?linear_for_lora_([ABx])(?:\.weight)?"
    ),
    "PEFT's LoRA": re.compile(r"base_model\.model\..+\.lora_[AB]\.weight"),
    "loralib": re.compile(r".+\.lora_[AB]"),
}
METHODS = {"the authors' CondLoRA": "ConditionalLORA", "PEFT's LoRA": "LORA"}
MAP_KEY = re.compile(r".*\.([^.]+)\.condlora_theta_([ABx])")  # as our own adapters have it
# Fields of the authors' adapter_config.json: those that are copied, those that do not affect the weights, and those that
# must have one of these values.
TAKEN = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
)
NEEDED = ("r", "lora_alpha", "target_modules")
IGNORED = ("peft_type", "inference_mode", "init_lora_weights", "lora_x_scaling")
EXPECTED = {"bias": ("none",), "fan_in_fan_out": (False,), "use_x": ("none", "type1")}


def import_adapter(
    source: str | Path,
    folder: str | Path,
    *,
    base: str | None = None,
    lora_alpha: int | None = None,
) -> CondLoraConfig | LoraConfig:
    """Write the adapter of such a checkpoint as a PEFT adapter folder, and return its config.

    `source` is a folder of the authors' code or a file of loralib. `base`, a folder or hub id, is the base model; only its
    config is read, to check every name and shape. `lora_alpha` is needed for loralib, whose file does not hold it. The authors' CondLoRA becomes a `CondLoraConfig` of form "code", each map
    stored once, and its variant "type1" one of method "condlora_x"; the others become a `LoraConfig`.

    Raises:
        AdapterError: the source has none of the layouts, is damaged, or does not fit the base model.
        BackboneError: the base model is not named or not found.
    """
    check_free(folder)
    source = Path(source)
    tensors, settings = _read(source)
    layout = _layout(tensors, source)
    config: CondLoraConfig | LoraConfig
    if layout == "loralib":
        config, tensors = _from_loralib(tensors, settings, lora_alpha, source)
    else:
        config = _from_authors(settings, layout, lora_alpha, source)
        if layout == "the authors' CondLoRA":
            tensors = _shared_once(tensors, source)
    tensors = _fitted(tensors, config, base, source)
    write_adapter(folder, config, tensors)
    return config


def _read(source: Path) -> tuple[Tensors, dict[str, Any] | None]:
    """The tensors of a file, or of a folder together with its adapter_config.json."""
    settings = None
    path = source
    if source.is_dir():
        try:
            settings = json.loads((source / CONFIG_NAME).read_text())
        except (OSError, ValueError) as error:
            raise AdapterError(
                f"{source} has no readable {CONFIG_NAME} ({first_line(error)}): give a folder that the authors' "
                "code saved, or the .bin file itself that loralib saved."
            ) from error
        path = next(
            (source / n for n in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME) if (source / n).exists()),
            source / SAFETENSORS_WEIGHTS_NAME,
        )
    if not path.is_file():
        raise AdapterError(f"There is no file {path}: give the checkpoint to import.")
    try:
        tensors = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (
        Exception
    ) as error:  # unpickling raises whatever a damaged or hostile file makes it raise
        raise AdapterError(
            f"{path} is damaged or holds more than tensors, and code in a checkpoint is never run "
            f"({type(error).__name__}): save its state dict as safetensors where you trust it."
        ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in tensors.items()
    ):
        raise AdapterError(
            f"{path} is no state dict: a dictionary from names to tensors is needed."
        )
    return tensors, settings


def _layout(tensors: Tensors, source: Path) -> str:
    found = {name for name, key in LAYOUTS.items() if any(key.fullmatch(k) for k in tensors)}
    if len(found) > 1:
        raise AdapterError(
            f"{source} mixes the layouts of {' and '.join(sorted(found))}: import each from a file of its own."
        )
    if not found:
        example = f", such as {min(tensors)}" if tensors else ""
        raise AdapterError(
            f"{source} has no adapter's tensors ({len(tensors)} others{example}): what can be imported are "
            "checkpoints of the authors' code and of loralib."
        )
    return found.pop()


def _from_authors(
    settings: dict[str, Any] | None, layout: str, lora_alpha: int | None, source: Path
) -> CondLoraConfig | LoraConfig:
    if settings is None:
        raise AdapterError(
            f"{source} comes with an {CONFIG_NAME} that says its lora_alpha: give the folder that holds both."
        )
    if lora_alpha is not None:
        raise AdapterError(
            f"{source / CONFIG_NAME} says lora_alpha already: leave out --lora-alpha."
        )
    if not isinstance(settings, dict) or settings.get("peft_type") != METHODS[layout]:
        raise AdapterError(
            f"{source / CONFIG_NAME} does not name peft_type {METHODS[layout]!r}, which the keys of the "
            "weights require: config and weights are not from one checkpoint of the authors' code."
        )
    has_theta_x = settings.get("use_x") == "type1"
    needed = (*NEEDED, "lora_x_scaling") if has_theta_x else NEEDED
    lacking = [name for name in needed if not settings.get(name)]
    unusual = [
        name
        for name, value in settings.items()
        if name not in (*TAKEN, *IGNORED)
        and (value not in EXPECTED[name] if name in EXPECTED else value)
    ]
    if lacking or unusual:
        fault = "lacks " + ", ".join(lacking) if lacking else "sets " + ", ".join(unusual)
        if settings.get("use_x") == "type2":
            raise AdapterError(f"{source / CONFIG_NAME} sets use_x to type2. {TYPE2}.")
        raise AdapterError(
            f"{source / CONFIG_NAME} {fault}: only plain adapters of the authors' scripts can be imported."
        )
    taken = {name: settings[name] for name in TAKEN if settings.get(name) is not None}
    if layout == "the authors' CondLoRA":
        if has_theta_x:
            taken["method"] = "condlora_x"
            taken["options"] = {"use_x": "type1", "lora_x_scaling": settings["lora_x_scaling"]}
        return CondLoraConfig(**taken, form="code", inference_mode=True)
    return LoraConfig(**taken, inference_mode=True)


def _shared_once(tensors: Tensors, source: Path) -> Tensors:
    """The authors' maps, each under one name, also if the file has a copy of it for every layer."""
    plain: Tensors = {}
    for key, tensor in tensors.items():
        match = LAYOUTS["the authors' CondLoRA"].fullmatch(key)
        name = _map_name(match) if match else key
        if match and name in plain and not torch.equal(plain[name], tensor):
            raise AdapterError(
                f"{source} holds different tensors for {name} ({key} is one): the layers of CondLoRA share one, "
                "so the file is damaged or of another method."
            )
        plain[name] = tensor
    return plain


def _from_loralib(
    tensors: Tensors, settings: dict[str, Any] | None, lora_alpha: int | None, source: Path
) -> tuple[LoraConfig, Tensors]:
    if settings is not None:
        raise AdapterError(
            f"{source} mixes loralib's tensors with an {CONFIG_NAME}, which loralib does not write: "
            "give loralib's .bin file itself."
        )
    if lora_alpha is None or lora_alpha <= 0:
        raise AdapterError(
            "loralib's files do not say lora_alpha: give --lora-alpha as it was in training."
        )
    factors = {key for key in tensors if LAYOUTS["loralib"].fullmatch(key)}
    modules = {key.rpartition(".")[0] for key in factors}
    ranks = {len(tensors[key]) for key in factors if key.endswith("lora_A")}
    tops = {path.partition(".")[0] for path in modules}
    head = {key.partition(".")[0] for key in tensors if key not in factors}
    if tops & head:
        extra = min(k for k in tensors if k not in factors and k.partition(".")[0] in tops)
        raise AdapterError(
            f"{source} holds weights of the base model ({extra}): keep LoRA's tensors and the head only."
        )
    if len(ranks) != 1:
        raise AdapterError(
            f"{source} has lora_A of ranks {sorted(ranks)}: one rank for all modules is needed."
        )
    config = LoraConfig(
        r=ranks.pop(),
        lora_alpha=lora_alpha,
        target_modules=sorted({path.rpartition(".")[2] for path in modules}),
        modules_to_save=sorted(head) or None,
        task_type="SEQ_CLS",
        inference_mode=True,
    )
    renamed = {
        f"base_model.model.{key}" + (".weight" if key in factors else ""): tensor
        for key, tensor in tensors.items()
    }
    return config, renamed


def _fitted(
    tensors: Tensors, config: CondLoraConfig | LoraConfig, base: str | None, source: Path
) -> Tensors:
    """The tensors under PEFT's names for this adapter of this base model; every name and shape is checked.

    Sets the base model in `config`.
    """
    base, model_class = base_of(config, base, source)
    model_config = base_config(base, config, tensors, model_class)
    config.base_model_name_or_path = base
    try:
        model = get_peft_model(empty_model(model_config, model_class), config)
    except (UserError, ValueError) as error:
        raise AdapterError(
            f"{source} does not fit {base} ({first_line(error)}): give its own base with --base."
        ) from error
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    unused = set(tensors)
    fitted = {}
    for key, empty in expected.items():
        match = MAP_KEY.fullmatch(key)
        name = _map_name(match) if match else key
        if name not in tensors:
            raise AdapterError(
                f"{source} lacks {_shown(name)}, which the adapter of {base} has: it is incomplete, or of another base."
            )
        if tensors[name].shape != empty.shape:
            raise AdapterError(
                f"{_shown(name)} is {_sizes(tensors[name])} in {source} and {_sizes(empty)} on {base} "
                f"with r {config.r}: it is damaged, or of another base."
            )
        fitted[key] = tensors[name]
        unused.discard(name)
    if unused:
        raise AdapterError(
            f"{source} holds {_shown(min(unused))}, which the adapter of {base} does not have: "
            "it is of another base."
        )
    return fitted


def _map_name(match: re.Match[str]) -> str:
    """The authors' name of a map: of its module kind, or for theta_x of none."""
    module, side = match.groups()
    name = f"linear_for_lora_{side}"
    return name if side == "x" or module is None else f"{module}.{name}"


def _shown(name: str) -> str:
    return name.removeprefix("base_model.model.")


def _sizes(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
