"""The recipe of a run: everything resolved that can change its result, and the hash that identifies it."""

from __future__ import annotations

import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue

from condlora.errors import ConfigError, DataError, MissingRates, RunFolderError, first_line
from condlora.files import content_sha256, json_sha256
from condlora.runs.record import read_record

RECIPE_GROUPS = ("task", "backbone", "adapter", "protocol", "data")
# Left out of a recipe: the protocol's tables, of which a cell's own entries are resolved into its fields, and
# where data and weights lie, for the hashes in a record say what they are; what docs/methods.md says of an adapter, its
# default rate, for the protocol's field holds the one that is used, and the choices of `lora_on`, of which the one that is used
# is in its config.
NOT_IN_RECIPE = {
    "protocol": ("tables",),
    "data": ("root",),
    "backbone": ("path", "weights_sha256"),
    "adapter": ("title", "formula", "free", "note", "printed", "default_learning_rate", "choices"),
}


def recipe(cfg: DictConfig) -> dict:
    """All resolved settings that can change the result of a cell, its seed aside.

    Left out: `runtime` (speed only) and what NOT_IN_RECIPE names; so changing one entry of a table makes
    only its cells stale, and moving the data folder makes none. A user's own data files stand in it as the SHA-256 of
    their content: moved, they make no run stale; changed, they do. So do a folder's backbone and the adapter that a run
    starts from, with the recipe that it was trained by.

    Raises:
        MissingRates: no learning rate for this adapter on this task.
        ConfigError: a table has no entry for this task or adapter, or a mandatory value is missing.
        DataError: a user's data file does not exist.
        RunFolderError: see `adapter_to_start_from`.
    """
    plain = {group: _resolved(cfg, group) for group in RECIPE_GROUPS}
    for name in _own_files(plain["data"]):
        plain["data"][name] = content_sha256(_there(plain["data"][name], f"data.{name}"))
    if plain["adapter"].get("init_from"):
        weights = (
            adapter_to_start_from(Path(plain["adapter"]["init_from"])) / "adapter_model.safetensors"
        )
        plain["adapter"]["init_from"] = content_sha256(weights)
        plain["adapter"]["origin_recipe"] = _origin_recipe(weights.parents[1])
    if plain["backbone"]["source"] == "folder" and Path(cfg.backbone.path).is_dir():
        content = content_sha256(Path(cfg.backbone.path))
        plain["backbone"]["content"] = content
        if plain["backbone"]["name"] == cfg.backbone.path:  # m, m/ and ../m are one backbone
            plain["backbone"]["name"] = f"folder-{content[:8]}"
    return plain


def _resolved(cfg: DictConfig, group: str) -> dict:
    """One group's part of the recipe, see `recipe`."""
    node, plain, lacking = cfg[group], {}, []
    for key in [key for key in node if key not in NOT_IN_RECIPE.get(group, ())]:
        try:
            plain[key] = _value(node, key)
            if plain[key] is None and key == "learning_rate":  # nor has the adapter a default
                lacking.append(key)
        except MissingMandatoryValue as error:
            name = error.full_key or f"{group}.{key}"
            raise ConfigError(f"{name} is not set: add {name}=... to the command.") from error
        except InterpolationKeyError as error:
            if "protocol.tables" not in str(error):
                raise ConfigError(unknown_reference(f"{group}.{key}", error)) from error
            lacking.append(key)
    if lacking:
        kind = MissingRates if lacking == ["learning_rate"] else ConfigError
        raise kind(
            f"The protocol {cfg.protocol.name!r} has no {', '.join(lacking)} for adapter {cfg.adapter.name!r} on "
            f"task {cfg.task.name!r}: set {' '.join(f'{group}.{key}=...' for key in lacking)} or choose "
            "another protocol."
        )
    return plain


def _value(node: DictConfig, key: str) -> object:
    """A setting of a group, resolved, as plain Python."""
    value = node[key]
    if not OmegaConf.is_config(value):
        return value
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True)


def unknown_reference(name: str, error: InterpolationKeyError) -> str:
    """What is wrong with a setting that refers to another one, such as `${DATA}/t.csv`, which does not exist."""
    found = re.search(r"Interpolation key '([^']*)' not found", str(error))
    other = found[1] if found else first_line(error)
    return (
        f"{name} refers to ${{{other}}}, which is not a setting: for a variable of the shell use double quotes, or "
        f"${{oc.env:{other}}} for one of the environment."
    )


def _origin_recipe(folder: Path) -> str | None:
    """The recipe hash, of any seed, of the run that another starts from; None for an adapter without a record."""
    if not (folder / "record.json").is_file():
        return None
    return recipe_hash(recipe_of_any_seed(read_record(folder)["recipe"]))


def recipe_of_any_seed(plain: dict) -> dict:
    """A recipe without what differs from seed to seed: the adapter that a run started from."""
    adapter = {key: value for key, value in plain["adapter"].items() if key != "init_from"}
    return plain | {"adapter": adapter}


def adapter_to_start_from(folder: Path) -> Path:
    """The adapter's folder that `adapter.init_from` names: of a finished run, or any that PEFT saved.

    Raises:
        RunFolderError: there is none, or the run is not finished or damaged.
    """
    adapter = folder / "adapter" if (folder / "adapter").is_dir() else folder
    if not (adapter / "adapter_model.safetensors").is_file():
        raise RunFolderError(
            f"There is no adapter in {folder} to start from: finish that run first, or set adapter.init_from."
        )
    if (adapter.parent / "record.json").is_file():
        status = read_record(adapter.parent)["status"]
        if status != "done":
            raise RunFolderError(
                f"The run in {adapter.parent}, to start from, is {status}: finish it first, or set adapter.init_from."
            )
    return adapter


def _own_files(data: dict) -> list[str]:
    """The fields that name a user's own files, which a recipe knows by their content and not by their name."""
    if data["source"] == "files":
        return [name for name in ("train", "validation", "test") if data[name] is not None]
    return ["dataset"] if data["source"] == "dataset" and Path(data["dataset"]).is_dir() else []


def _there(path: str, setting: str) -> Path:
    if not Path(path).exists():
        raise DataError(f"{setting}={path} does not exist: check the path.")
    return Path(path)


def recipe_hash(plain: dict) -> str:
    """SHA-256 of a recipe in canonical JSON."""
    return json_sha256(plain)
