"""Starting an adapter from one that was trained on another task, with a new head.

Hu et al. 2022 (appendix D.1) start RTE, MRPC and STS-B from their MNLI adapter. Such a run counts as another method than
one with a new adapter: configs/adapter/lora_from.yaml gives it a name of its own.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file

from condlora.errors import AdapterError, ConfigError, first_line
from condlora.models.backbones import Backbone
from condlora.runs.recipe import adapter_to_start_from
from condlora.runs.record import read_record

# Fields in which the two configs may differ: paths, the head, and settings that only training uses.
FREE = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "modules_to_save", "peft_version",
    "revision",
}  # fmt: skip


def start_from(model: PeftModel, cfg: DictConfig, backbone: Backbone) -> None:
    """Load the adapter that `cfg.init_from` names (folder of a run or of an adapter) into a new model; the head stays new.

    cfg: the `adapter` group.

    Raises:
        RunFolderError: there is no adapter, or the run is not finished or damaged.
        ConfigError: the run is on another task than `cfg.origin`.
        AdapterError: it was trained on other weights or with other settings, or does not fit.
    """
    folder = adapter_to_start_from(Path(cfg.init_from))
    try:
        config = PeftConfig.from_pretrained(str(folder))
        tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    except Exception as error:  # PEFT and safetensors raise many kinds
        raise AdapterError(
            f"{folder} holds no readable adapter ({first_line(error)}): set adapter.init_from to another."
        ) from error
    check_same_base(folder, config, cfg, backbone)
    check_same_settings(folder, config, model.peft_config["default"])
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    head = tuple(f"base_model.model.{part}." for part in backbone.head)
    started = {name: tensor for name, tensor in tensors.items() if not name.startswith(head)}
    wanted = {name: tensor.shape for name, tensor in own.items() if not name.startswith(head)}
    if {name: tensor.shape for name, tensor in started.items()} != wanted:
        raise AdapterError(
            f"The tensors in {folder} are not those of this run's adapter: set adapter.init_from to another."
        )
    set_peft_model_state_dict(model, own | started)


def check_same_base(folder: Path, config: PeftConfig, cfg: DictConfig, backbone: Backbone) -> None:
    """Refuse an adapter of other weights or another task. A run's record names both; an adapter without a run only its base."""
    if (folder.parent / "record.json").is_file():
        record = read_record(folder.parent)
        is_same = record["backbone"]["weights_sha256"] == backbone.description["weights_sha256"]
        called = record["backbone"]["name"]
        if record["task"] != cfg.origin:
            raise ConfigError(
                f"{folder.parent} is a run on {record['task']}, and adapter.origin is {cfg.origin}: set "
                f"adapter.origin={record['task']}, which names this run, or adapter.init_from to another."
            )
    else:
        called = config.base_model_name_or_path
        is_same = _same_place(called, backbone.model.name_or_path)
    if not is_same:
        raise AdapterError(
            f"The adapter in {folder} was trained on other weights ({called}) than this run's "
            f"({backbone.description['name']}): start from one of the same backbone."
        )


def _same_place(called: str | None, known: str) -> bool:
    """Whether two names are the same model on the hub, or two paths the same folder."""
    if called and Path(called).is_dir() and Path(known).is_dir():
        return Path(called).resolve() == Path(known).resolve()
    return called == known


def check_same_settings(folder: Path, theirs: PeftConfig, ours: PeftConfig) -> None:
    """Refuse an adapter of another method, rank, scaling or choice of modules."""
    theirs, ours = _plain(theirs), _plain(ours)
    for name in sorted((theirs.keys() | ours.keys()) - FREE):
        if theirs.get(name) != ours.get(name):
            raise AdapterError(
                f"The adapter in {folder} has {name}={theirs.get(name)} where this run has {ours.get(name)}: start "
                "from one of the same settings."
            )


def _plain(config: PeftConfig) -> dict:
    return {
        name: sorted(value) if isinstance(value, set | list | tuple) else value
        for name, value in config.to_dict().items()
    }
