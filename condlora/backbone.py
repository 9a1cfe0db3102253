"""The pretrained encoder with its tokenizer, and an adapter on it.

From the hub (pinned revision), a folder, an installed Python package that ships one, or random weights for
tests. Any encoder will do that `AutoModelForSequenceClassification` loads; which of its modules are query
and value is said by the backbone's config. Loaded once per process and copied for every run.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.util
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import hydra
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from peft import PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from condlora.errors import (
    AdapterError,
    BackboneError,
    ConfigError,
    NetworkError,
    UserError,
    first_line,
)
from condlora.tuner import Factors, layer_factors


@dataclass(frozen=True)
class Backbone:
    """A loaded encoder: never trained itself, see `fresh_model`.

    head: names of the top-level modules that pretraining does not provide, which are trained whole.
    description: what a record says of it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: tuple[str, ...]
    description: dict


def load_backbone(cfg: DictConfig, *, num_labels: int) -> Backbone:
    """Load the backbone of a config; a second call in one process gives the same object.

    Raises:
        BackboneError: weights or tokenizer are missing or unreadable.
        NetworkError: the hub cannot be reached and holds no cached copy.
        ConfigError: the source is unknown.
    """
    return _load(json.dumps(OmegaConf.to_container(cfg, resolve=True)), num_labels)


@functools.lru_cache(maxsize=4)
def _load(settings: str, num_labels: int) -> Backbone:
    cfg = OmegaConf.create(json.loads(settings))
    labels = {"num_labels": num_labels}
    if num_labels == 1:
        labels["problem_type"] = "regression"
    if cfg.source == "random":
        model, missing = _random_model(cfg, labels)
        tokenizer = _tokenizer(_package_folder(cfg.tokenizer_package, cfg.tokenizer_folder), None)
    else:
        place, revision = _place(cfg)
        model, missing = _pretrained_model(place, revision, labels, cfg)
        tokenizer = _tokenizer(place, revision)
    if len(tokenizer) < model.config.vocab_size / 2:
        # transformers makes an empty one of its own where the files lack, to which every word is unknown.
        raise BackboneError(
            f"No tokenizer could be loaded for {cfg.name}: what is there knows {len(tokenizer)} of the model's "
            f"{model.config.vocab_size} tokens."
        )
    head = tuple(dict.fromkeys(key.split(".")[0] for key in missing))
    model.name_or_path = model.config._name_or_path = str(cfg.get("model", cfg.name))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    description = {
        "name": cfg.name,
        "source": cfg.source,
        "revision": cfg.get("revision"),
        "weights_sha256": _weights_sha256(model, head),
        "layers": model.config.num_hidden_layers,
        "hidden_size": model.config.hidden_size,
        "modules": OmegaConf.to_container(cfg.modules),
        "head": list(head),
    }
    if cfg.get("weights_sha256") not in (None, description["weights_sha256"]):
        raise BackboneError(
            f"The weights of {cfg.name} are not those that backbone.weights_sha256 names, but "
            f"{description['weights_sha256']}: fetch them again, or set it to null to use these."
        )
    return Backbone(model.eval(), tokenizer, head, description)


def _place(cfg: DictConfig) -> tuple[str, str | None]:
    """What from_pretrained reads, and the hub's revision."""
    if cfg.source == "hub":
        return cfg.model, cfg.revision
    if cfg.source == "package":
        return str(_package_folder(cfg.package, cfg.folder)), None
    if cfg.source == "folder":
        if not (Path(cfg.path) / "config.json").is_file():
            raise BackboneError(
                f"{cfg.path} holds no config.json: set backbone.path to a folder with a model."
            )
        return cfg.path, None
    raise ConfigError(
        f"Unknown backbone source {cfg.source!r}: choose hub, package, folder or random."
    )


def _package_folder(package: str, folder: str) -> Path:
    spec = importlib.util.find_spec(package)  # finds the package without running its code
    if spec is None or not spec.submodule_search_locations:
        raise BackboneError(
            f"The package {package} is not installed: pip install -r requirements.txt."
        )
    path = Path(spec.submodule_search_locations[0]) / folder
    if not path.is_dir():
        raise BackboneError(
            f"The package {package} has no folder {folder!r}: reinstall the pinned version."
        )
    return path


def _pretrained_model(place: str, revision: str | None, labels: dict, cfg: DictConfig):
    transformers_logging.set_verbosity_error()  # "some weights are newly initialised" is what `head` is for
    transformers_logging.disable_progress_bar()
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            place,
            revision=revision or "main",
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **labels,
        )
    except (OSError, ValueError) as error:
        if cfg.source == "hub":
            raise NetworkError(
                f"{place} (revision {revision[:8]}) is neither cached nor to be had from the hub "
                f"({type(error).__name__}): go online once, or use backbone=minilm."
            ) from error
        raise BackboneError(
            f"No sequence classifier could be loaded from {place} ({first_line(error)}): it needs config.json and "
            "model.safetensors of an encoder that transformers knows."
        ) from error
    except Exception as error:  # safetensors' own errors derive from Exception alone
        raise BackboneError(
            f"The weights in {place} cannot be read ({first_line(error)}): fetch them again."
        ) from error
    return model, sorted(info["missing_keys"])


def _random_model(cfg: DictConfig, labels: dict):
    architecture = OmegaConf.to_container(cfg.architecture)
    config = AutoConfig.for_model(**architecture, **labels)
    with torch.random.fork_rng():
        torch.manual_seed(cfg.weights_seed)
        model = AutoModelForSequenceClassification.from_config(config)
    encoder = model.base_model_prefix + "."
    return model, sorted(key for key in model.state_dict() if not key.startswith(encoder))


def _tokenizer(place, revision: str | None) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(place, revision=revision or "main")
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"No tokenizer could be loaded from {place} ({first_line(error)})."
        ) from error


def _weights_sha256(model: PreTrainedModel, head: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(tuple(f"{part}." for part in head)):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def fresh_model(backbone: Backbone) -> PreTrainedModel:
    """A copy of the backbone with its head drawn anew from torch's global generator."""
    model = copy.deepcopy(backbone.model)
    for name in backbone.head:
        for module in getattr(model, name).modules():
            model._init_weights(module)
    return model


def add_adapter(model: PreTrainedModel, cfg: DictConfig, head: tuple[str, ...]) -> PeftModel:
    """Put the adapter of a config on a model; the head is trained and saved whole beside it.

    Raises:
        ConfigError: the adapter's config is not one PEFT accepts.
        AdapterError: it does not fit the model.
    """
    try:
        config = hydra.utils.instantiate(cfg.config, modules_to_save=list(head), _convert_="all")
        return get_peft_model(model, config)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        raise ConfigError(
            f"adapter={cfg.name} is not accepted ({first_line(cause or error)}): check adapter.config.*."
        ) from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise AdapterError(
            f"The adapter {cfg.name} does not fit the backbone ({first_line(error)})."
        ) from error


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Load what `save_adapter` wrote onto a fresh model, for evaluation."""
    return PeftModel.from_pretrained(model, str(folder), is_trainable=False).eval()


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Adapter and head as safetensors, as PEFT lays them out. Asks the hub nothing."""
    logging.getLogger("peft").setLevel(logging.ERROR)
    for config in model.peft_config.values():
        if isinstance(config.target_modules, set):  # whose order is another in every process
            config.target_modules = sorted(config.target_modules)
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)


def load_run(folder: Path) -> tuple[PeftModel, DictConfig]:
    """The adapted model of a finished run, as saved, and the run's config."""
    cfg = OmegaConf.load(folder / "config.yaml")
    num_labels = 1 if cfg.task.labels is None else len(cfg.task.labels)
    backbone = load_backbone(cfg.backbone, num_labels=num_labels)
    return load_adapter(copy.deepcopy(backbone.model), folder / "adapter"), cfg


def load_factors(folder: Path) -> dict[str, Factors]:
    """W, A and B of every adapted layer of a finished run, by module kind ("query", "value")."""
    model, cfg = load_run(folder)
    return layer_factors(model, OmegaConf.to_container(cfg.backbone.modules))
