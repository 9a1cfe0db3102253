"""The pretrained backbone with its tokenizer, and an adapter on it.

From the hub (pinned revision), a folder, an installed Python package that ships one, or random weights for
tests. Any encoder or decoder will do that `AutoModelForSequenceClassification` loads; which of its modules are
query and value, or the two in one, is said by the backbone's config. Loaded once per process and copied for every
run.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.util
import inspect
import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import hydra
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
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
from condlora.files import content_sha256
from condlora.models import methods
from condlora.tuner import Factors, layer_factors
from condlora.tuner.io.adapter_folder import order_names

TENSORS = "adapter_model.safetensors"  # PEFT's name


@dataclass(frozen=True)
class Backbone:
    """A loaded model: never trained itself, see `fresh_model`.

    head: paths of the modules that pretraining does not provide, which are trained whole; see `find_head`.
    max_length: the most tokens it reads. description: what a record says of it.
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
    if cfg.source == "folder":  # which may hold others by now
        settings["content"] = content_sha256(Path(cfg.path))
    return _load(json.dumps(settings), num_labels)


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
    head = find_head(model, missing, cfg.name)
    fit_to_each_other(model, tokenizer, cfg.name)
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
    return Backbone(model.eval(), tokenizer, head, longest_input(model, tokenizer), description)


def find_head(model: PreTrainedModel, missing: list[str], name: str) -> tuple[str, ...]:
    """Paths of the modules to draw anew and train whole, in the model's order.

    They are those outside the encoder that its file lacks (`missing`: names of parameters) and the one that holds
    the output layer, which the file of a classifier has, for another task. What the file does provide stays as it
    is: of ModernBERT's two modules beside the encoder the first is pretrained. Of the encoder only a pooler may lack.

    Raises:
        BackboneError: more of the encoder is missing.
    """
    encoder = model.base_model_prefix
    inside = [key for key in missing if key.startswith(f"{encoder}.")]
    lost = [key for key in inside if not key.startswith(f"{encoder}.pooler.")]
    if lost:
        raise BackboneError(
            f"The weights of {name} lack {lost[0]}{f' and {len(lost) - 1} more' * (len(lost) > 1)}: fetch them again."
        )
    drawn = {key.split(".")[0] for key in set(missing) - set(inside)}
    outputs = {
        child
        for child, module in model.named_children()
        if child != encoder
        and any(p.shape[0] == model.config.num_labels for p in module.parameters())
    }
    beside = tuple(child for child, _ in model.named_children() if child in drawn | outputs)
    return (f"{encoder}.pooler",) * bool(inside) + beside


def fit_to_each_other(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    """Let the tokenizer give what the model takes, and the model know how a batch is padded.

    Decoders come without a padding token, and GPT-2's tokenizer puts nothing between the two texts of a pair. Their
    end-of-text token serves for both, as the delimiter of Radford et al. 2018 (GPT, section 3.3). A decoder is
    padded on the right: the head reads the last token that is no padding, which sees nothing of what follows, and
    each token keeps its position.

    Raises:
        BackboneError: there is no such token.
    """
    accepted = inspect.signature(model.forward).parameters
    tokenizer.model_input_names = [n for n in tokenizer.model_input_names if n in accepted]
    joins_pairs_bare = tokenizer.num_special_tokens_to_add(pair=True) == 0
    if (tokenizer.pad_token is None or joins_pairs_bare) and tokenizer.eos_token is None:
        raise BackboneError(
            f"The tokenizer of {name} has neither a padding nor an end-of-text token: set pad_token and eos_token in "
            "its tokenizer_config.json."
        )
    if model.config.pad_token_id is None:
        tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    if joins_pairs_bare:
        end = tokenizer.eos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A",
            pair=f"$A {end} $B",
            special_tokens=[(end, tokenizer.eos_token_id)],
        )


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens that a model reads, by its tokenizer's limit and its positions.

    RoBERTa and its kin count positions from the padding token's index on, so that the first few are never used.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None:
        return tokenizer.model_max_length
    unused = [
        module.padding_idx + 1
        for path, module in model.named_modules()
        if path.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return min(tokenizer.model_max_length, positions - max(unused, default=0))


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
            ignore_mismatched_sizes=True,  # of the output layer alone, see below
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
            "model.safetensors of a model that transformers knows."
        ) from error
    except Exception as error:  # safetensors' own errors derive from Exception alone
        raise BackboneError(
            f"The weights in {place} cannot be read ({first_line(error)}): fetch them again."
        ) from error
    mismatched = {key: shapes for key, *shapes in info["mismatched_keys"]}
    for key, (found, expected) in mismatched.items():
        if key.startswith(f"{model.base_model_prefix}."):
            raise BackboneError(
                f"The weights in {place} cannot be read ({key} is {tuple(found)}, and config.json says "
                f"{tuple(expected)}): fetch them again."
            )
    return model, sorted({*info["missing_keys"], *mismatched})


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
        for module in model.get_submodule(name).modules():
            model._init_weights(module)
    return model


def base_for(backbone: Backbone, adapter: DictConfig) -> PreTrainedModel:
    """A copy of the backbone as a saved adapter of this config is loaded onto: in 4 bits where it was trained so."""
    model = copy.deepcopy(backbone.model)
    if adapter.get("quantise"):
        methods.quantise(model, adapter, backbone.head)
    return model


def add_adapter(
    model: PreTrainedModel,
    cfg: DictConfig,
    head: tuple[str, ...],
    batches: methods.Batches | None = None,
) -> PeftModel:
    """Put the adapter of a config on a model; the head is trained and saved whole beside it.

    batches: of the training data, for methods that start from them.

    Raises:
        ConfigError: the adapter's config is not one PEFT accepts.
        AdapterError: it does not fit the model.
    """
    methods.check_requirements(cfg)
    try:
        config = hydra.utils.instantiate(cfg.config, modules_to_save=list(head), _convert_="all")
        with warnings.catch_warnings():
            # LoRA sets it by itself where the layer is GPT-2's Conv1D, and says so.
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")
            return methods.put_on(model, config, cfg, batches)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        raise ConfigError(
            f"adapter={cfg.name} is not accepted ({first_line(cause or error)}): check adapter.config.*."
        ) from error
    except (ValueError, TypeError, RuntimeError) as error:  # whatever PEFT comes upon
        if isinstance(error, UserError):
            raise
        raise AdapterError(
            f"The adapter {cfg.name} does not fit the backbone ({first_line(error)})."
        ) from error


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Load what `save_adapter` wrote onto a fresh model, for evaluation."""
    return PeftModel.from_pretrained(model, str(folder), is_trainable=False).eval()


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Adapter and head as safetensors, as PEFT lays them out. Asks the hub nothing.

    With them what the method changed of the model's own weights, see `condlora.models.methods`.
    """
    logging.getLogger("peft").setLevel(logging.ERROR)
    for config in model.peft_config.values():
        order_names(config)
    with methods.as_saved(model) as base_weights:
        model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    if base_weights:
        path = folder / TENSORS
        save_file(load_file(path) | base_weights, path, metadata={"format": "pt"})


def load_run(folder: Path) -> tuple[PeftModel, DictConfig]:
    """The adapted model of a finished run, as saved, and the run's config."""
    cfg = OmegaConf.load(folder / "config.yaml")
    num_labels = 1 if cfg.task.labels is None else len(cfg.task.labels)
    backbone = load_backbone(cfg.backbone, num_labels=num_labels)
    return load_adapter(base_for(backbone, cfg.adapter), folder / "adapter"), cfg


def load_factors(folder: Path) -> dict[str, Factors]:
    """W, A and B of every adapted layer of a finished run, by module kind ("query", "value").

    Empty where the method is not one B A added to each W, see `condlora.models.methods.is_one_product`.
    """
    with safe_open(folder / "adapter" / TENSORS, framework="pt") as file:
        names = list(file.keys())
    config = PeftConfig.from_pretrained(str(folder / "adapter"))
    is_quantised = OmegaConf.load(folder / "config.yaml").adapter.get("quantise")
    if is_quantised or not methods.is_one_product(config, names):
        return {}
    model, cfg = load_run(folder)
    return layer_factors(model, OmegaConf.to_container(cfg.backbone.modules))
