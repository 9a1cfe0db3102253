"""An adapter on a backbone: attach it, save it, load it, read its matrices.

`load_factors` gives the analyses W, A and B of a finished run's layers.
"""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path

import hydra
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from peft import PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from condlora.errors import AdapterError, ConfigError, UserError, first_line
from condlora.models import baselines
from condlora.models.backbones import Backbone, fresh_model, load_backbone
from condlora.tuner import Factors, layer_factors
from condlora.tuner.io.adapter_folder import order_names
from condlora.tuner.sharing import layer_index


def add_adapter(
    model: PreTrainedModel,
    cfg: DictConfig,
    head: tuple[str, ...],
    batches: baselines.Batches | None = None,
) -> PeftModel:
    """Attach the adapter of a config to a model; the head is trained whole and saved with the adapter.

    batches: of the training data, for methods that start from them.

    Raises:
        ConfigError: PEFT does not accept the adapter's config.
        AdapterError: the adapter does not fit the model.
    """
    baselines.check_requirements(cfg)
    try:
        config = hydra.utils.instantiate(cfg.config, modules_to_save=list(head), _convert_="all")
        with warnings.catch_warnings():
            # PEFT sets it by itself where the layer is GPT-2's Conv1D, and warns.
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")
            return baselines.attach(model, config, cfg, batches)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        raise ConfigError(
            f"adapter={cfg.name} is not accepted ({first_line(cause or error)}): check adapter.config.*."
        ) from error
    except (ValueError, TypeError, RuntimeError) as error:  # whatever PEFT raises
        if isinstance(error, UserError):
            raise
        raise AdapterError(
            f"The adapter {cfg.name} does not fit the backbone ({first_line(error)})."
        ) from error


def start(
    adapter: DictConfig, backbone: Backbone, seed: int, batches: baselines.Batches | None = None
) -> PeftModel:
    """The backbone with a new head and adapter, drawn in this order from a run's initialisation stream. As `add_adapter`."""
    torch.manual_seed(seed)
    return add_adapter(fresh_model(backbone), adapter, backbone.head, batches)


def base_for(backbone: Backbone, adapter: DictConfig) -> PreTrainedModel:
    """A copy of the backbone to load a saved adapter of this config onto, changed as its training changed it."""
    model = copy.deepcopy(backbone.model)
    baselines.prepare_base(model, adapter, backbone.head)
    return model


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Load what `save_adapter` wrote onto a new model, for evaluation."""
    return PeftModel.from_pretrained(model, str(folder), is_trainable=False).eval()


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Save adapter and head as safetensors in PEFT's layout, without asking the hub.

    Weights of the backbone that the method changed are saved with them, see `condlora.models.baselines`.
    """
    logging.getLogger("peft").setLevel(logging.ERROR)
    for config in model.peft_config.values():
        order_names(config)
    with baselines.baseline_of(model).as_saved() as base_weights:
        model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    if base_weights:
        path = folder / SAFETENSORS_WEIGHTS_NAME
        save_file(load_file(path) | base_weights, path, metadata={"format": "pt"})


def load_run(folder: Path) -> tuple[PeftModel, DictConfig]:
    """The adapted model of a finished run, as saved, and the run's config."""
    cfg, backbone = _settings_of(folder)
    return load_adapter(base_for(backbone, cfg.adapter), folder / "adapter"), cfg


def _settings_of(folder: Path) -> tuple[DictConfig, Backbone]:
    cfg = OmegaConf.load(folder / "config.yaml")
    num_labels = 1 if cfg.task.labels is None else len(cfg.task.labels)
    return cfg, load_backbone(cfg.backbone, num_labels=num_labels)


def load_factors(folder: Path) -> dict[str, Factors]:
    """W, A and B of every adapted layer of a finished run, by module kind ("query", "value").

    Empty where the method does not add one product B A to each W, see `condlora.models.baselines.is_one_product`, or adapts
    not all of these modules.
    """
    with safe_open(folder / "adapter" / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        names = list(file.keys())
    config = PeftConfig.from_pretrained(str(folder / "adapter"))
    cfg = OmegaConf.load(folder / "config.yaml")
    if not baselines.is_one_product(cfg.adapter, config, names):
        return {}
    modules = OmegaConf.to_container(cfg.backbone.modules)
    if not all(any(f".{module}." in name for name in names) for module in modules.values()):
        return {}
    model, _ = load_run(folder)
    return layer_factors(model, modules)


def changed_weights(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor, list[int]]]:
    """W0 and W (L, out, in) after training, with the update merged, and the 0-based layers of a finished run, by module kind.

    For any method that can be merged, full fine-tuning included; empty for others.
    """
    model, cfg = load_run(folder)
    _, backbone = _settings_of(folder)
    merged = baselines.baseline_of(model).merged()
    found: dict[str, tuple[torch.Tensor, torch.Tensor, list[int]]] = {}
    if merged is None:
        return found
    after = dict(merged.named_modules())
    for kind, name in cfg.backbone.modules.items():
        of_kind = {
            layer_index(path): (_weight(module), _weight(after[path]))
            for path, module in backbone.model.named_modules()
            if path.rsplit(".", 1)[-1] == name
        }
        layers = sorted(of_kind)
        pairs = zip(*(of_kind[layer] for layer in layers), strict=True)
        W0, W = (torch.stack(weights) for weights in pairs)
        found[kind] = W0, W, layers
    return found


def _weight(module: torch.nn.Module) -> torch.Tensor:
    """The weight of a linear layer, (out, in); GPT-2's is stored as (in, out)."""
    weight = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def initial_factors(folder: Path, seed: int) -> dict[str, Factors]:
    """W, A and B of a run before its first step, drawn again from its initialisation stream to the same bits.

    seed: the record's streams.initialisation. For adapters that start from random numbers alone: neither from another run
    nor from training examples.

    Raises AdapterError for a run whose adapter started from another run.
    """
    cfg, backbone = _settings_of(folder)
    if cfg.adapter.get("init_from"):
        raise AdapterError(
            f"The adapter of {folder} started from another run, so its start cannot be drawn again."
        )
    model = start(cfg.adapter, backbone, seed)
    return layer_factors(model, OmegaConf.to_container(cfg.backbone.modules))
