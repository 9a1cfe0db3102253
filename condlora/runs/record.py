"""The run folder: what a run leaves behind, written atomically, read back with checks.

    config.yaml                       the resolved config, whole
    record.json                       one self-contained record, see `condlora.training.run.run`
    curve.csv                         a row per evaluation
    checkpoints/                      while it is not finished, see `condlora.training.checkpoints`
    predictions_validation.parquet    label and prediction of each example, in the split's order
    predictions_test.parquet
    adapter/                          what PEFT's save_pretrained writes

A record is identified by its cell (profile, task, adapter, seed) and the hash of its recipe: everything
resolved that can change a result. Scores are fractions, times seconds, memory MiB.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import shutil
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue

from condlora.errors import (
    ConfigError,
    DataError,
    Interrupted,
    RunFolderError,
    UserError,
    first_line,
)
from condlora.files import content_sha256, sha256, write_atomically

SCHEMA_VERSION = 2
RECIPE_GROUPS = ("task", "backbone", "adapter", "protocol", "data")
# Left out of a recipe: the protocol's tables, of which a cell's own entries are resolved into its fields, and
# where data and weights lie, for the hashes in a record say what they are; an adapter's display name, and its default
# rate, for the protocol's field holds the one that is used.
NOT_IN_RECIPE = {
    "protocol": ("tables",),
    "data": ("root",),
    "backbone": ("path", "weights_sha256"),
    "adapter": ("title", "default_learning_rate"),
}
STATUSES = ("running", "interrupted", "failed", "done")
REQUIRED_FILES = (
    "config.yaml",
    "curve.csv",
    "predictions_validation.parquet",
    "predictions_test.parquet",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
)


def run_folder(cfg: DictConfig) -> Path:
    """Where the run of this config lives: the path is the identity of the cell, all else is in the record.

    Raises:
        ConfigError: a name in it is none for a folder, and might lead out of `runs`.
    """
    names = {group: str(cfg[group].name) for group in ("profile", "task", "adapter")}
    for group, name in names.items():
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(
                f"{group}.name={name!r} is no folder's name: use letters, digits, _, - and '.'."
            )
    return Path(cfg.runs, *names.values(), f"seed-{cfg.seed}")


def recipe(cfg: DictConfig) -> dict:
    """All resolved settings that can change the result of a cell, its seed aside.

    Left out: `runtime` (speed only) and what NOT_IN_RECIPE names; so changing one entry of a table makes
    only its cells stale, and moving the data folder makes none. A user's own data files stand in it as the SHA-256 of
    their content: moved, they make no run stale; changed, they do. So do a folder's backbone and the adapter that a run
    starts from, with the recipe that it was trained by.

    Raises:
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
        plain["backbone"]["content"] = content_sha256(Path(cfg.backbone.path))
    return plain


def _resolved(cfg: DictConfig, group: str) -> dict:
    """One group's part of the recipe, see `recipe`."""
    kept = [key for key in cfg[group] if key not in NOT_IN_RECIPE.get(group, ())]
    node = OmegaConf.masked_copy(cfg[group], kept)
    node._set_parent(cfg)
    lacking = [key for key in kept if _has_no_entry(node, key)]
    if lacking:
        raise ConfigError(
            f"The protocol {cfg.protocol.name!r} has no {', '.join(lacking)} for adapter {cfg.adapter.name!r} on "
            f"task {cfg.task.name!r}: set {' '.join(f'{group}.{key}=...' for key in lacking)} or choose "
            "another protocol."
        )
    try:
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        name = f"{group}.{error.full_key}"
        raise ConfigError(f"{name} is not set: add {name}=... to the command.") from error
    except InterpolationKeyError as error:
        raise ConfigError(
            f"{group} cannot be resolved ({first_line(error)}): set that value."
        ) from error


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


def _has_no_entry(node: DictConfig, key: str) -> bool:
    """Whether a table lacks what a setting is read from; for the rate, whether the adapter has no default either."""
    if OmegaConf.is_missing(node, key):
        return False  # another error's
    try:
        return node[key] is None and key == "learning_rate"
    except InterpolationKeyError:
        return True


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
    return hashlib.sha256(_canonical(plain).encode()).hexdigest()


def write_record(folder: Path, record: dict) -> dict:
    """Write record.json and return what it holds; NaN is refused, unknown values are null.

    A finished run's record holds the SHA-256 of every file its result rests on, and each record its own.
    """
    record = {key: value for key, value in record.items() if key not in ("files", "sha256")}
    if record["status"] == "done":
        there = [name for name in REQUIRED_FILES if (folder / name).is_file()]
        record["files"] = {name: sha256(folder / name) for name in there}
    record = json.loads(json.dumps(record, allow_nan=False))  # as it will be read
    record["sha256"] = _own_sha256(record)
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / "record.json", lambda path: path.write_text(text))
    return record


def _own_sha256(record: dict) -> str:
    """SHA-256 of a record without its own, in canonical JSON."""
    rest = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(_canonical(rest).encode()).hexdigest()


def _canonical(value: dict) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def read_record(folder: Path) -> dict:
    """The record of a run folder.

    Raises:
        RunFolderError: it is missing, not JSON, of another schema, or was changed after it was written; or a file
            of a finished run is missing or was changed.
    """
    path = folder / "record.json"
    advice = "run the same training command again to redo this run"
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunFolderError(f"{path} is missing: {advice}.") from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} is damaged ({error}): {advice}.") from None
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        raise RunFolderError(f"{path} is not a record of schema {SCHEMA_VERSION}: {advice}.")
    if record.get("status") not in STATUSES or "recipe_hash" not in record:
        raise RunFolderError(f"{path} lacks its status or recipe hash: {advice}.")
    if record.get("sha256") != _own_sha256(record):
        raise RunFolderError(f"{path} was changed after it was written: {advice}.")
    if record["status"] == "done":
        missing = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
        if missing:
            raise RunFolderError(f"{folder} lacks {', '.join(missing)}: {advice}.")
        for name in REQUIRED_FILES:  # and no path that a record might name
            if sha256(folder / name) != record["files"].get(name):
                raise RunFolderError(
                    f"{folder / name} was changed or damaged after it was written: {advice}."
                )
    return record


def new_record(cfg: DictConfig, plain: dict, *, streams: dict[str, int], environment: dict) -> dict:
    """The record of a run that begins; `plain` is its recipe."""
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "reason": None,
        "profile": cfg.profile.name,
        "task": cfg.task.name,
        "adapter": cfg.adapter.name,
        "seed": cfg.seed,
        "recipe_hash": recipe_hash(plain),
        "recipe": plain,
        "runtime": OmegaConf.to_container(cfg.runtime, resolve=True),
        "streams": streams,
        "headline": cfg.task.headline,
        "effective_batch": cfg.protocol.batch_size,
        "environment": environment,
        "started_at": now(),
    }


def failure(error: BaseException) -> dict:
    """The record's fields of a run that failed or was interrupted; a defect of ours is named by its type."""
    if isinstance(error, Interrupted):
        return {"status": "interrupted", "reason": f"signal {error.args[0]}", "finished_at": now()}
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return {"status": "failed", "reason": reason, "finished_at": now()}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def finished_record(folder: Path, digest: str) -> dict | None:
    """The record of this very cell and recipe if it is done."""
    try:
        record = read_record(folder)
    except RunFolderError:
        return None
    return record if record["status"] == "done" and record["recipe_hash"] == digest else None


def set_aside(folder: Path, digest: str) -> None:
    """Make room for a run of the recipe with this hash: finished or damaged work of another is renamed.

    An unfinished run of this recipe stays, to be gone on with; one of another recipe is removed.
    """
    if not folder.exists():
        return
    try:
        record = read_record(folder)
        if record["status"] != "done":
            if record["recipe_hash"] != digest:
                shutil.rmtree(folder)
            return
        name = f"{folder.name}.stale-{record['recipe_hash'][:8]}"
    except RunFolderError:
        name = f"{folder.name}.damaged-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S%f}"
    target = folder.with_name(name)
    if target.exists():
        shutil.rmtree(folder)  # this recipe's work has been set aside before
    else:
        folder.rename(target)
