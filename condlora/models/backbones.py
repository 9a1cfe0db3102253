"""The pretrained backbone with its tokenizer.

Sources: the hub (pinned revision), a folder, an installed Python package that contains a model, a model fetched in parts
(`condlora.models.fetch`), or random weights for tests. All encoders and decoders that `AutoModelForSequenceClassification`
loads are supported. The backbone's config names the modules for query and value, or the one module for both. A backbone is
loaded once per process and copied for every run.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from condlora.errors import (
    BackboneError,
    ConfigError,
    NetworkError,
    first_line,
    raise_if_denied,
)
from condlora.files import content_sha256
from condlora.models.fetch import fetched_folder
from condlora.models.heads import find_head, fit_to_each_other, initialise_head, longest_input

# Settings that a classifier needs, whatever the model was used for before: outputs by name, no further outputs, layers that
# are not computed in chunks, and an encoder whose first token attends to the whole text.
FOR_A_CLASSIFIER = {
    "return_dict": True,
    "output_hidden_states": False,
    "output_attentions": False,
    "chunk_size_feed_forward": 0,
    "is_decoder": False,
}


@dataclass(frozen=True)
class Backbone:
    """A loaded model, which is never trained; runs train copies, see `fresh_model`.

    head: paths of the modules that pretraining does not provide, which are trained whole; see `find_head`.
    max_length: the largest number of tokens it reads. description: the record's entry on it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: tuple[str, ...]
    max_length: int
    description: dict


def load_backbone(cfg: DictConfig, *, num_labels: int) -> Backbone:
    """Load the backbone of a config; a second call in one process gives the same object, unless its folder changed.

    Raises:
        BackboneError: weights or tokenizer are missing or unreadable.
        NetworkError: the hub cannot be reached and holds no cached copy.
        ConfigError: the source is unknown.
    """
    settings = OmegaConf.to_container(cfg, resolve=True)
    if cfg.source == "folder":  # its files may have changed
        settings["content"] = content_sha256(Path(cfg.path))
    return _load(json.dumps(settings, sort_keys=True), num_labels)


@functools.lru_cache(maxsize=4)
def _load(settings: str, num_labels: int) -> Backbone:
    cfg = OmegaConf.create(json.loads(settings))
    labels = labels_of(num_labels)
    if cfg.source == "random":
        model, missing = random_model(cfg, labels)
        tokenizer = _tokenizer(_package_folder(cfg.tokenizer_package, cfg.tokenizer_folder), None)
    else:
        place, revision = _place(cfg)
        model, missing = _pretrained_model(place, revision, labels, cfg)
        tokenizer = _tokenizer(place, revision)
    if len(tokenizer) < model.config.vocab_size / 2:
        # transformers makes an empty tokenizer, to which every word is unknown, where the files are missing.
        raise BackboneError(
            f"The tokenizer of {cfg.name} knows {len(tokenizer)} of the model's {model.config.vocab_size} tokens: add "
            "the tokenizer's files to the model's."
        )
    backbone = as_backbone(cfg, model, missing, tokenizer)
    if cfg.get("weights_sha256") not in (None, backbone.description["weights_sha256"]):
        raise BackboneError(
            f"The SHA-256 of the weights of {cfg.name} is {backbone.description['weights_sha256']}, not that of "
            "backbone.weights_sha256: fetch them again, or set it to null to use these."
        )
    return backbone


def labels_of(num_labels: int) -> dict:
    """What a classifier's config says of its outputs; one output is a regression."""
    problem = "regression" if num_labels == 1 else "single_label_classification"
    return {"num_labels": num_labels, "problem_type": problem}


def as_backbone(
    cfg: DictConfig,
    model: PreTrainedModel,
    missing: list[str],
    tokenizer: PreTrainedTokenizerBase,
) -> Backbone:
    """A frozen backbone from a classifier, fitted to its tokenizer; `missing`: names of the tensors of a new head."""
    head = find_head(model, missing, cfg.name)
    fit_to_each_other(model, tokenizer, cfg.name)
    model.name_or_path = model.config._name_or_path = str(cfg.get("model", cfg.name))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    description = {
        "name": _name(cfg),
        "source": cfg.source,
        "revision": cfg.get("revision"),
        "weights_sha256": _weights_sha256(model, head),
        "layers": model.config.num_hidden_layers,
        "hidden_size": model.config.hidden_size,
        "modules": OmegaConf.to_container(cfg.modules),
        "head": list(head),
    }
    return Backbone(model.eval(), tokenizer, head, longest_input(model, tokenizer), description)


def _name(cfg: DictConfig) -> str:
    """The config's name; for a folder that is named by its path the folder's own name, however the path is written."""
    if cfg.source == "folder" and cfg.name == cfg.path:
        return Path(cfg.path).resolve().name
    return cfg.name


def _place(cfg: DictConfig) -> tuple[str, str | None]:
    """What from_pretrained reads, and the hub's revision."""
    if cfg.source == "hub":
        return cfg.model, cfg.revision
    if cfg.source == "package":
        return str(_package_folder(cfg.package, cfg.folder)), None
    if cfg.source == "fetched":
        return str(fetched_folder(cfg.archive)), None
    if cfg.source == "folder":
        if not (Path(cfg.path) / "config.json").is_file():
            raise BackboneError(
                f"{cfg.path} holds no config.json: set backbone.path to a folder with a model."
            )
        return cfg.path, None
    raise ConfigError(
        f"Unknown backbone source {cfg.source!r}: choose hub, package, fetched, folder or random."
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
    transformers_logging.set_verbosity_error()  # `head` handles "some weights are newly initialised"
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(
            place, revision=revision or "main", trust_remote_code=False
        )
        config._attn_implementation = None  # runtime.attention chooses
        # The old problem type first: with another number of labels it may be invalid.
        for setting, value in ({"problem_type": None} | FOR_A_CLASSIFIER).items():
            if hasattr(config, setting):
                setattr(config, setting, value)
        for setting, value in labels.items():
            setattr(config, setting, value)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            place,
            config=config,
            revision=revision or "main",
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # of the output layer alone, see below
        )
    except SafetensorError as error:
        raise BackboneError(
            f"The weights in {place} cannot be read ({first_line(error)}): fetch them again."
        ) from error
    except Exception as error:  # transformers raises many kinds for a config that it cannot build
        raise_if_denied(error)
        if cfg.source == "hub" and isinstance(error, OSError | ValueError):
            raise NetworkError(
                f"{place} (revision {revision[:8]}) is not cached and could not be downloaded "
                f"({type(error).__name__}): go online once, or use backbone=minilm."
            ) from error
        raise BackboneError(
            f"No sequence classifier could be loaded from {place} ({first_line(error)}): check its config.json; it needs "
            "that file and model.safetensors, of a model that transformers knows."
        ) from error
    mismatched = {key: shapes for key, *shapes in info["mismatched_keys"]}
    for key, (found, expected) in mismatched.items():
        if key.startswith(f"{model.base_model_prefix}."):
            raise BackboneError(
                f"The weights in {place} cannot be read ({key} is {tuple(found)}, and config.json says "
                f"{tuple(expected)}): fetch them again."
            )
    return model, sorted({*info["missing_keys"], *mismatched})


def random_model(cfg: DictConfig, labels: dict) -> tuple[PreTrainedModel, list[str]]:
    """A classifier of `cfg.architecture`, drawn from `cfg.weights_seed`, and the names of its head's tensors."""
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
        raise_if_denied(error)
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
    """A copy of the backbone with its head initialised from torch's global generator."""
    model = copy.deepcopy(backbone.model)
    initialise_head(model, backbone.head)
    return model
