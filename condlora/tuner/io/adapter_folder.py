"""An adapter's folder in PEFT's layout: written whole or not at all, and loaded with the base model that it names.

It needs only what the method itself needs, so that exporting works after a plain `pip install`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftConfig, PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, PretrainedConfig

from condlora.errors import AdapterError, BackboneError, first_line, raise_if_denied
from condlora.files import write_atomically

AUTO_CLASSES = {
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
    "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": transformers.AutoModel,
}
ADAPTER_FILES = {CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, "README.md"}
PROBE_LABELS = 7919  # a prime that no other dimension of a model is likely to be


def check_free(folder: str | Path) -> None:
    """Refuse to write into a folder that is not empty.

    Raises:
        AdapterError: `folder` is a file, or holds anything.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise AdapterError(
            f"{folder} exists and is not empty: choose a new folder, or remove it. In Python, overwrite=True replaces a "
            "folder that holds an adapter and nothing else."
        )


def write_adapter(
    folder: str | Path,
    config: PeftConfig,
    tensors: dict[str, torch.Tensor],
    *,
    overwrite: bool = False,
) -> None:
    """Write adapter_config.json and adapter_model.safetensors; equal content gives equal bytes.

    The folder is put in place in one step, so an error leaves no partial folder. With `overwrite` an adapter that the
    folder holds is removed first.

    Raises:
        AdapterError: the folder is not empty; with `overwrite`, something else than an adapter.
    """
    folder = Path(folder)
    if overwrite and folder.is_dir() and {path.name for path in folder.iterdir()} <= ADAPTER_FILES:
        for path in folder.iterdir():
            path.unlink()
    check_free(folder)
    config = copy.copy(config)
    order_names(config)
    plain = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}

    def fill(fresh: Path) -> None:
        config.save_pretrained(str(fresh))
        save_file(plain, fresh / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})

    write_atomically(folder, fill)


def order_names(config: PeftConfig) -> None:
    """Sort the names in a config: PEFT keeps some as sets, whose order differs between processes."""
    for name in ("target_modules", "modules_to_save"):
        if isinstance(value := getattr(config, name, None), set | list):
            setattr(config, name, sorted(set(value)))


def load_adapted(folder: str | Path, base: str | None = None) -> PeftModel:
    """The base model with the adapter of a folder on it, in evaluation mode.

    `base` is a folder or a hub id; by default the one the adapter's config names.

    Raises:
        AdapterError: the folder holds no adapter, or one that does not fit the base model.
        BackboneError: the base model is not named, not found or cannot be read.
    """
    folder = Path(folder)
    try:
        config = PeftConfig.from_pretrained(str(folder))
        with (folder / SAFETENSORS_WEIGHTS_NAME).open("rb"):
            pass  # safetensors does not say what is not permitted
        tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    except Exception as error:  # PEFT and safetensors raise errors of any class, down to KeyError
        raise_if_denied(error)
        raise AdapterError(
            f"{folder} holds no readable adapter ({first_line(error)}): it needs {CONFIG_NAME} and "
            f"{SAFETENSORS_WEIGHTS_NAME}, as save_pretrained writes them."
        ) from error
    base, model_class = base_of(config, base, folder)
    model_config = base_config(base, config, tensors, model_class)
    try:
        # A head with other labels than the base's own is initialised here and read from the adapter below;
        # nothing else can mismatch, for the rest of the config is the base's.
        model = model_class.from_pretrained(
            base, config=model_config, revision=config.revision, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError) as error:
        raise_if_denied(error)
        raise BackboneError(
            f"No {model_class.__name__} could be loaded from {base} ({first_line(error)}): "
            "give its folder or hub id with --base."
        ) from error
    try:
        return PeftModel.from_pretrained(model, str(folder)).eval()
    except (RuntimeError, ValueError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(
            f"The adapter in {folder} does not fit {base} ({first_line(error)}): give its own base with --base."
        ) from error


def base_of(config: PeftConfig, base: str | None, folder: Path) -> tuple[str, Any]:
    """The base model's folder or hub id, and the transformers class (a model's own or an auto class) that loads it.

    Raises:
        BackboneError: the adapter's config says neither.
    """
    base = base or config.base_model_name_or_path
    if not base:
        raise BackboneError(f"{folder} does not name its base model: give it with --base.")
    # A name from a file is looked up in transformers alone: importing what it says could run anything.
    name = (config.auto_mapping or {}).get("base_model_class", "")
    model_class = AUTO_CLASSES.get(config.task_type or "") or getattr(transformers, name, None)
    if model_class is None:
        raise BackboneError(
            f"{folder} was made for {name or 'a model it does not name'}, which transformers does not have: "
            "load that model and the adapter in Python, and call export_lora on it."
        )
    return base, model_class


def base_config(
    base: str, config: PeftConfig, tensors: dict[str, torch.Tensor], model_class: Any
) -> PretrainedConfig:
    """The base model's config, with as many labels as the head among the adapter's tensors has.

    Raises:
        BackboneError: there is none.
    """
    try:
        model_config: PretrainedConfig = AutoConfig.from_pretrained(base, revision=config.revision)
    except (OSError, ValueError) as error:
        raise_if_denied(error)
        raise BackboneError(
            f"{base} is neither a folder with a config.json nor a model that is cached or available "
            f"from the hub ({first_line(error)}): give the base model with --base."
        ) from error
    probe_config = copy.deepcopy(model_config)
    probe_config.num_labels = PROBE_LABELS
    for name, tensor in empty_model(probe_config, model_class).state_dict().items():
        head = tensors.get(f"base_model.model.{name}")
        if tensor.shape[:1] == (PROBE_LABELS,) and head is not None and head.ndim:
            if len(head) != model_config.num_labels:  # setting it forgets the labels' names
                model_config.num_labels = len(head)
            break
    return model_config


def empty_model(config: PretrainedConfig, model_class: Any) -> nn.Module:
    """A model without weights, on torch's meta device: its names and shapes."""
    with torch.device("meta"):
        make = getattr(model_class, "from_config", model_class)  # an auto class, or a model's own
        model: nn.Module = make(config)
    return model
